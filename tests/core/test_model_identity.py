"""Which model it was is told apart, in words, and survives a file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pure_core.model_identity import ModelIdentity

SKETCH = {"middle": 2.0, "output": -1.0}
ONE = ModelIdentity("one.safetensors", "unet", "abc", "float16", SKETCH)


def test_the_fingerprint_decides_and_the_name_does_not():
    copy = replace(ONE, name="copy.safetensors", sketch={})
    assert ONE.is_same(copy) and ONE.difference(copy) == ""
    assert not ONE.is_same(replace(ONE, fingerprint="def"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "two.safetensors", "sketch": {"middle": 2.1, "output": -1.0}},
            "model: one.safetensors / two.safetensors, whose weights differ",
        ),
        ({"sketch": {"middle": float("nan"), "output": -1.0}}, "whose weights differ"),
        ({"precision": "bfloat16"}, "the model's precision: float16 / bfloat16"),
        ({"precision": "bfloat16", "sketch": {"middle": 2.002, "output": -1.0}}, "precision"),
        ({}, "what was patched into one.safetensors"),
        ({"sketch": {}}, "what was patched into one.safetensors"),
    ],
)
def test_what_differs_is_said(change, message):
    assert message in ONE.difference(replace(ONE, fingerprint="def", **change))


def test_the_record_comes_back():
    for each in (ONE, ModelIdentity("模型")):
        assert ModelIdentity.from_record(json.loads(json.dumps(each.record()))) == each
    assert ONE.without_sketch() == {
        "name": "one.safetensors",
        "family": "unet",
        "fingerprint": "abc",
        "precision": "float16",
        "patched": False,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"name": 1},
        {"more": "x"},
        {"sketch": []},
        {"sketch": {"middle": "2"}},
        {"sketch": {"middle": True}},
        {"precision": None},
    ],
)
def test_other_records_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        ModelIdentity.from_record(ONE.record() | change)
    with pytest.raises(ValueError, match="expected"):
        ModelIdentity.from_record({"name": "one"})
