"""Saved activations come back as they were, and nothing else is taken for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pure_core.activations import Activations
from pure_core.errors import ActivationFileError
from pure_core.files.activations import load_activations, save_activations
from pure_core.fitting import fit
from tests.core.models import contents

LAYER = "middle_block.1.transformer_blocks.0.attn2"


@pytest.fixture
def captured(make_activations) -> Activations:
    return two_concepts(make_activations, cells=1)


def two_concepts(make_activations, cells: int) -> Activations:
    parts = (make_activations(prompts=n, seed=n, cells=cells) for n in (2, 3))
    both = next(parts).concatenate(*parts)
    return replace(both, model=replace(both.model, sketch={LAYER: 1.5}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "retain.safetensors"


@pytest.mark.parametrize("cells", [1, 2])
def test_round_trip(make_activations, path, cells):
    captured = two_concepts(make_activations, cells)
    save_activations(captured, path)
    loaded = load_activations(path)
    assert list(loaded.rows) == list(captured.rows)
    for name, rows in captured.rows.items():
        assert torch.equal(loaded.rows[name], rows)
        assert torch.equal(loaded.pooled().rows[name], captured.pooled().rows[name])
    assert (loaded.means is None) == (cells == 1)
    assert loaded.anchors == captured.anchors
    assert loaded.anchors.owners == (0, 0, 1, 1, 1)
    assert loaded.trajectory == captured.trajectory
    assert loaded.model == captured.model


def test_the_format_is_the_documented_one(make_activations, path):
    save_activations(two_concepts(make_activations, 2), path)
    tensors, metadata = contents(path)
    assert (metadata["format"], metadata["format_version"]) == ("pure-activations", "2")
    assert tensors[f"{LAYER}.rows"].shape == (5 * 2 * 3 * 4, 60)
    assert tensors[f"{LAYER}.means"].shape == (5 * 2 * 3, 60)
    assert json.loads(metadata["anchors"])[0] == {"prompt": "prompt 2 0", "concept": "prompt 2 0"}
    assert json.loads(metadata["trajectory"])["cells"] == 2
    assert json.loads(metadata["model"])["sketch"] == {LAYER: 1.5}


def test_a_fit_does_not_see_the_difference(captured, make_activations, path):
    save_activations(captured, path)
    forget = make_activations(seed=5)
    one, other = (fit("ridge", forget, each) for each in (captured, load_activations(path)))
    assert one.fingerprint == other.fingerprint


def test_nothing_is_overwritten_unasked(captured, path):
    save_activations(captured, path)
    before = path.read_bytes()
    with pytest.raises(ActivationFileError, match="exists already"):
        save_activations(captured, path)
    assert path.read_bytes() == before
    with pytest.raises(ActivationFileError, match=r"ending in \.safetensors"):
        save_activations(captured, path.with_suffix(".bin"))


def changed(metadata: dict[str, str], entry: str, **values: object) -> dict[str, str]:
    return metadata | {entry: json.dumps(json.loads(metadata[entry]) | values)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"format": "pure-eraser"}, "Expected activations .*'pure-eraser'"),
        (lambda m: m | {"format_version": "9"}, "version 9. Update"),
        (lambda m: {k: v for k, v in m.items() if k != "anchors"}, "'anchors'.*missing"),
        (lambda m: m | {"anchors": '[{"prompt": "a"}]'}, "expected 6 rows"),
        (lambda m: m | {"anchors": "[]"}, "at least one prompt"),
        (lambda m: m | {"anchors": '["a"]'}, "'anchors'"),
        (lambda m: m | {"anchors": '[{"prompt": 1}]'}, "expected anchors with the texts"),
        (lambda m: m | {"anchors": '[{"name": "a"}]'}, "expected anchors with the texts"),
        (lambda m: m | {"layers": '["a"]'}, "1 tensors of its 1 layers"),
        (lambda m: changed(m, "trajectory", steps="twenty"), "steps: expected int, got 'twenty'"),
        (lambda m: changed(m, "trajectory", unknown=1), "got .*'unknown'"),
        (lambda m: changed(m, "trajectory", latents=3), "expected 45 rows"),
        (lambda m: changed(m, "trajectory", latents=-2), "latents: expected 1 or more, got -2"),
        (lambda m: changed(m, "trajectory", cells=2), "missing or foreign"),
        (lambda m: m | {"trajectory": "[" * 100_000}, "'trajectory'"),
        (lambda m: changed(m, "model", name=1), "expected texts in"),
        (lambda m: changed(m, "model", sketch={"a": "b"}), "expected texts in"),
        (lambda m: changed(m, "model", unknown=1), "got .*'unknown'"),
    ],
)
def test_what_is_not_as_promised_is_refused(captured, path, change, message):
    save_activations(captured, path)
    tensors, metadata = contents(path)
    save_file(tensors, path, metadata=change(metadata))
    with pytest.raises(ActivationFileError, match=message):
        load_activations(path)


def test_damaged_and_foreign_files_are_refused(captured, path, tmp_path):
    save_activations(captured, path)
    tensors, metadata = contents(path)
    tensors[f"{LAYER}.rows"][0, 0] = torch.nan
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ActivationFileError, match="NaN or infinity"):
        load_activations(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ActivationFileError, match="cannot be read"):
        load_activations(path)
    with pytest.raises(ActivationFileError, match="found none"):
        load_activations(tmp_path / "absent.safetensors")
