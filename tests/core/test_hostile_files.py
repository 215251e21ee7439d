"""Files that somebody crafted or broke: refused at once with a clear error, or taken as is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pure_core.anchors import AnchorSet
from pure_core.combine import combine
from pure_core.eraser import Eraser
from pure_core.errors import ActivationFileError, EraserError, EraserFileError, ModelFileError
from pure_core.export import Source, export_checkpoint, export_diffusers, read_history
from pure_core.export.provenance import KEY
from pure_core.families import model_in_file
from pure_core.files.activations import load_activations, save_activations
from pure_core.files.eraser import load_eraser, save_eraser
from pure_core.files.safetensors_file import MAX_NAME, SafetensorsFile
from pure_core.fitting import fit
from tests.core.models import contents, expected, make_eraser, model_in

SOON = 3.0
"""Seconds; what hung took from 10 to 40."""


def write(path: Path, header: str, data: bytes = b"") -> Path:
    text = header.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def one_tensor(**changes: Any) -> str:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    return json.dumps({"conv_in.weight": entry | changes})


def test_shapes_of_huge_numbers_are_refused_at_once(tmp_path):
    shape = ",".join(["9" * 4000] * 800)
    header = f'{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,0]}}}}'
    path = write(tmp_path / "digits.safetensors", header)
    started = time.monotonic()
    with pytest.raises(ModelFileError, match="a number of 4000 digits"):
        SafetensorsFile.open(path)
    assert time.monotonic() - started < SOON


def test_a_shape_of_many_numbers_is_refused_at_once(tmp_path):
    path = write(tmp_path / "long.safetensors", one_tensor(shape=[2**62] * 300_000))
    started = time.monotonic()
    with pytest.raises(ModelFileError, match="larger than any file"):
        SafetensorsFile.open(path)
    assert time.monotonic() - started < SOON


def test_names_have_a_bound(tmp_path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    longest = write(tmp_path / "longest.safetensors", json.dumps({"a" * MAX_NAME: entry}))
    assert len(SafetensorsFile.open(longest).entries) == 1
    name = "input_blocks." * 32_000
    path = write(tmp_path / "name.safetensors", json.dumps({name: entry}))
    with pytest.raises(ModelFileError, match="a tensor's name has 416000 characters"):
        SafetensorsFile.open(path)


def test_a_name_that_goes_on_and_on_is_looked_at_from_its_end():
    names = {"input_blocks." * 32_000 + end: (8, 8) for end in ("attn2", "attn2.to_v.weight")}
    started = time.monotonic()
    with pytest.raises(ModelFileError):
        model_in_file(names, "x").diffusers_config()
    assert time.monotonic() - started < SOON


def test_many_blocks_of_many_tensors_take_no_longer_for_each():
    """40,000 tensors in 500 blocks, which took minutes when every block looked at every tensor."""
    shapes = {
        f"input_blocks.{block}.{part}.{number}.weight": (8, 8)
        for block in range(1, 501)
        for part in (0, 1)
        for number in range(40)
    }
    shapes["input_blocks.0.0.weight"] = (8, 4)
    attention = "input_blocks.1.1.transformer_blocks.0.attn2"
    shapes |= {f"{attention}.to_{each}.weight": (8, 4) for each in "qkv"}
    model = model_in_file(shapes, "x")
    started = time.monotonic()
    assert model.diffusers_name("input_blocks.500.0.39.weight").startswith("down_blocks.0.resnets.")
    for key in shapes:
        model.diffusers_name(key)
    assert time.monotonic() - started < SOON


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2.0, 3.0]},
        {"shape": [-2, -3]},
        {"shape": [True, 6]},
        {"shape": [2, "3"]},
        {"shape": 6},
        {"shape": [2, 3, [1]]},
        {"shape": [2, 2**63]},
        {"data_offsets": [0.0, 24.0]},
        {"data_offsets": [False, 24]},
        {"data_offsets": [-24, 0]},
        {"data_offsets": [24, 0]},
        {"data_offsets": [0, 24, 24]},
        {"data_offsets": None},
        {"dtype": 32},
        {"dtype": "F33"},
        {"dtype": None},
    ],
    ids=str,
)
def test_sizes_are_whole_numbers_from_0(tmp_path, changes):
    path = write(tmp_path / "odd.safetensors", one_tensor(**changes), bytes(24))
    with pytest.raises(ModelFileError, match=r"odd\.safetensors' cannot be read as one"):
        SafetensorsFile.open(path)
    good = write(tmp_path / "good.safetensors", one_tensor(), bytes(24))
    assert SafetensorsFile.open(good).read("conv_in.weight").shape == (2, 3)


@pytest.mark.parametrize(
    "header",
    ["[]", "3", '{"a": 3}', '{"a": []}', '{"__metadata__": [1]}', '{"\\ud800": {}}', "[" * 200_000],
)
def test_headers_of_another_form_are_refused(tmp_path, header):
    with pytest.raises(ModelFileError, match="cannot be read as one"):
        SafetensorsFile.open(write(tmp_path / "odd.safetensors", header))


def test_bytes_after_the_last_tensor_are_left_behind(source, tmp_path):
    """ComfyUI's loader takes such files, so they can be erased as well."""
    eraser = make_eraser(source)
    wanted = expected(source, [eraser])
    before = load_file(source)
    with source.open("ab") as file:
        file.write(b"tail")
    assert SafetensorsFile.open(source).trailing == 4
    target = tmp_path / "erased.safetensors"
    export_checkpoint(source, target, [eraser])
    after, _ = contents(target)  # by the format's own library, which refuses such bytes
    assert after.keys() == before.keys()
    for name, weight in wanted.items():
        assert torch.allclose(after[name].double(), weight, atol=1e-6)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(source.read_bytes()[:-9])
    with pytest.raises(ModelFileError, match="its header promises"):
        SafetensorsFile.open(cut)


@pytest.mark.parametrize(
    "missing", ["conv_in", "conv_out", "down_blocks.1.", "down_blocks.0.", "up_blocks.1."]
)
def test_an_incomplete_unet_is_no_folder_for_diffusers(source, tmp_path, missing):
    tensors = load_file(source)
    kept = {name: each for name, each in tensors.items() if not name.startswith(missing)}
    part = tmp_path / "part.safetensors"
    save_file(kept, part)
    try:
        eraser = make_eraser(part)
    except ModelFileError:  # nothing says any more that the names are those of diffusers
        return
    with pytest.raises(ModelFileError, match=r"not whole|has no place"):
        export_diffusers(part, tmp_path / "folder", [eraser])
    assert sorted(tmp_path.iterdir()) == [part, source]


def test_weights_of_attention_are_matrices(source, tmp_path):
    tensors = load_file(source)
    name = next(name for name in tensors if name.endswith("attn2.to_k.weight"))
    odd = tmp_path / "odd.safetensors"
    save_file(tensors | {name: torch.zeros(8)}, odd)
    with pytest.raises(ModelFileError, match="expected two axes, got the shape"):
        Source.open(odd, [make_eraser(source)])


def averaged(source: Path, path: Path, change: Callable[[dict], None] = lambda _: None) -> Path:
    """A checkpoint with latent-diffusion's averaged weights, half as large as the others."""
    unet = load_file(source)
    tensors = {f"model.diffusion_model.{name}": each for name, each in unet.items()}
    for name, each in unet.items():
        tensors["model_ema." + f"diffusion_model.{name}".replace(".", "")] = each / 2
    tensors["model_ema.decay"] = torch.tensor(0.9999)
    tensors["cond_stage_model.weight"] = torch.ones(3)
    change(tensors)
    save_file(tensors, path)
    return path


def test_averaged_weights_are_erased_too(source, tmp_path):
    path = averaged(source, tmp_path / "ema.safetensors")
    eraser = make_eraser(path).applied(0.7)
    target = tmp_path / "erased.safetensors"
    note = export_checkpoint(path, target, [eraser])
    assert note.endswith("They are erased, too.")
    after, metadata = contents(target)
    before = load_file(path)
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = expected(path, [eraser])
    copies = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): weight
        for name, weight in wanted.items()
    }
    assert changed == wanted.keys() | copies.keys()
    for name, weight in copies.items():
        assert torch.allclose(after[name].double(), weight / 2, atol=1e-6)
    assert json.loads(metadata[KEY])["ema_weights"] == "erased, too"


@pytest.mark.parametrize("case", ["incomplete", "another shape"])
def test_averaged_weights_that_cannot_be_told_apart_are_left_out(source, tmp_path, case):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        averages = (each for each in tensors if each.startswith("model_ema."))
        name = next(each for each in averages if "attn2to_v" in each)
        if case == "incomplete":
            del tensors[name]
        else:
            tensors[name] = torch.zeros(3, 3)

    path = averaged(source, tmp_path / "ema.safetensors", change)
    target = tmp_path / "erased.safetensors"
    note = export_checkpoint(path, target, [make_eraser(path)])
    assert "They are left out" in note
    after, metadata = contents(target)
    before = load_file(path)
    assert after.keys() == {name for name in before if not name.startswith("model_ema.")}
    assert json.loads(metadata[KEY])["ema_weights"] == "left out"


def test_a_controlnet_in_a_checkpoint_is_no_average(source, tmp_path):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [each for each in tensors if each.startswith("model_ema.")]:
            tensors["control_model" + name.removeprefix("model_ema")] = tensors.pop(name)

    path = averaged(source, tmp_path / "control.safetensors", change)
    target = tmp_path / "erased.safetensors"
    assert export_checkpoint(path, target, [make_eraser(path)]) == ""
    before, after = load_file(path), load_file(target)
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("control_model"))
    assert before.keys() == after.keys()


def test_what_is_not_true_of_the_new_file_is_dropped(source, tmp_path):
    untrue = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash", "workflow", "prompt")
    kept = {"modelspec.title": "small", "format": "pt", "license": "free"}
    save_file(load_file(source), source, metadata=dict.fromkeys(untrue, "x") | kept)
    export_checkpoint(source, tmp_path / "e.safetensors", [make_eraser(source)])
    metadata = SafetensorsFile.open(tmp_path / "e.safetensors").metadata
    assert metadata.keys() == {*kept, KEY}
    assert kept.items() <= metadata.items()


def test_an_eraser_of_a_patched_model_is_refused_on_the_bare_file(source, tmp_path):
    eraser = make_eraser(source)
    made = eraser.provenance
    patched = replace(eraser, provenance=replace(made, model=replace(made.model, patched=True)))
    path = tmp_path / "patched.safetensors"
    save_eraser(patched, path)  # it is still known after it was saved
    target = tmp_path / "e.safetensors"
    with pytest.raises(ModelFileError, match=r"with a LoRA, a merge .* \(any_source\)"):
        export_checkpoint(source, target, [load_eraser(path)])
    assert not target.exists()
    merged = combine([patched, eraser], "in sequence")
    with pytest.raises(ModelFileError, match="PURE Save LoRA"):
        Source.open(source, [merged])
    export_checkpoint(source, target, [patched], any_source=True)
    assert target.exists()


def test_without_prompts_nothing_of_them_is_in_the_files(source, make_activations, tmp_path):
    secret = "a very secret word"
    eraser = make_eraser(source)
    made = replace(
        eraser.provenance,
        forget=AnchorSet.phrased([secret], ["{}", f"{secret} of {{}}"]),
        retain=AnchorSet.written([[f"{secret} too"]]),
        settings={"alpha": 0.5, "anchor": f"{secret}, a dog"},
    )
    eraser = Eraser(eraser.layers, made)
    first, second, saved = (tmp_path / f"{name}.safetensors" for name in ("1", "2", "eraser"))
    export_checkpoint(source, first, [eraser])  # a source whose own record names them
    assert secret.encode() in first.read_bytes()
    again = replace(eraser, provenance=replace(made, model=make_eraser(first).provenance.model))
    export_checkpoint(first, second, [again], prompts=False)
    export_diffusers(first, tmp_path / "folder", [again], prompts=False)
    save_eraser(eraser, saved, prompts=False)
    folder = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    for path in (second, folder, saved):
        assert secret.encode() not in path.read_bytes()
    records = read_history(SafetensorsFile.open(second).metadata)
    assert [each["method"] for each in records] == ["random", "random"]
    assert all(each["fingerprint"] == eraser.fingerprint for each in records)
    loaded = load_eraser(saved)
    assert loaded.fingerprint == eraser.fingerprint
    assert (len(loaded.provenance.forget), len(loaded.provenance.concepts)) == (2, 1)


@pytest.mark.parametrize("method", ["pure", "ridge"])
def test_files_without_prompts_can_be_fitted_with_and_joined(make_activations, tmp_path, method):
    retain = make_activations(prompts=6, seed=9)
    save_activations(retain, tmp_path / "retain.safetensors", prompts=False)
    hidden = load_activations(tmp_path / "retain.safetensors")
    assert b"prompt 9" not in (tmp_path / "retain.safetensors").read_bytes()
    fitted = [fit(method, make_activations(seed=seed), retain) for seed in (1, 2)]
    assert fit(method, make_activations(seed=1), hidden).fingerprint == fitted[0].fingerprint
    loaded = []
    for number, each in enumerate(fitted):
        save_eraser(each, path := tmp_path / f"{number}.safetensors", prompts=False)
        loaded.append(load_eraser(path))
    joint = combine(fitted, "joint", retain)
    for erasers in (loaded, [fitted[0], loaded[1]]):
        other = combine(erasers, "joint", hidden)
        for name, layer in joint.layers.items():
            assert torch.allclose(other.layers[name].P, layer.P, atol=1e-5)
        assert len(other.provenance.concepts) == 2


@pytest.mark.parametrize("method", ["pure", "ridge", "mosaic"])
def test_settings_that_a_method_does_not_know_are_no_key_error(make_activations, method):
    retain = make_activations(prompts=6, seed=9, cells=2)
    fitted = [fit(method, make_activations(seed=seed, cells=2), retain) for seed in (1, 2)]
    name = next(iter(fitted[0].provenance.settings))
    kept = {key: value for key, value in fitted[0].provenance.settings.items() if key != name}
    for settings, message in (
        (kept, f"settings are not those of the method {method}. {name}: missing"),
        ({**kept, name: -1e9}, "settings are not those of the method"),
        ({**kept, name: "much"}, "settings are not those of the method"),
    ):
        broken = [
            replace(each, provenance=replace(each.provenance, settings=settings)) for each in fitted
        ]
        with pytest.raises(EraserError, match=message):
            combine(broken, "joint", retain)


def with_metadata(path: Path, **changes: str) -> Path:
    tensors, metadata = contents(path)
    save_file(tensors, path, metadata={**metadata, **changes})
    return path


def test_a_trajectory_out_of_its_range_is_refused(make_activations, tmp_path):
    activations = make_activations()
    path = tmp_path / "a.safetensors"
    save_activations(activations, path)
    assert activations.trajectory.latents * activations.trajectory.run_steps == 6
    trajectory = activations.trajectory._asdict() | {"latents": -2, "run_steps": -3}
    with pytest.raises(ActivationFileError, match="latents: expected 1 or more, got -2"):
        load_activations(with_metadata(path, trajectory=json.dumps(trajectory)))


@pytest.mark.parametrize("entry", ["settings", "forget", "trajectory", "model", "contribution"])
@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 50_000, '{"a": true}', "3", "null x"])
def test_metadata_of_another_form_is_refused(source, tmp_path, entry, value):
    path = tmp_path / "eraser.safetensors"
    save_eraser(make_eraser(source), path)
    with pytest.raises(EraserFileError, match="is not a valid eraser"):
        load_eraser(with_metadata(path, **{entry: value}))


def test_the_model_of_a_file_is_still_found(source):
    assert set(model_in(source).widths().values()) == {64, 128}
