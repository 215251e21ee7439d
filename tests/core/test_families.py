"""Where models read text, and how their files name it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import pure_core.families
from pure_core.errors import ModelFileError
from pure_core.families import FAMILIES, ROLES, Rows, family_named, family_of, model_in_file
from tests.core.models import model_in

SITE = "middle_block.1.transformer_blocks.0.attn2"
CHECKPOINT, EMA = "model.diffusion_model.", "model_ema.diffusion_model."


class Attention(nn.Module):
    """Laid out as ComfyUI's `CrossAttention` is."""

    def __init__(self, width: int, heads: int, text: int, bias: bool = False) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, width // heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(text, width, bias=bias)
        self.to_v = nn.Linear(text, width, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        seen = torch.softmax(self.to_q(image) @ self.to_k(text).mT, dim=-1)
        return self.to_out(seen @ self.to_v(text))


def unet_of(attentions: dict[str, Attention]) -> nn.Module:
    net = nn.Module()
    net.input_blocks = nn.ModuleList()
    for path, attention in attentions.items():
        *parents, last = path.split(".")
        here = net
        for name in parents:
            if name not in dict(here.named_children()):
                here.add_module(name, nn.Module())
            here = here.get_submodule(name)
        here.add_module(last, attention)
    return net


@pytest.fixture
def net() -> nn.Module:
    block = "middle_block.1.transformer_blocks.0"
    return unet_of(
        {
            f"{block}.attn1": Attention(16, 2, 16),
            f"{block}.attn2": Attention(16, 2, 24, bias=True),
            "output_blocks.0.1.transformer_blocks.0.attn2": Attention(8, 2, 8),
            "output_blocks.1.1.transformer_blocks.0.attn1": Attention(8, 2, 24),
        }
    )


def test_families_are_found_by_being_there():
    folder = Path(pure_core.families.__file__).parent
    files = [path for path in folder.glob("*.py") if "\nFAMILY = " in path.read_text("utf-8")]
    assert len(FAMILIES) == len(files) and "unet" in FAMILIES
    for name, family in FAMILIES.items():
        assert family.name == name and family.models and family.blocks
        assert family_named(name) is family
    assert family_named("none of these") is None


def test_a_unet_reads_text_where_the_second_attention_is_or_another_width(net):
    family = family_of(net)
    assert family is FAMILIES["unet"]
    sites = {site.name: site for site in family.sites(net)}
    assert list(sites) == [
        SITE,
        "output_blocks.0.1.transformer_blocks.0.attn2",
        "output_blocks.1.1.transformer_blocks.0.attn1",
    ]
    site = sites[SITE]
    assert (site.part, site.out) == ("cross", f"{SITE}.to_out")
    assert (site.width, site.heads, site.head_dim, site.text_width) == (16, 2, 8, 24)
    assert site.rows("keys") == Rows(f"{SITE}.to_k", 0, 16, 16, bias=True)
    assert site.rows("values") == Rows(f"{SITE}.to_v", 0, 16, 16, bias=True)
    assert site.rows("keys").whole and not list(sites.values())[1].values.bias
    weight = net.get_submodule(f"{SITE}.to_v").weight
    assert site.values.of(weight).data_ptr() == weight.data_ptr()


def test_other_models_are_of_no_family(net):
    assert family_of(nn.Linear(3, 3)) is None
    assert family_of(unet_of({"middle_block.1.attn1": Attention(16, 2, 16)})) is None
    del net.input_blocks
    assert family_of(net) is None


def test_listening_hears_h_and_ends(net):
    family = FAMILIES["unet"]
    site, attention = family.sites(net)[0], net.get_submodule(SITE)
    image, text = torch.randn(2, 5, 16), torch.randn(2, 3, 24)
    before = attention(image, text)
    heard: list[Tensor] = []

    class Ear:
        def rows(self, site: str, total: int) -> slice | None:
            assert (site, total) == (SITE, 2)
            return slice(1, 2) if len(heard) < 1 else None

        def hear(self, site: str, h: Tensor) -> None:
            heard.append(h)

    stop = family.listen(net, [site], Ear(), {})
    assert torch.equal(attention(image, text), before)
    attention(image, text)  # nothing is wanted
    stop()
    attention(image, text)
    (h,) = heard
    assert h.shape == (1, 5, site.width) and torch.equal(attention.to_out(h), before[1:])


def shapes_of(path: Path, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(each.shape) for name, each in load_file(path).items()}


@pytest.mark.parametrize("prefix", ["", CHECKPOINT, "unet."])
def test_a_file_s_sites_have_the_names_of_comfy_s_modules(source, prefix):
    model = model_in_file(shapes_of(source, prefix), "file")
    assert (model.family, model.prefix) == ("unet", prefix)
    assert set(model.sites) == {
        f"{block}.1.transformer_blocks.0.attn2"
        for block in (
            *("input_blocks.1", "input_blocks.3", "middle_block"),
            *("output_blocks.0", "output_blocks.1", "output_blocks.2", "output_blocks.3"),
        )
    }
    assert model.widths()[SITE] == 128 and set(model.widths(text=True).values()) == {24}
    for role, projection in zip(ROLES, ("to_k", "to_v"), strict=True):
        place = model.weight(SITE, role)
        theirs = f"{prefix}mid_block.attentions.0.transformer_blocks.0.attn2.{projection}"
        assert place.tensor == f"{theirs}.weight" and place.whole
        assert (place.start, place.count) == (0, 128)
        name = f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_{projection}"
        assert model.lora_rows(SITE, role).tensor == name
        assert model.bias(SITE, role) is None


def test_biases_are_found(source):
    shapes = shapes_of(source)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.bias"
    model = model_in_file(shapes | {name: (128,)}, "file")
    assert model.bias(SITE, "values").tensor == name
    assert model.bias(SITE, "keys") is None


@pytest.mark.parametrize("copy", [EMA, "ema."])
def test_the_copy_for_training_is_not_taken_for_the_model(source, copy):
    ema = shapes_of(source, copy)
    both = {**ema, **shapes_of(source, CHECKPOINT)}
    assert model_in_file(both, "file").prefix == CHECKPOINT
    flat = {f"model_ema.{name.replace('.', '')}": each for name, each in ema.items()}
    model = model_in_file({**flat, **shapes_of(source, CHECKPOINT)}, "file")
    assert {model.weight(site, "keys").tensor[: len(CHECKPOINT)] for site in model.sites} == {
        CHECKPOINT
    }


def test_a_missing_key_projection_is_named(source):
    shapes = shapes_of(source)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    del shapes[name]
    with pytest.raises(ModelFileError, match=f"no tensor '{name}'"):
        model_in_file(shapes, "file").weight(SITE, "keys")


@pytest.mark.parametrize(
    "shapes", [{}, {"lora_unet_x.lora_up.weight": (4, 4)}, {"encoder.to_v.weight": (4, 4)}]
)
def test_files_without_a_model_are_refused_with_what_is_supported(shapes):
    with pytest.raises(ModelFileError, match=r"in 'file', found none .*Stable Diffusion"):
        model_in_file(shapes, "file")


def test_names_for_people_are_short(source):
    family = FAMILIES["unet"]
    assert family.short_name(SITE) == "middle 1 / 0"
    assert len({family.short_name(site) for site in model_in(source).sites}) == 7
    assert all(any(s.startswith(b) for b in family.blocks.values()) for s in model_in(source).sites)
