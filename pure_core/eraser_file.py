"""The eraser's file format: two thin factors per layer, and where they came from.

A safetensors file with `<layer>.proj_left` (d, r), `<layer>.proj_right` (r, d) and, where they are
known, `<layer>.rows` (m, d) in float32: see `LayerEraser`. Its metadata holds the format, the
architecture (layer -> d), the side, the provenance, lists and settings as JSON, and which layers
have the tensors of another one. There are no model weights in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from .eraser import SIDES, Eraser, LayerEraser, Provenance, Side
from .errors import EraserError, EraserFileError
from .tensor_file import (
    Kind,
    decoded,
    load_tensors,
    require_entries,
    require_tensors,
    save_tensors,
)

FORMAT = "pure-eraser"

KIND = Kind("an eraser", FORMAT, "3", ("1", "2", "3"), EraserFileError)
"""Version 1 had no rows, version 2 no side and no shared layers."""

JSON: dict[str, tuple[type, type | tuple[type, ...]]] = {
    "forget": (list, str),
    "retain": (list, str),
    "settings": (dict, (float, int, str)),
    "source_sketch": (dict, (float, int)),
    "concepts": (list, int),
    "capture": (dict, (float, int, str)),
    "contribution": (dict, (float, int)),
}
"""Metadata entries that are JSON, with what they hold; the others are plain text."""

NEWER = ("concepts", "capture", "contribution")
"""What files of version 1 do not say."""

_LEFT, _RIGHT, _ROWS = ".proj_left", ".proj_right", ".rows"


def save_eraser(eraser: Eraser, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write an eraser to a `.safetensors` file, complete or not at all.

    Raises:
        EraserFileError: the name does not end in .safetensors, the file exists and `overwrite`
            is off, the eraser holds NaN or infinity, or the folder cannot be written to.
    """
    tensors = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, layer in eraser.to("cpu", torch.float32).layers.items():
        if first.setdefault(id(layer), name) != name:
            shared[name] = first[id(layer)]
            continue
        tensors[name + _LEFT] = layer.proj_left
        tensors[name + _RIGHT] = layer.proj_right
        if layer.rows is not None:
            tensors[name + _ROWS] = layer.rows
    metadata = {
        "architecture": eraser.widths,
        "side": eraser.side,
        "shared": shared,
        **asdict(eraser.provenance),
    }
    save_tensors(KIND, path, tensors, metadata, overwrite)


def load_eraser(path: str | os.PathLike[str]) -> Eraser:
    """Read an eraser, float32 on the CPU.

    Raises:
        EraserFileError: the file is missing, not safetensors, damaged, not an eraser, or of a
            version this plugin does not know.
    """
    tensors, metadata = load_tensors(KIND, path)
    try:
        provenance, widths = _from_metadata(metadata)
        side, shared = _form(metadata)
        return Eraser(_to_layers(tensors, widths, side, shared), provenance)
    except EraserError as error:
        raise EraserFileError(f"'{path}' is not a valid eraser: {error}") from error


def _from_metadata(metadata: Mapping[str, str]) -> tuple[Provenance, dict[str, int]]:
    """The provenance, and layer -> d. EraserError names the entry that is not as expected."""
    newer = NEWER if metadata["format_version"] == "1" else ()
    names = [field.name for field in fields(Provenance) if field.name not in newer]
    require_entries([*names, "architecture"], metadata, EraserError)
    values: dict[str, Any] = {
        name: decoded(name, *JSON[name], metadata, EraserError) if name in JSON else metadata[name]
        for name in names
    }
    values |= {name: tuple(each) for name, each in values.items() if isinstance(each, list)}
    return Provenance(**values), decoded("architecture", dict, int, metadata, EraserError)


def _form(metadata: Mapping[str, str]) -> tuple[Side, dict[str, str]]:
    """The side, and layer -> the layer whose tensors it shares."""
    if metadata["format_version"] in {"1", "2"}:
        return "activations", {}
    require_entries(["side", "shared"], metadata, EraserError)
    for side in SIDES:
        if metadata["side"] == side:
            return side, decoded("shared", dict, str, metadata, EraserError)
    raise EraserError(f"side: expected one of {', '.join(SIDES)}, got {metadata['side']!r}.")


def _to_layers(
    tensors: Mapping[str, Tensor],
    widths: Mapping[str, int],
    side: Side,
    shared: Mapping[str, str],
) -> dict[str, LayerEraser]:
    """The layers, with every name, type and shape as the metadata's architecture promises."""
    with_rows = any(key.endswith(_ROWS) for key in tensors)
    parts = (_LEFT, _RIGHT, _ROWS) if with_rows else (_LEFT, _RIGHT)
    own = [name for name in widths if name not in shared]
    unknown = [name for pair in shared.items() for name in pair if name not in widths]
    if unknown or not set(shared.values()) <= set(own):
        raise EraserError("shared: names layers that are not there, or that share others' tensors.")
    require_tensors(tensors, {name + part for name in own for part in parts}, len(own), EraserError)
    layers = {}
    for name in own:
        left, right, *rows = (tensors[name + part] for part in parts)
        layers[name] = LayerEraser(left, right, rows[0] if rows else None, side)
    layers = {name: layers[shared.get(name, name)] for name in widths}
    for name, width in widths.items():
        if layers[name].width != width:
            raise EraserError(f"layer {name}: expected width {width}, got {layers[name].width}.")
    return layers
