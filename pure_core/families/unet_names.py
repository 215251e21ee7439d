"""The two naming schemes of U-Nets, and what the diffusers library says of one in its config.

The original scheme (`input_blocks.1.1...`, in checkpoints under `model.diffusion_model.`) and that
of diffusers (`down_blocks.0.attentions.0...`) number the same blocks, so one table of block names
translates everything inside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import ModelFileError

_WHOLE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_BLOCK = re.compile(
    r"(?:(?:down_blocks|up_blocks)\.\d+\.(?:resnets|attentions|downsamplers|upsamplers)|"
    r"mid_block\.(?:resnets|attentions))\."
)
_RESAMPLE = {"op": "conv", "conv": "conv"}

TIME_IDS = 6
"""Numbers of SDXL's size conditioning, each embedded in `TIME_ID_WIDTH` channels."""

TIME_ID_WIDTH = 256
HEAD_WIDTH = 64
XL_WIDTH = 1280
"""Text of this width or more is SDXL's, base or refiner."""

SIZE, XL_SIZE = 64, 128
"""Latent cells of the usual picture; pipelines take their default from it."""

CLIP_L_WIDTH = 768
CLIP_L_HEADS = 8
"""Models that read CLIP-L alone (SD 1.x) have eight heads; all others heads of 64 channels."""


@dataclass(frozen=True)
class UNetNames:
    """The names of a U-Net's tensors, without what a file puts before them."""

    shapes: dict[str, tuple[int, ...]]
    """Tensor name -> shape."""

    context_width: int
    """Channels of the text."""

    @cached_property
    def blocks(self) -> dict[str, str]:
        """Block name in the original scheme -> in the diffusers scheme, in the file's scheme."""
        return dict(self._blocks())

    def _blocks(self) -> Iterable[tuple[str, str]]:
        level = resnet = 0
        for index in self._indices("input_blocks")[1:]:
            block = f"input_blocks.{index}"
            if self._has(f"{block}.0.op"):
                yield f"{block}.0", f"down_blocks.{level}.downsamplers.0"
                level, resnet = level + 1, 0
                continue
            yield f"{block}.0", f"down_blocks.{level}.resnets.{resnet}"
            if self._has(f"{block}.1"):
                yield f"{block}.1", f"down_blocks.{level}.attentions.{resnet}"
            resnet += 1
        if self._has("middle_block.0"):
            yield "middle_block.0", "mid_block.resnets.0"
        if self._has("middle_block.1"):
            yield "middle_block.1", "mid_block.attentions.0"
        if self._has("middle_block.2"):
            yield "middle_block.2", "mid_block.resnets.1"
        level = resnet = 0
        for index in self._indices("output_blocks"):
            block = f"output_blocks.{index}"
            yield f"{block}.0", f"up_blocks.{level}.resnets.{resnet}"
            for part in (f"{block}.1", f"{block}.2"):
                if self._has(f"{part}.conv"):
                    yield part, f"up_blocks.{level}.upsamplers.0"
                    level, resnet = level + 1, -1
                elif self._has(part):
                    yield part, f"up_blocks.{level}.attentions.{resnet}"
            resnet += 1

    def _indices(self, stem: str) -> list[int]:
        """The numbers that follow `stem` in the names."""
        return _numbers(self._inside, stem)

    def _has(self, block: str) -> bool:
        """Whether there are tensors in it."""
        return block in self._inside

    @cached_property
    def _inside(self) -> dict[str, set[str]]:
        return _children(self.shapes)

    @property
    def is_diffusers(self) -> bool:
        """Whether the file already has diffusers' names."""
        return "conv_in.weight" in self.shapes

    def original_site(self, site: str) -> str:
        """A site of a file with diffusers' names, as the original scheme calls it.

        Raises:
            ModelFileError: it lies in a block that U-Nets do not have.
        """
        block, rest = _split(site)
        if block not in self._original:
            raise _unknown_block(site)
        return f"{self._original[block]}.{rest}"

    @cached_property
    def _original(self) -> dict[str, str]:
        """Attention block in a file with diffusers' names -> in the original scheme."""
        return {theirs: ours for ours, theirs in self._blocks_of_diffusers()}

    def diffusers_site(self, site: str) -> str:
        """A site of the original scheme, as diffusers calls its module.

        Raises:
            ModelFileError: it lies in a block that U-Nets do not have.
        """
        block, rest = _split(site)
        if block not in self.blocks:
            raise _unknown_block(site)
        return f"{self.blocks[block]}.{rest}"

    def _blocks_of_diffusers(self) -> Iterable[tuple[str, str]]:
        """Attention blocks: original name, diffusers name, counted from diffusers' names."""
        yield "middle_block.1", "mid_block.attentions.0"
        for stem, theirs in (("input_blocks", "down_blocks"), ("output_blocks", "up_blocks")):
            down = theirs == "down_blocks"
            index = 1 if down else 0  # the first input block is conv_in
            for level in self._indices(theirs):
                block = f"{theirs}.{level}"
                resnet = 0
                while self._has(f"{block}.resnets.{resnet}"):
                    yield f"{stem}.{index}.1", f"{block}.attentions.{resnet}"
                    index, resnet = index + 1, resnet + 1
                if down:
                    index += 1  # the downsampler is a block of its own

    def diffusers_name(self, key: str) -> str:
        """A tensor's name in diffusers' state dict; `key` is without the prefix.

        Raises:
            ModelFileError: a tensor that diffusers' U-Net has no place for.
        """
        stem, _, kind = key.rpartition(".")
        if self.is_diffusers and (stem in self._whole.values() or _BLOCK.match(key)):
            return key
        if stem in self._whole:
            return f"{self._whole[stem]}.{kind}"
        depth = 2 if key.startswith("middle_block.") else 3
        parts = stem.split(".", depth)
        block, inner = ".".join(parts[:depth]), ".".join(parts[depth:])
        if block in self.blocks:
            return f"{self.blocks[block]}.{_RESNET.get(inner, _RESAMPLE.get(inner, inner))}.{kind}"
        raise ModelFileError(
            f"'{key}' has no place in diffusers' UNet2DConditionModel: this kind of U-Net cannot "
            "be written in that form. Export a checkpoint instead."
        )

    @cached_property
    def _whole(self) -> dict[str, str]:
        """Modules outside the blocks: original name -> diffusers name."""
        labels = "add_embedding" if self._is_xl else "class_embedding"
        return {
            **_WHOLE,
            "label_emb.0.0": f"{labels}.linear_1",
            "label_emb.0.2": f"{labels}.linear_2",
        }

    @property
    def _is_xl(self) -> bool:
        """Whether picture size and pooled text come in beside the text, as in SDXL."""
        return self.context_width >= XL_WIDTH

    def diffusers_config(self) -> dict[str, Any]:
        """The `config.json` with which diffusers builds this U-Net.

        The same facts that ComfyUI's own detection reads from the tensors, in diffusers' words;
        the number of heads follows ComfyUI's rule, for no tensor tells it.

        Raises:
            ModelFileError: a U-Net that diffusers builds in another way than it is.
        """
        names = {self.diffusers_name(key): shape for key, shape in self.shapes.items()}
        inside = _children(names)
        down, up_blocks = _numbers(inside, "down_blocks"), _numbers(inside, "up_blocks")
        levels = len(down)
        first = [f"down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
        for each in ("conv_in.weight", "conv_out.weight", *first):
            _require_tensor(names, each)
        if not down or not down == up_blocks == list(range(levels)):
            raise ModelFileError(
                f"The U-Net is not whole: it has the down blocks {_listed(down)} and the up blocks "
                f"{_listed(up_blocks)}, expected as many of both, counted from 0. Take the whole "
                "model, or export a checkpoint instead."
            )
        channels = [names[each][0] for each in first]
        depths = [_depths(inside, f"down_blocks.{i}") for i in range(levels)]
        up = [_depths(inside, f"up_blocks.{i}") for i in range(levels)]
        linear = any(key.endswith("proj_in.weight") and len(s) == 2 for key, s in names.items())
        config: dict[str, Any] = {
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.30.0",
            "in_channels": names["conv_in.weight"][1],
            "out_channels": names["conv_out.weight"][0],
            "sample_size": XL_SIZE if self._is_xl else SIZE,
            "block_out_channels": channels,
            "layers_per_block": [
                len(_numbers(inside, f"down_blocks.{i}.resnets")) for i in range(levels)
            ],
            "down_block_types": [
                "CrossAttnDownBlock2D" if any(depth) else "DownBlock2D" for depth in depths
            ],
            "up_block_types": ["CrossAttnUpBlock2D" if any(depth) else "UpBlock2D" for depth in up],
            "mid_block_type": self._mid_block_type(names),
            "cross_attention_dim": self.context_width,
            "attention_head_dim": (
                CLIP_L_HEADS
                if self.context_width == CLIP_L_WIDTH
                else [each // HEAD_WIDTH for each in channels]
            ),
            "transformer_layers_per_block": [
                *(_depth(depth) for depth in depths[:-1]),
                # the last entry is also the middle block's
                _depth(depths[-1] if any(depths[-1]) else _depths(inside, "mid_block")),
            ],
            "use_linear_projection": linear,
        }
        if [depth[: len(depth) - 1] for depth in reversed(up)] != depths:
            config["reverse_transformer_layers_per_block"] = [_depth(depth) for depth in up]
        for labels in ("add_embedding", "class_embedding"):
            if f"{labels}.linear_1.weight" in names:
                _require_tensor(names, f"{labels}.linear_1.weight")
        if "add_embedding.linear_1.weight" in names:
            config |= {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": TIME_ID_WIDTH,
                "projection_class_embeddings_input_dim": names["add_embedding.linear_1.weight"][1],
            }
        if "class_embedding.linear_1.weight" in names:
            config |= {
                "class_embed_type": "projection",
                "projection_class_embeddings_input_dim": names["class_embedding.linear_1.weight"][
                    1
                ],
            }
        return config

    @staticmethod
    def _mid_block_type(names: Mapping[str, tuple[int, ...]]) -> str | None:
        if any(key.startswith("mid_block.attentions.") for key in names):
            return "UNetMidBlock2DCrossAttn"
        has_resnet = any(key.startswith("mid_block.") for key in names)
        return "UNetMidBlock2D" if has_resnet else None


def _split(site: str) -> tuple[str, str]:
    """A site's name as its block and the path inside: 'input_blocks.1.1', 'transformer_...'."""
    block, found, rest = site.partition(".transformer_blocks.")
    return block, f"transformer_blocks.{rest}" if found else rest


def _children(names: Iterable[str]) -> dict[str, set[str]]:
    """Beginning of a name, up to five parts -> what comes next in the names."""
    found: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".", 6)[:6]
        for depth in range(1, len(parts)):
            found.setdefault(".".join(parts[:depth]), set()).add(parts[depth])
    return found


def _numbers(inside: Mapping[str, set[str]], stem: str) -> list[int]:
    """Which numbers follow `stem`."""
    return sorted({int(each) for each in inside.get(stem, ()) if _is_number(each)})


def _is_number(text: str) -> bool:
    """Whether it is the number of a block: up to three digits, as the schemes write it."""
    return len(text) <= 3 and text.isascii() and text.isdigit()


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "(none)"


def _require_tensor(names: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Raise ModelFileError unless the U-Net has the tensor, as a matrix or a convolution."""
    if name not in names:
        raise ModelFileError(
            f"The U-Net is not whole: it has no {name}. Take the whole model, or export a "
            "checkpoint instead."
        )
    if len(names[name]) < 2:
        raise ModelFileError(f"{name}: expected two axes or more, got the shape {names[name]}.")


def _depths(inside: Mapping[str, set[str]], block: str) -> list[int]:
    """Transformer blocks behind each residual block of a diffusers block."""
    parts = "attentions" if block == "mid_block" else "resnets"
    return [
        len(_numbers(inside, f"{block}.attentions.{i}.transformer_blocks"))
        for i in _numbers(inside, f"{block}.{parts}")
    ]


def _depth(depths: list[int]) -> int | list[int]:
    """One number where all are the same; 1 where there are none, which diffusers ignores."""
    if len(set(depths)) > 1:
        return depths
    return max(depths, default=1) or 1


def _unknown_block(site: str) -> ModelFileError:
    return ModelFileError(
        f"'{site}' lies in a block that Stable Diffusion's U-Nets do not have. Video and other "
        "models that add blocks cannot be exported: patch them in the graph instead."
    )
