"""What is exported is the source times the erasers, whatever the form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from pure_core.combine import combine
from pure_core.eraser import Eraser, LayerEraser
from pure_core.errors import EraserError, ModelFileError, PureError
from pure_core.export import (
    Source,
    export_checkpoint,
    export_diffusers,
    export_lora,
    lora_tensors,
    read_history,
)
from pure_core.export.provenance import export_metadata
from pure_core.families.unet import PROJECTIONS
from pure_core.files.safetensors_file import SafetensorsFile
from tests.core.models import expected, make_eraser


@pytest.fixture
def eraser(source) -> Eraser:
    return make_eraser(source)


def relative_error(actual: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((actual.double() - wanted).norm() / wanted.norm())


CASES = {
    "one": [(0, "keys and values", 1.0)],
    "values": [(0, "values", 0.5)],
    "two of different kind": [(0, "values", 1.0), (1, "keys and values", -0.3)],
    "text": [(0, "keys and values", 0.5, "text")],
    "two texts": [(0, "values", 1.0, "text"), (1, "keys and values", -0.3, "text")],
    "both spaces": [
        (0, "values", 1.0),
        (1, "keys and values", 0.7, "text"),
        (2, "values", -0.3),
        (3, "keys", 1.0, "text"),
    ],
}


def erasers_of(source: Path, case: str) -> list[Eraser]:
    return [
        make_eraser(source, seed, edit, *space).applied(strength)
        for seed, edit, strength, *space in CASES[case]
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_has_the_edited_weights_and_nothing_else_changed(source, tmp_path, case):
    erasers = erasers_of(source, case)
    target = tmp_path / "erased.safetensors"
    export_checkpoint(source, target, erasers)
    before, after, wanted = load_file(source), load_file(target), expected(source, erasers)
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    edited = {projection for eraser in erasers for projection in map(PROJECTIONS.get, eraser.roles)}
    assert changed == {key for key in wanted if key.split(".")[-2] in edited}
    for key in changed:
        assert relative_error(after[key], wanted[key]) < 1e-6


def test_half_precision_is_rounded_once(source, tmp_path):
    half = tmp_path / "half.safetensors"
    save_file({name: each.half() for name, each in load_file(source).items()}, half)
    erasers = [make_eraser(half, seed) for seed in range(4)]
    export_checkpoint(half, tmp_path / "erased.safetensors", erasers)
    after = load_file(tmp_path / "erased.safetensors")
    for key, weight in expected(half, erasers).items():
        once = weight.float().half()
        assert (after[key] != once).float().mean() < 0.01  # float32 arithmetic against float64
        assert relative_error(after[key], weight) < 2**-11


def test_strength_zero_copies_the_tensors(source, eraser, tmp_path):
    target = tmp_path / "erased.safetensors"
    export_checkpoint(source, target, [eraser.applied(0.0)])
    one, other = SafetensorsFile.open(source), SafetensorsFile.open(target)
    assert source.read_bytes()[one.data_start :] == target.read_bytes()[other.data_start :]


def test_the_file_says_how_it_was_made_and_a_second_erasure_adds_to_it(source, eraser, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    export_checkpoint(source, first, [eraser.applied(0.5, "values")])
    export_checkpoint(first, second, [make_eraser(first, 1)])
    metadata = SafetensorsFile.open(second).metadata
    assert (metadata["format"], metadata["title"]) == ("pt", "small")
    one, two = read_history(metadata)
    assert (one["method"], one["strength"], one["edit"]) == ("random", 0.5, "values")
    assert one["forget"] == eraser.provenance.forget.record()
    assert one["retain"] == [{"prompt": "a cat", "concept": "a cat", "phrasing": "{}"}]
    assert one["fingerprint"] == eraser.fingerprint and two["settings"] == {"seed": 1}
    record = json.loads(metadata["pure_erasure"])
    assert record["source"]["name"] == "first.safetensors"
    assert record["source"]["fingerprint"] == SafetensorsFile.open(first).fingerprint()


@pytest.mark.parametrize("case", CASES)
def test_a_lora_is_the_whole_change(source, tmp_path, case):
    erasers = erasers_of(source, case)
    opened = Source.open(source, erasers)
    tensors = lora_tensors(opened.model, erasers, opened)
    target = tmp_path / "lora.safetensors"
    export_lora(target, tensors, export_metadata(erasers, "m", "f"))
    lora, before = load_file(target), load_file(source)
    for key, wanted in expected(source, erasers).items():
        name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
        if f"{name}.alpha" not in lora:
            assert torch.equal(wanted, before[key].double())
            continue
        up, down = lora[f"{name}.lora_up.weight"], lora[f"{name}.lora_down.weight"]
        assert up.shape[1] == down.shape[0]
        change = up.double() @ down.double() * float(lora[f"{name}.alpha"]) / up.shape[1]
        assert relative_error(before[key].double() + change, wanted) < 1e-6


def test_a_float16_lora_is_balanced_and_rounds_the_change_alone(source, eraser):
    erasers = [eraser]
    opened = Source.open(source, erasers)
    lora = lora_tensors(opened.model, erasers, opened, torch.float16)
    before = load_file(source)
    for key, wanted in expected(source, erasers).items():
        name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
        up = lora[f"{name}.lora_up.weight"].double()
        down = lora[f"{name}.lora_down.weight"].double()
        assert lora[f"{name}.lora_up.weight"].dtype == torch.float16
        change = up @ down * float(lora[f"{name}.alpha"]) / up.shape[1]
        assert relative_error(change, wanted - before[key].double()) < 1e-3
        sizes = down.norm(dim=1) / up.norm(dim=0)
        assert sizes.min() > 0.4 and sizes.max() < 5


def test_a_lora_of_both_sides_does_not_depend_on_which_came_first(source):
    erasers = erasers_of(source, "both spaces")
    opened = Source.open(source, erasers)
    one = lora_tensors(opened.model, erasers, opened)
    turned = [erasers[index] for index in (1, 0, 3, 2)]  # each space in its own order
    other = lora_tensors(opened.model, turned, opened)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_widths_are_those_of_the_space(source, eraser):
    model = Source.open(source, [eraser]).model
    assert set(model.widths(text=True).values()) == {24}
    assert set(model.widths().values()) == {64, 128}
    assert model.widths().keys() == model.widths(text=True).keys() == eraser.layers.keys()


def test_a_text_eraser_of_another_encoder_is_refused(source, tmp_path):
    text = make_eraser(source, space="text")
    wider = Eraser(
        {
            name: LayerEraser(torch.zeros(25, 1), torch.zeros(1, 25), space="text")
            for name in text.layers
        },
        text.provenance,
    )
    target = tmp_path / "erased.safetensors"
    with pytest.raises(EraserError, match=r"architecture than 'unet.*width 25 against 24"):
        export_checkpoint(source, target, [wider])
    opened = Source.open(source, [text])
    with pytest.raises(EraserError, match="width 25 against 24"):
        lora_tensors(opened.model, [wider], opened)
    assert not target.exists()


def test_a_diffusers_folder_is_the_same_unet(unet, source, eraser, tmp_path):
    folder = tmp_path / "erased"
    export_diffusers(source, folder, [eraser])
    loaded = UNet2DConditionModel.from_pretrained(folder)
    before, wanted = unet.state_dict(), expected(source, [eraser])
    assert loaded.state_dict().keys() == before.keys()
    for name, weight in loaded.state_dict().items():
        assert torch.allclose(weight.double(), wanted.get(name, before[name].double()), atol=1e-6)
    for name in ("down_block_types", "up_block_types", "block_out_channels", "attention_head_dim"):
        assert list(loaded.config[name]) == list(unet.config[name])


def test_another_model_is_refused_unless_allowed(source, eraser, tmp_path):
    tensors = load_file(source)
    for name in tensors:
        if name.endswith("attn2.to_v.weight"):
            tensors[name] = tensors[name] + 0.05 * torch.randn_like(tensors[name])
    save_file(tensors, source)
    target = tmp_path / "erased.safetensors"
    with pytest.raises(ModelFileError, match=r"or it has changed since: the weights differ by"):
        export_checkpoint(source, target, [eraser])
    assert not target.exists()
    export_checkpoint(source, target, [eraser], any_source=True)
    assert target.exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_precision_is_the_same_model(source, eraser, tmp_path, dtype):
    other = tmp_path / "other.safetensors"
    save_file({name: each.to(dtype) for name, each in load_file(source).items()}, other)
    export_checkpoint(other, tmp_path / "erased.safetensors", [eraser])


def _no_attention(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: each for name, each in tensors.items() if "attn2" not in name}, path)


DAMAGE = {
    "no keys and values": (
        _no_attention,
        "Expected a model that reads text",
    ),
    "empty": (lambda path: path.write_bytes(b""), "it has 0 bytes and no header"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "its header promises"),
    "gone": (lambda path: path.unlink(), "found none"),
}


@pytest.mark.parametrize("export", [export_checkpoint, export_diffusers])
@pytest.mark.parametrize("case", DAMAGE)
def test_bad_sources_are_named_and_nothing_is_written(source, eraser, tmp_path, case, export):
    damage, message = DAMAGE[case]
    damage(source)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ModelFileError, match=message):
        export(source, tmp_path / "erased.safetensors", [eraser])
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("export", [export_checkpoint, export_diffusers])
def test_bad_targets_are_named_and_nothing_is_written(source, eraser, tmp_path, export):
    before, content = sorted(tmp_path.iterdir()), source.read_bytes()
    with pytest.raises(ModelFileError, match="exists already"):
        export(source, source, [eraser])
    with pytest.raises(ModelFileError, match="was not written"):
        export(source, tmp_path / "missing" / "erased.safetensors", [eraser])
    assert sorted(tmp_path.iterdir()) == before and source.read_bytes() == content


def test_bad_requests_are_named(source, eraser, tmp_path):
    target = tmp_path / "erased.safetensors"
    with pytest.raises(EraserError, match="at least one eraser"):
        export_checkpoint(source, target, [])
    with pytest.raises(ModelFileError, match=r"ending in \.safetensors"):
        export_checkpoint(source, tmp_path / "erased.ckpt", [eraser])
    with pytest.raises(EraserError, match="edit: expected one of"):
        eraser.applied(1.0, "everything")  # type: ignore[arg-type]
    few = Eraser(dict(list(eraser.layers.items())[:2]), eraser.provenance)
    with pytest.raises(EraserError, match="fitted on another architecture than 'unet"):
        export_checkpoint(source, target, [few])
    opened = Source.open(source, [eraser])
    with pytest.raises(EraserError, match="there is no LoRA"):
        lora_tensors(opened.model, [eraser.applied(0.0)], opened)
    assert not target.exists() and isinstance(EraserError(), PureError)


def test_a_file_that_appears_meanwhile_is_kept(source, eraser, tmp_path):
    target = tmp_path / "erased.safetensors"

    def somebody_else(done: int, total: int) -> None:
        target.write_text("precious")

    with pytest.raises(ModelFileError, match="exists already: choose another name"):
        export_checkpoint(source, target, [eraser], progress=somebody_else)
    assert target.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 2


def test_erasers_of_two_models_say_no_more_which_file_is_theirs(source, eraser, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({name: each * 1.1 for name, each in load_file(source).items()}, other)
    both = combine([eraser, make_eraser(other, 1)], "in sequence")
    with pytest.raises(ModelFileError, match="comes from several models or does not say"):
        export_checkpoint(other, tmp_path / "erased.safetensors", [both])
    export_checkpoint(other, tmp_path / "erased.safetensors", [both], any_source=True)


def test_nan_is_not_the_same_model(source, eraser, tmp_path):
    tensors = load_file(source)
    name = next(name for name in tensors if name.endswith("attn2.to_v.weight"))
    tensors[name][0, 0] = torch.nan
    save_file(tensors, source)
    with pytest.raises(ModelFileError, match="is not the model"):
        export_checkpoint(source, tmp_path / "erased.safetensors", [eraser.applied(1.0, "keys")])


def test_a_lora_leaves_no_layer_out(source, eraser):
    few = Eraser(dict(list(eraser.layers.items())[:2]), eraser.provenance)
    opened = Source.open(source, [eraser])
    with pytest.raises(EraserError, match="Different architectures"):
        lora_tensors(opened.model, [few], opened)


@pytest.mark.parametrize("key", ["encoder_hid_proj.weight", "time_embedding.cond_proj.weight"])
def test_a_unet_that_the_config_could_not_say_is_refused(source, eraser, tmp_path, key):
    save_file({**load_file(source), key: torch.zeros(4, 4)}, source)
    with pytest.raises(ModelFileError, match="has no place in diffusers' UNet2DConditionModel"):
        export_diffusers(source, tmp_path / "erased", [eraser])
    motion = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn2"
    more = {f"{motion}.{each}.weight": torch.zeros(64, 24) for each in ("to_k", "to_v")}
    save_file({**load_file(source), **more}, source)
    with pytest.raises(ModelFileError, match="Video and other models"):
        export_checkpoint(source, tmp_path / "erased.safetensors", [eraser])
