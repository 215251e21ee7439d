"""Eraser files come back as they were, and nothing else is taken for one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pure_core.anchors import AnchorSet
from pure_core.eraser import Eraser
from pure_core.errors import EraserFileError
from pure_core.files.eraser import load_eraser, save_eraser
from pure_core.fitting import fit, fit_text
from pure_core.methods import TEXT_METHODS
from pure_core.selection import select
from tests.core.models import contents
from tests.core.texts import text_task


@pytest.fixture
def eraser(make_activations) -> Eraser:
    return fit("pure", make_activations(seed=1), make_activations(seed=2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "eraser.safetensors"


@pytest.mark.parametrize("method", ["pure", "ridge", "leace"])
def test_round_trip(make_activations, path, method):
    eraser = fit(method, make_activations(seed=1), make_activations(seed=2))
    save_eraser(eraser, path)
    loaded = load_eraser(path)
    assert loaded.provenance == eraser.provenance
    assert loaded.fingerprint == eraser.fingerprint
    for name, layer in eraser.layers.items():
        assert torch.equal(loaded.layers[name].proj_left, layer.proj_left)
        assert torch.equal(loaded.layers[name].proj_right, layer.proj_right)
        assert torch.equal(loaded.layers[name].rows, layer.rows)


@pytest.mark.parametrize("version", ["0", "3", "4"])
def test_files_of_other_versions_are_refused(eraser, path, version):
    save_eraser(eraser, path)
    tensors, metadata = contents(path)
    save_file(tensors, path, metadata=metadata | {"format_version": version})
    with pytest.raises(
        EraserFileError, match=f"version 1 or 2, but .* has version {version}. Update"
    ):
        load_eraser(path)


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_round_trip_of_text_methods(path, method):
    eraser = fit_text(method, text_task())
    save_eraser(eraser, path)
    loaded = load_eraser(path)
    assert (loaded.space, loaded.widths) == (eraser.space, eraser.widths)
    assert loaded.provenance == eraser.provenance
    assert loaded.fingerprint == eraser.fingerprint
    for name, layer in eraser.layers.items():
        assert torch.equal(loaded.layers[name].rows, layer.rows)


def test_a_layer_that_all_share_is_written_and_read_once(path):
    eraser = fit_text("uce", text_task())
    save_eraser(eraser, path)
    first, *others = eraser.layers
    tensors, metadata = contents(path)
    assert tensors.keys() == {f"{first}.{part}" for part in ("proj_left", "proj_right", "rows")}
    assert json.loads(metadata["shared"]) == dict.fromkeys(others, first)
    assert metadata["space"] == "text"
    loaded = load_eraser(path)
    assert list(loaded.layers) == list(eraser.layers)
    assert len({id(layer) for layer in loaded.layers.values()}) == 1


@pytest.mark.parametrize("method", ["uce", "speed"])
@pytest.mark.parametrize(
    "change",
    [
        lambda eraser: eraser.applied(0.5),
        lambda eraser: eraser.limited(1),
        lambda eraser: select(eraser, "middle"),
    ],
    ids=["strength", "max_rank", "layers"],
)
def test_changed_text_erasers_can_be_saved(path, method, change):
    eraser = change(fit_text(method, text_task()))
    save_eraser(eraser, path)
    assert load_eraser(path).fingerprint == eraser.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m, a, b: {"space": "image"},
            "space: expected one of activations, text, got 'image'",
        ),
        (lambda m, a, b: {"shared": "[]"}, "'shared'"),
        (lambda m, a, b: {"shared": json.dumps({b: 1})}, "'shared'"),
        (lambda m, a, b: {"shared": "{}"}, "missing or foreign"),
        (lambda m, a, b: {"shared": json.dumps({b: "x"})}, "names layers that are not there"),
        (lambda m, a, b: {"shared": json.dumps({b: a, "x": a})}, "names layers that are not"),
        (lambda m, a, b: {"shared": json.dumps({b: b})}, "that share others' tensors"),
        (lambda m, a, b: {"shared": json.dumps({b: a, a: b})}, "that share others' tensors"),
        (
            lambda m, a, b: {"architecture": json.dumps(json.loads(m["architecture"]) | {b: 21})},
            "expected width 21, got 20",
        ),
    ],
)
def test_a_bad_side_and_bad_sharing_are_refused(path, change, message):
    eraser = fit_text("uce", text_task())
    save_eraser(eraser, path)
    tensors, metadata = contents(path)
    first, second, *_ = eraser.layers
    save_file(tensors, path, metadata=metadata | change(metadata, first, second))
    with pytest.raises(EraserFileError, match=message):
        load_eraser(path)


def test_an_eraser_without_rows_is_smaller_and_survives(eraser, path, tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_eraser(eraser, whole)
    save_eraser(eraser.without_rows(), path)
    assert path.stat().st_size < whole.stat().st_size
    loaded = load_eraser(path)
    assert {layer.rows for layer in loaded.layers.values()} == {None}
    assert loaded.fingerprint == eraser.fingerprint
    assert loaded.provenance.contribution == eraser.provenance.contribution


def test_prompts_in_any_language_and_an_identity_eraser_survive(eraser, path):
    prompts = ['"quoted"', "皮卡丘, ébène", "two\nlines", ""]
    anchors = AnchorSet.written([prompts]) + AnchorSet.phrased(["猫"], ["{}", "{}的照片"])
    model = replace(eraser.provenance.model, name="模型")
    made = replace(eraser.provenance, forget=anchors, retain=AnchorSet(), model=model)
    still = {name: layer.scaled(0) for name, layer in eraser.layers.items()}
    save_eraser(Eraser(still, made), path)
    loaded = load_eraser(path)
    assert loaded.provenance == made
    assert set(loaded.ranks.values()) == {0}
    assert loaded.widths == eraser.widths


def test_the_format_is_the_documented_one(eraser, path):
    save_eraser(eraser, path)
    tensors, metadata = contents(path)
    layer = next(iter(eraser.layers))
    rank, width = eraser.ranks[layer], eraser.widths[layer]
    assert tensors[f"{layer}.proj_left"].shape == (width, rank)
    assert tensors[f"{layer}.proj_right"].shape == (rank, width)
    assert tensors[f"{layer}.rows"].shape == eraser.layers[layer].rows.shape
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert (metadata["format"], metadata["format_version"]) == ("pure-eraser", "2")
    assert json.loads(metadata["architecture"]) == eraser.widths
    assert json.loads(metadata["retain"]) == eraser.provenance.retain.record()
    assert (metadata["space"], json.loads(metadata["shared"])) == ("activations", {})


def test_nothing_is_overwritten_unasked(eraser, path):
    save_eraser(eraser, path)
    before = path.read_bytes()
    with pytest.raises(EraserFileError, match="exists already"):
        save_eraser(eraser.applied(0.5), path)
    assert path.read_bytes() == before
    save_eraser(eraser.applied(0.5), path, overwrite=True)
    assert load_eraser(path).strength == 0.5


def test_a_failed_write_leaves_nothing_behind(eraser, tmp_path):
    with pytest.raises(EraserFileError, match="was not written"):
        save_eraser(eraser, tmp_path / "missing" / "eraser.safetensors")
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    with pytest.raises(EraserFileError, match="was not written"):
        save_eraser(eraser, folder, overwrite=True)
    invalid = {name: layer.scaled(float("nan")) for name, layer in eraser.layers.items()}
    with pytest.raises(EraserFileError, match="NaN"):
        save_eraser(Eraser(invalid, eraser.provenance), tmp_path / "nan.safetensors")
    with pytest.raises(EraserFileError, match=r"ending in \.safetensors"):
        save_eraser(eraser, tmp_path / "eraser.pt")
    assert list(tmp_path.iterdir()) == [folder]


def test_success_leaves_one_file(eraser, path):
    save_eraser(eraser, path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:4],
        lambda content: content[:200],
        lambda content: content[:-1],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"[" + content[9:],
        lambda content: b"<html>Not found</html>",
    ],
    ids=["empty", "no header", "half a header", "cut", "huge header", "no JSON", "a web page"],
)
def test_damaged_files_are_refused(eraser, path, damage):
    save_eraser(eraser, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EraserFileError, match=r"Expected a safetensors file.*bytes"):
        load_eraser(path)


def test_a_pickle_is_refused_under_any_name(path):
    torch.save({"layer": torch.zeros(2)}, path)
    with pytest.raises(EraserFileError, match="Expected a safetensors file"):
        load_eraser(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for absent in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(EraserFileError, match="found none"):
            load_eraser(absent)


def test_other_safetensors_files_are_told_apart(path):
    save_file({"lora_unet.lora_up.weight": torch.zeros(2)}, path)
    with pytest.raises(EraserFileError, match=r"Expected an eraser.*lora_unet\.lora_up"):
        load_eraser(path)


LAYER = "middle_block.1.transformer_blocks.0.attn2"


def without(metadata: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: without(m, "format_version"), "version none"),
        (lambda m: without(m, "retain"), "'retain'.*missing"),
        (lambda m: m | {"forget": '"a cat"'}, "'forget'"),
        (lambda m: m | {"forget": "[1]"}, "'forget'"),
        (lambda m: m | {"forget": "a cat"}, "'forget'"),
        (lambda m: m | {"settings": "[]"}, "'settings'"),
        (lambda m: m | {"architecture": "{"}, "'architecture'"),
        (lambda m: m | {"architecture": '{"a": 4}'}, "3 tensors of its 1 layers"),
        (lambda m: m | {"architecture": m["architecture"].replace("60", "61")}, "width 61, got 60"),
        (lambda m: m | {"edit": "queries"}, "edit: expected one of"),
        (lambda m: m | {"edits": "queries"}, "edits: expected one of"),
        (lambda m: m | {"edits": ""}, "edits: expected one of"),
        (lambda m: m | {"forget": '[{"concept": 4}]'}, "forget: expected anchors with the texts"),
        (lambda m: m | {"retain": '[{"group": "4"}]'}, "retain: expected anchors with the texts"),
        (lambda m: m | {"strength": "nan"}, "strength: expected a number"),
        (lambda m: m | {"strength": "much"}, "not a valid eraser"),
        (lambda m: m | {"trajectory": "[]"}, "trajectory: expected an object"),
        (lambda m: m | {"trajectory": "{"}, "not a valid eraser"),
        (lambda m: m | {"trajectory": '{"steps": 3}'}, "its record is not as expected"),
        (lambda m: m | {"model": '{"name": "x"}'}, "its record is not as expected"),
        (lambda m: without(m, "strength"), "'strength'.*missing"),
    ],
)
def test_unknown_metadata_is_refused(eraser, path, change, message):
    save_eraser(eraser, path)
    tensors, metadata = contents(path)
    save_file(tensors, path, metadata=change(metadata))
    with pytest.raises(EraserFileError, match=message):
        load_eraser(path)


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[0, 0] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda left: {}, "missing or foreign"),
        (lambda left: {f"{LAYER}.proj_left": left, "x": left.clone()}, "missing or foreign.*x"),
        (lambda left: {f"{LAYER}.proj_left": left[:, 1:].contiguous()}, r"shape \(d, r\)"),
        (lambda left: {f"{LAYER}.proj_left": left[0].contiguous()}, r"shape \(d, r\)"),
        (lambda left: {f"{LAYER}.proj_left": left.half()}, "expected float32"),
        (lambda left: {f"{LAYER}.proj_left": with_value(left, float("nan"))}, "NaN or infinity"),
    ],
    ids=["missing", "foreign", "rank", "flat", "float16", "NaN"],
)
def test_tensors_that_are_not_as_promised_are_refused(eraser, path, change, message):
    save_eraser(eraser, path)
    tensors, metadata = contents(path)
    left = tensors.pop(f"{LAYER}.proj_left")
    save_file(tensors | change(left), path, metadata=metadata)
    with pytest.raises(EraserFileError, match=message):
        load_eraser(path)


def test_half_precision_erasers_are_saved_as_float32(eraser, path):
    save_eraser(eraser.to(torch.float16), path)
    assert load_eraser(path).fingerprint == eraser.to(torch.float16).fingerprint
