"""Transformers in files: sites found in every spelling, and what LoRAs of them are called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pure_core.eraser import Eraser, LayerEraser
from pure_core.errors import ModelFileError
from pure_core.export.lora import COMFYUI, DIFFUSERS, lora_tensors
from pure_core.families import ROLES, FileRows
from pure_core.families.transformer_file import (
    PREFIXES,
    FileNames,
    Layout,
    Pattern,
    Spelling,
    rows_in,
    transformer_in_file,
)
from tests.core.test_eraser import provenance

D, TEXT = 8, 6
OWN = Spelling((Pattern("*blocks.#.cross", "kv", "kv", "halves"),))
LIBRARY = Spelling(
    (Pattern("*stack.#.attn2", "to_k", "to_v", parts=("to_k", "to_v")),), mark="embed.weight"
)
NAMES = FileNames("made up", (OWN, LIBRARY), LIBRARY)


def fused(prefix: str = "") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"x.weight": (3,)}
    for block in ("blocks.0", "blocks.11", "more_blocks.0"):
        shapes[f"{prefix}{block}.cross.kv.weight"] = (2 * D, TEXT)
        shapes[f"{prefix}{block}.cross.kv.bias"] = (2 * D,)
    return shapes


def apart() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (3,)}
    for name in ("to_k", "to_v"):
        shapes[f"stack.0.attn2.{name}.weight"] = (D, TEXT)
    return shapes


@pytest.mark.parametrize("prefix", PREFIXES)
def test_fused_rows_are_found_below_every_prefix(prefix):
    model = transformer_in_file(NAMES, fused(prefix))
    assert model is not None and (model.family, model.prefix) == ("made up", prefix)
    assert model.sites == ("blocks.0.cross", "blocks.11.cross", "more_blocks.0.cross")
    assert model.widths() == dict.fromkeys(model.sites, D)
    assert model.widths(text=True) == dict.fromkeys(model.sites, TEXT)
    name = f"{prefix}blocks.11.cross.kv.weight"
    assert model.weight("blocks.11.cross", "keys") == FileRows(name, 0, D, 2 * D)
    assert model.weight("blocks.11.cross", "values") == FileRows(name, D, D, 2 * D)
    bias = f"{prefix}blocks.11.cross.kv.bias"
    assert model.bias("blocks.11.cross", "values") == FileRows(bias, D, D, 2 * D)


def test_another_spelling_gives_the_same_names():
    model = transformer_in_file(NAMES, apart())
    assert model is not None and model.sites == ("blocks.0.cross",)
    place = model.weight("blocks.0.cross", "values")
    assert place == FileRows("stack.0.attn2.to_v.weight", 0, D, D)
    assert model.bias("blocks.0.cross", "values") is None
    assert model.lora_rows("blocks.0.cross", "values") == FileRows(
        "lora_unet_blocks_0_cross_kv", D, D, 2 * D
    )
    library = FileRows("transformer.stack.0.attn2.to_v", 0, D, D)
    assert model.library_lora_rows("blocks.0.cross", "values") == library
    without_mark = {name: shape for name, shape in apart().items() if name != "embed.weight"}
    assert transformer_in_file(NAMES, without_mark) is None


def test_damaged_files_are_refused():
    shapes = fused()
    odd = transformer_in_file(NAMES, shapes | {"blocks.0.cross.kv.weight": (2 * D + 1, TEXT)})
    with pytest.raises(ModelFileError, match="cannot hold keys and values"):
        odd.weight("blocks.0.cross", "values")
    flat = transformer_in_file(NAMES, shapes | {"blocks.0.cross.kv.weight": (2 * D,)})
    with pytest.raises(ModelFileError, match="expected 2 axes"):
        flat.widths()
    shapes = apart()
    del shapes["stack.0.attn2.to_k.weight"]
    with pytest.raises(ModelFileError, match=r"has no tensor 'stack.0.attn2.to_k.weight'"):
        transformer_in_file(NAMES, shapes).weight("blocks.0.cross", "keys")
    with pytest.raises(ModelFileError, match="not written as diffusers folders"):
        transformer_in_file(NAMES, fused()).diffusers_config()
    nowhere = transformer_in_file(NAMES._replace(library=None), fused())
    with pytest.raises(ModelFileError, match="diffusers library loads no LoRA"):
        nowhere.library_lora_rows("blocks.0.cross", "values")


@pytest.mark.parametrize(
    "layout, total, keys, values",
    [
        ("apart", 8, (0, 8), (0, 8)),
        ("halves", 16, (0, 8), (8, 8)),
        ("thirds", 24, (8, 8), (16, 8)),
        ("first", 56, (8, 8), (16, 8)),
        ("groups", 16, (8, 4), (12, 4)),
    ],
)
def test_where_keys_and_values_lie(
    layout: Layout, total: int, keys: tuple[int, int], values: tuple[int, int]
):
    assert rows_in(layout, "keys", total, 8) == keys
    assert rows_in(layout, "values", total, 8) == values


ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
TWO_KINDS = FileNames(
    "two kinds",
    (
        Spelling(
            (
                Pattern("double.#.txt", "qkv", "qkv", "thirds"),
                Pattern("single.#", "linear1", "linear1", "first"),
            ),
            entry="txt_in",
        ),
        Spelling(
            (
                Pattern("joint.#.attn", "add_k", "add_v", parts=("add_q", "add_k", "add_v")),
                Pattern(
                    "one.#",
                    "attn.to_k",
                    "attn.to_v",
                    parts=("attn.to_q", "attn.to_k", "attn.to_v", "mlp"),
                ),
            ),
            entry="embed",
        ),
    ),
    shared=(1,),
)


def test_two_kinds_of_sites_in_two_spellings():
    """Parts that are apart in a file lie where ComfyUI's fused map has them."""
    fused_file = {
        "txt_in.weight": (D, TEXT),
        "double.0.txt.qkv.weight": (3 * D, D),
        "double.0.txt.qkv.bias": (3 * D,),
        "single.3.linear1.weight": (7 * D, D),
    }
    parts = {
        "embed.weight": (D, TEXT),
        **{f"joint.0.attn.{name}.weight": (D, D) for name in ("add_q", "add_k", "add_v")},
        **{f"one.3.attn.to_{name}.weight": (D, D) for name in "qkv"},
        "one.3.mlp.weight": (4 * D, D),
    }
    one, other = (transformer_in_file(TWO_KINDS, shapes) for shapes in (fused_file, parts))
    assert one is not None and other is not None
    for model in (one, other):
        assert model.sites == ("double.0.txt", "single.3") and model.entry == "txt_in"
        assert model.widths() == {"double.0.txt": D, "single.3": D}
        assert [model.shares(site) for site in model.sites] == [False, True]
        assert not model.shares("txt_in")
        assert model.lora_rows("double.0.txt", "values") == FileRows(
            "lora_unet_double_0_txt_qkv", 2 * D, D, 3 * D
        )
        assert model.lora_rows("single.3", "values") == FileRows(
            "lora_unet_single_3_linear1", 2 * D, D, 7 * D
        )
    assert one.weight("single.3", "keys") == FileRows("single.3.linear1.weight", D, D, 7 * D)
    assert one.bias("double.0.txt", "values") == FileRows("double.0.txt.qkv.bias", 2 * D, D, 3 * D)
    assert other.weight("single.3", "keys") == FileRows("one.3.attn.to_k.weight", 0, D, D)
    small = transformer_in_file(TWO_KINDS, fused_file | {"single.3.linear1.weight": (2 * D, D)})
    with pytest.raises(ModelFileError, match="cannot hold queries, keys and values of its width"):
        small.weight("single.3", "values")


class Weights:
    """Random weights and biases."""

    def __init__(self, model) -> None:
        random = torch.Generator().manual_seed(0)
        places = [(site, role) for site in model.sites for role in ROLES]
        self.weights = {each: torch.randn(D, TEXT, generator=random) for each in places}
        self.biases = {each: torch.randn(D, generator=random) for each in places}

    def weight(self, site: str, role: str) -> Tensor:
        return self.weights[site, role]

    def bias(self, site: str, role: str) -> Tensor:
        return self.biases[site, role]


@pytest.mark.parametrize("form", [COMFYUI, DIFFUSERS])
def test_a_lora_changes_weight_and_bias_as_the_eraser_does(form):
    model = transformer_in_file(NAMES, fused())
    weights = Weights(model)
    random = torch.Generator().manual_seed(1)
    layers = {
        site: LayerEraser(
            torch.randn(2, 4, 3, generator=random), torch.randn(2, 3, 4, generator=random)
        )
        for site in model.sites
    }
    eraser = Eraser(layers, provenance("keys and values")).applied(0.5)
    tensors = lora_tensors(model, [eraser], weights, form=form)
    for (site, role), weight in weights.weights.items():
        layer = layers[site].scaled(0.5)
        if form == COMFYUI:
            name, start = f"lora_unet_{site}.kv".replace(".", "_"), D * (role == "values")
            up, down = (tensors[f"{name}.lora_{part}.weight"] for part in ("up", "down"))
            change = (up @ down * tensors[f"{name}.alpha"] / len(down))[start : start + D]
            bias = tensors[f"{name}.diff_b"][start : start + D]
        else:
            block = site.replace("blocks", "stack").replace("cross", "attn2")
            name = f"transformer.{block}.to_{role[0]}"
            change = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
            bias = tensors[f"{name}.lora_B.bias"]
        assert torch.allclose(weight + change, layer.P @ weight, atol=1e-5)
        before = weights.biases[site, role]
        assert torch.allclose(before + bias, layer.P @ before, atol=1e-5)
