"""U-Nets of the Stable Diffusion line: cross-attention layers beside the image's own attention.

A site is a `CrossAttention` named attn2 in a transformer block, or one whose text has another width
than its queries. Keys and values are the whole of `to_k` and `to_v`, without bias, and h is the
input of `to_out`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from ..errors import ModelFileError
from .site import FileRows, LatentGeometry, Listener, Masks, Role, Rows, Site, listen_to_outputs
from .unet_names import CLIP_L_WIDTH, XL_WIDTH, UNetNames

PROJECTIONS: dict[Role, str] = {"keys": "to_k", "values": "to_v"}
QUERIES, OUTPUT, SECOND = "to_q", "to_out", "attn2"

CHECKPOINT_PREFIX = "model.diffusion_model."

_BLOCK = re.compile(
    r"(?:input_blocks|middle_block|output_blocks|down_blocks|mid_block|up_blocks)\."
)

SMALL_SIZE, SIZE, VELOCITY_SIZE, XL_SIZE = 64, 512, 768, 1024
"""Pixels. SD 2.1 with v prediction was made for 768, the small model of this project, with two
levels, for 64."""


class UNet:
    """See `Family`."""

    name = "unet"
    models = "U-Nets such as Stable Diffusion 1.x, 2.x and SDXL"
    blocks: Mapping[str, str] = {
        "input": "input_block",
        "middle": "middle_block",
        "output": "output_block",
    }
    keys_are_linear = True
    masks: Masks = "each"
    stream = None
    other_texts = ()

    def has(self, net: nn.Module) -> bool:
        return hasattr(net, "input_blocks") and bool(self.sites(net))

    def sites(self, net: nn.Module) -> list[Site]:
        return [
            _site(name, module)
            for name, module in net.named_modules()
            if _is_attention(module)
            and _reads_text(name, module.to_k.in_features, module.to_q.in_features)
        ]

    def listen(
        self, net: nn.Module, sites: Sequence[Site], listener: Listener, options: dict[str, Any]
    ) -> Callable[[], None]:
        return listen_to_outputs(net, sites, listener)

    def latent(self, net: nn.Module) -> LatentGeometry:
        return LatentGeometry(channels=4, pixels_per_cell=8)

    def usual_size(self, net: nn.Module, predicts_velocity: bool) -> int:
        text = self.sites(net)[0].text_width
        if text >= XL_WIDTH:
            return XL_SIZE
        blocks: Any = net.input_blocks
        levels = 1 + sum(hasattr(block[0], "op") for block in blocks)
        if levels == 2:
            return SMALL_SIZE
        return VELOCITY_SIZE if predicts_velocity and text > CLIP_L_WIDTH else SIZE

    def text_width(self, net: nn.Module) -> int:
        return self.sites(net)[0].text_width

    def edits_text(self, net: nn.Module) -> bool:
        return True

    def before_entry(self, net: nn.Module) -> None:
        return None

    def shares(self, site: str) -> bool:
        return False

    def guides_itself(self, net: nn.Module) -> bool:
        return False

    def text_entry(self, net: nn.Module) -> None:
        return None

    def short_name(self, site: str) -> str:
        """'input_blocks.4.1.transformer_blocks.0.attn2' as 'input 4.1 / 0'."""
        parts = re.fullmatch(r"(\w+?)_blocks?\.(.+)\.transformer_blocks\.(\d+)\.attn2", site)
        name = f"{parts[1]} {parts[2]} / {parts[3]}" if parts else site
        return name if len(name) <= 18 else f"{name[:7]}..{name[-9:]}"

    def in_file(self, shapes: Mapping[str, tuple[int, ...]]) -> UNetFile | None:
        prefixes = {found[0] for key in shapes if (found := _split(key))}
        prefix = (
            CHECKPOINT_PREFIX
            if CHECKPOINT_PREFIX in prefixes
            else min(prefixes, key=len, default="")
        )
        inside = {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}
        model = UNetFile(prefix, inside)
        return model if prefixes and model.in_this_file else None


FAMILY = UNet()


def _is_attention(module: nn.Module) -> bool:
    parts = (QUERIES, *PROJECTIONS.values(), OUTPUT, "heads", "dim_head")
    return all(hasattr(module, part) for part in parts)


def _reads_text(name: str, text_width: int, image_width: int) -> bool:
    """Cross-attention is the second of a block, or takes a context of another width."""
    return name.endswith(SECOND) or text_width != image_width


def _site(name: str, module: Any) -> Site:
    width = module.heads * module.dim_head

    def rows(role: Role) -> Rows:
        linear = getattr(module, PROJECTIONS[role])
        biased = getattr(linear, "bias", None) is not None
        return Rows(f"{name}.{PROJECTIONS[role]}", 0, width, width, biased)

    return Site(
        name=name,
        part="cross",
        out=f"{name}.{OUTPUT}",
        keys=rows("keys"),
        values=rows("values"),
        heads=module.heads,
        value_heads=module.heads,
        head_dim=module.dim_head,
        text_width=module.to_k.in_features,
    )


def _split(key: str) -> tuple[str, str] | None:
    """A value projection's tensor name as a prefix and a site; None for any other name."""
    site, end, rest = key.rpartition(f".{PROJECTIONS['values']}.weight")
    if not end or rest or site.rpartition(".")[2] not in ("attn1", SECOND):
        return None
    start = _BLOCK.search(site)
    return (site[: start.start()], site[start.start() :]) if start else None


@dataclass(frozen=True)
class UNetFile:
    """A U-Net in a file, in the original naming scheme or in that of diffusers."""

    prefix: str
    """For example 'model.diffusion_model.'."""

    shapes: dict[str, tuple[int, ...]]
    """Tensor name without the prefix -> shape."""

    family = UNet.name
    entry = None

    @cached_property
    def in_this_file(self) -> dict[str, str]:
        """Site, named as ComfyUI's modules are -> its name in this file."""
        here = [site for site in self._attentions() if self._reads_text(site)]
        if not self.names.is_diffusers:
            return {site: site for site in here}
        return {self.names.original_site(site): site for site in here}

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.in_this_file)

    @cached_property
    def names(self) -> UNetNames:
        """Its names in both schemes."""
        widths = [self._text_width(site) for site in self._attentions() if _second(site)]
        return UNetNames(self.shapes, widths[0] if widths else 0)

    def _attentions(self) -> Iterable[str]:
        return (found[1] for key in self.shapes if (found := _split(key)) and not found[0])

    def _shape(self, site: str, projection: str) -> tuple[int, int] | None:
        """Rows and columns; None if there is no such weight."""
        name = f"{site}.{projection}.weight"
        if name not in self.shapes:
            return None
        if len(shape := self.shapes[name]) != 2:
            raise ModelFileError(
                f"The file's tensor '{self.prefix}{name}' is not a weight of attention: expected "
                f"two axes, got the shape {shape}."
            )
        return (shape[0], shape[1])

    def _text_width(self, site: str) -> int:
        return (self._shape(site, PROJECTIONS["keys"]) or (0, 0))[1]

    def _reads_text(self, site: str) -> bool:
        keys = self._text_width(site)
        _, queries = self._shape(site, QUERIES) or (0, keys)
        return _reads_text(site, keys, queries)

    def shares(self, site: str) -> bool:
        return False

    def widths(self, text: bool = False) -> dict[str, int]:
        axis = 1 if text else 0
        here = self.in_this_file.items()
        shapes = {site: self._shape(own, PROJECTIONS["values"]) or (0, 0) for site, own in here}
        return {site: shape[axis] for site, shape in shapes.items()}

    def weight(self, site: str, role: Role) -> FileRows:
        own = f"{self.in_this_file[site]}.{PROJECTIONS[role]}.weight"
        if own not in self.shapes:
            raise ModelFileError(
                f"The file has no tensor '{self.prefix}{own}', which was to be edited."
            )
        rows = self.shapes[own][0]
        return FileRows(self.prefix + own, 0, rows, rows)

    def bias(self, site: str, role: Role) -> FileRows | None:
        own = f"{self.in_this_file[site]}.{PROJECTIONS[role]}.bias"
        rows, *others = self.shapes.get(own, (0,)) or (0,)
        if others:
            raise ModelFileError(
                f"The file's tensor '{self.prefix}{own}' is not a bias: expected one axis, got the "
                f"shape {self.shapes[own]}."
            )
        return FileRows(self.prefix + own, 0, rows, rows) if rows else None

    def lora_rows(self, site: str, role: Role) -> FileRows:
        """The module path of the diffusers library with underscores, which every LoRA loader reads.

        Kohya's trainer names SD 1.x and 2.x like this, and SDXL by other paths.
        """
        name = f"lora_unet_{self._library_path(site).replace('.', '_')}_{PROJECTIONS[role]}"
        return replace(self.weight(site, role), tensor=name)

    def library_lora_rows(self, site: str, role: Role) -> FileRows:
        name = f"unet.{self._library_path(site)}.{PROJECTIONS[role]}"
        return replace(self.weight(site, role), tensor=name)

    def _library_path(self, site: str) -> str:
        own = self.in_this_file[site]
        return own if self.names.is_diffusers else self.names.diffusers_site(site)

    def diffusers_name(self, key: str) -> str:
        return self.names.diffusers_name(key)

    def diffusers_config(self) -> dict[str, Any]:
        if not all(map(_second, self.sites)):
            raise ModelFileError(
                "The first attention of this U-Net's blocks reads text too, which its diffusers "
                "config cannot say for single levels. Export a checkpoint instead."
            )
        return self.names.diffusers_config()


def _second(site: str) -> bool:
    return site.endswith(SECOND)
