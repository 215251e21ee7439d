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
from pure_core.methods import fit
from tests.core.models import contents

LAYER = "middle_block.1.transformer_blocks.0.attn2"


@pytest.fixture
def captured(make_activations) -> Activations:
    both = make_activations(prompts=2, seed=1).concatenate(make_activations(prompts=3, seed=2))
    settings = replace(both.settings, source_sketch={LAYER: 1.5})
    return replace(both, settings=settings)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "retain.safetensors"


def test_round_trip(captured, path):
    save_activations(captured, path)
    loaded = load_activations(path)
    assert list(loaded.rows) == list(captured.rows)
    for name, rows in captured.rows.items():
        assert torch.equal(loaded.rows[name], rows)
    assert loaded.prompts == captured.prompts
    assert loaded.groups == captured.groups == (2, 3)
    assert loaded.settings == captured.settings


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


def changed(metadata: dict[str, str], **settings: object) -> dict[str, str]:
    return metadata | {"settings": json.dumps(json.loads(metadata["settings"]) | settings)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"format": "pure-eraser"}, "Expected activations .*'pure-eraser'"),
        (lambda m: m | {"format_version": "9"}, "version 9. Update"),
        (lambda m: {k: v for k, v in m.items() if k != "prompts"}, "'prompts'.*missing"),
        (lambda m: m | {"prompts": '["a"]'}, "expected 1 in all"),
        (lambda m: m | {"concepts": "[2, 2]"}, "expected 5 in all"),
        (lambda m: m | {"concepts": "[5, 0]"}, "at least one each"),
        (lambda m: m | {"layers": '["a"]'}, "1 tensors of its 1 layers"),
        (lambda m: changed(m, steps="twenty"), "settings .'steps'. are not"),
        (lambda m: changed(m, unknown=1), "settings .'unknown'. are not"),
        (lambda m: changed(m, latents=3), "expected 45 rows"),
        (lambda m: m | {"settings": "[" * 100_000}, "'settings'"),
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
