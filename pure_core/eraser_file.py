"""The eraser's file format: two thin factors per layer, and where they came from.

A safetensors file with `<layer>.proj_left` (d, r), `<layer>.proj_right` (r, d) and, where they are
known, `<layer>.rows` (m, d) in float32: see `LayerEraser`. Its metadata holds the format, the
architecture and the provenance, lists and settings as JSON. There are no model weights in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from .eraser import Eraser, LayerEraser, Provenance
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

KIND = Kind("an eraser", FORMAT, "2", ("1", "2"), EraserFileError)
"""Version 1 had no rows."""

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
    for name, layer in eraser.to("cpu", torch.float32).layers.items():
        tensors[name + _LEFT] = layer.proj_left
        tensors[name + _RIGHT] = layer.proj_right
        if layer.rows is not None:
            tensors[name + _ROWS] = layer.rows
    metadata = {"architecture": eraser.widths, **asdict(eraser.provenance)}
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
        return Eraser(_to_layers(tensors, widths), provenance)
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


def _to_layers(tensors: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, LayerEraser]:
    """The layers, with every name, type and shape as the metadata's architecture promises."""
    with_rows = any(key.endswith(_ROWS) for key in tensors)
    sides = (_LEFT, _RIGHT, _ROWS) if with_rows else (_LEFT, _RIGHT)
    expected = {name + side for name in widths for side in sides}
    require_tensors(tensors, expected, len(widths), EraserError)
    layers = {}
    for name, width in widths.items():
        layers[name] = LayerEraser(*(tensors[name + side] for side in sides))
        if layers[name].width != width:
            raise EraserError(f"layer {name}: expected width {width}, got {layers[name].width}.")
    return layers
