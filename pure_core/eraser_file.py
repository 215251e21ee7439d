"""The eraser's file format: two thin factors per layer, and where they came from.

A safetensors file with `<layer>.proj_left` (d, r), `<layer>.proj_right` (r, d) and, where they are
known, `<layer>.rows` (m, d) in float32: see `LayerEraser`. Its metadata holds the format, the
architecture and the provenance, lists and settings as JSON.
There are no model weights in it, and nothing in it is ever run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .atomic import atomic_file
from .eraser import Eraser, LayerEraser, Provenance
from .errors import EraserError, EraserFileError

FORMAT = "pure-eraser"
FORMAT_VERSION = "2"

READABLE = ("1", FORMAT_VERSION)
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
    """Write an eraser to a `.safetensors` file.

    The file appears complete or not at all: it is written under a temporary name in the same
    folder and renamed.

    Raises:
        EraserFileError: the name does not end in .safetensors, the file exists and `overwrite`
            is off, the eraser holds NaN or infinity, or the folder cannot be written to.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise EraserFileError(f"Expected a file name ending in .safetensors, got '{path.name}'.")
    if path.exists() and not overwrite:
        raise EraserFileError(f"'{path}' exists already: choose another name.")
    tensors = {}
    for name, layer in eraser.to("cpu", torch.float32).layers.items():
        tensors[name + _LEFT] = layer.proj_left.contiguous()
        tensors[name + _RIGHT] = layer.proj_right.contiguous()
        if layer.rows is not None:
            tensors[name + _ROWS] = layer.rows.contiguous()
    _require_finite(path, tensors)
    content = save(tensors, metadata=_to_metadata(eraser))
    try:
        with atomic_file(path, overwrite) as file:
            file.write(content)
    except OSError as error:
        raise EraserFileError(f"'{path}' cannot be written: {error}.") from error


def load_eraser(path: str | os.PathLike[str]) -> Eraser:
    """Read an eraser, float32 on the CPU.

    Raises:
        EraserFileError: the file is missing, not safetensors, damaged, not an eraser, or of a
            version this plugin does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise EraserFileError(f"Expected an eraser file at '{path}', found none.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            _require_format(path, metadata, file.keys())
            # Copies, so that the file is not held open by a memory map.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EraserFileError(
            f"Expected a safetensors file, but '{path}' ({path.stat().st_size} bytes) cannot be "
            f"read as one: {error}. It is damaged, incompletely downloaded or of another kind: "
            "fetch or save it again."
        ) from error
    try:
        provenance, widths = _from_metadata(metadata)
        return Eraser(_to_layers(tensors, widths), provenance)
    except EraserError as error:
        raise EraserFileError(f"'{path}' is not a valid eraser: {error}") from error


def _require_format(path: Path, metadata: Mapping[str, str], keys: list[str]) -> None:
    """Look at the header alone: a foreign file may be many gigabytes."""
    if metadata.get("format") != FORMAT:
        raise EraserFileError(
            f"Expected an eraser (format '{FORMAT}' in the metadata), but '{path}' has format "
            f"'{metadata.get('format', 'none')}' and {len(keys)} tensors such as "
            f"{sorted(keys)[:2]}. Checkpoints and LoRAs belong in their own folders."
        )
    version = metadata.get("format_version", "none")
    if version not in READABLE:
        raise EraserFileError(
            f"Expected eraser format version {' or '.join(READABLE)}, but '{path}' has version "
            f"{version}. Update the plugin, or save the eraser again with this one."
        )


def _to_metadata(eraser: Eraser) -> dict[str, str]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": json.dumps(eraser.widths),
        **{
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in asdict(eraser.provenance).items()
        },
    }


def _from_metadata(metadata: Mapping[str, str]) -> tuple[Provenance, dict[str, int]]:
    """The provenance, and layer -> d. EraserError names the entry that is not as expected."""
    newer = NEWER if metadata["format_version"] == "1" else ()
    names = [field.name for field in fields(Provenance) if field.name not in newer]
    missing = [name for name in (*names, "architecture") if name not in metadata]
    if missing:
        raise EraserError(f"expected the metadata entries {missing}, which are missing.")
    values: dict[str, Any] = {
        name: _decoded(name, *JSON[name], metadata) if name in JSON else metadata[name]
        for name in names
    }
    values |= {name: tuple(each) for name, each in values.items() if isinstance(each, list)}
    widths: dict[str, int] = _decoded("architecture", dict, int, metadata)
    return Provenance(**values), widths


def _decoded(
    name: str, container: type, item: type | tuple[type, ...], metadata: Mapping[str, str]
) -> Any:
    """A JSON list or object whose items all have the expected type."""
    try:
        value = json.loads(metadata[name])
    except ValueError:
        value = None
    items = value.values() if isinstance(value, dict) else value
    if not isinstance(value, container) or not all(isinstance(each, item) for each in items):
        raise EraserError(
            f"expected a JSON {'list' if container is list else 'object'} in the metadata entry "
            f"'{name}', got {metadata[name][:80]!r}."
        )
    return value


def _to_layers(tensors: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, LayerEraser]:
    """The layers, with every name, type and shape as the metadata's architecture promises."""
    with_rows = any(key.endswith(_ROWS) for key in tensors)
    sides = (_LEFT, _RIGHT, _ROWS) if with_rows else (_LEFT, _RIGHT)
    expected = {name + side for name in widths for side in sides}
    if tensors.keys() != expected:
        odd = sorted(tensors.keys() ^ expected)
        raise EraserError(
            f"expected the {len(expected)} tensors of its {len(widths)} layers, got "
            f"{len(tensors)}; missing or foreign: {odd[:4]}."
        )
    layers = {}
    for name, width in widths.items():
        parts = [tensors[name + side] for side in sides]
        types = {part.dtype for part in parts}
        if types != {torch.float32}:
            raise EraserError(
                f"layer {name}: expected float32, got {' and '.join(map(str, types))}."
            )
        for side, tensor in zip(sides, parts, strict=True):
            if not bool(torch.isfinite(tensor).all()):
                raise EraserError(f"{name}{side} holds NaN or infinity.")
        layers[name] = LayerEraser(*parts)
        if layers[name].width != width:
            raise EraserError(f"layer {name}: expected width {width}, got {layers[name].width}.")
    return layers


def _require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise EraserFileError(f"Not written: '{path}' would hold NaN or infinity in {key}.")
