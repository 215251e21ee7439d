"""The eraser's file format: two thin factors per layer, and where they came from.

A safetensors file with `<layer>.proj_left` (d, r), `<layer>.proj_right` (r, d) and, where they are
known, `<layer>.rows` (m, d) in float32: see `LayerEraser`. Of an eraser by heads the factors are
(heads, d / heads, r) and (heads, r, d / heads), since version 2. Its metadata holds the format, the
architecture (layer -> d), the space, the strength, what is edited, the provenance as JSON, and
which layers have the tensors of another one. The anchors of a replacement are in it only where
there is one. There are no model weights in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..anchors import AnchorError, AnchorSet
from ..eraser import AT_SHARED, EDITS, SPACES, Eraser, LayerEraser, Provenance, Space
from ..errors import EraserError, EraserFileError, PureError
from ..hidden import hidden_anchors, hidden_settings
from ..model_identity import ModelIdentity
from ..trajectory import Trajectory
from .plain_json import parsed
from .tensors import (
    Kind,
    decoded,
    load_tensors,
    require_entries,
    require_tensors,
    save_tensors,
)

FORMAT = "pure-eraser"

KIND = Kind("an eraser", FORMAT, "2", ("1", "2"), EraserFileError)

ENTRIES = (
    "architecture",
    "shared",
    "space",
    "strength",
    "edit",
    "method",
    "settings",
    "forget",
    "retain",
    "edits",
    "model",
    "trajectory",
    "contribution",
    "created",
    "plugin_version",
)
"""Of the metadata. 'edits' is what the method edits, 'edit' what was chosen instead, or empty."""

AT_SHARED_ENTRY = "at_shared"
"""What to do where text and picture share projections, or empty; older files have no such entry."""

REPLACEMENT = "replacement"
"""The anchors of what the concepts become; there is no such entry where nothing was chosen."""

_LEFT, _RIGHT, _ROWS = ".proj_left", ".proj_right", ".rows"


def save_eraser(
    eraser: Eraser, path: str | os.PathLike[str], overwrite: bool = False, prompts: bool = True
) -> None:
    """Write an eraser to a `.safetensors` file, complete or not at all.

    Args:
        prompts: Off: no text of a person goes into the file. Prompts, names of concepts and
            phrasings become digests, by which it can still be loaded, fitted with and joined with
            other such files: see `hidden.py`.

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
    made = eraser.provenance
    forget, retain, settings = made.forget, made.retain, made.settings
    replacement = made.replacement
    if not prompts:
        forget, retain = hidden_anchors(forget), hidden_anchors(retain)
        replacement, settings = hidden_anchors(replacement), hidden_settings(settings)
    metadata = {
        "architecture": eraser.widths,
        "shared": shared,
        "space": eraser.space,
        "strength": eraser.strength,
        "edit": eraser.edit or "",
        AT_SHARED_ENTRY: eraser.at_shared or "",
        "method": made.method,
        "settings": settings,
        "forget": forget.record(),
        "retain": retain.record(),
        "edits": made.edit,
        "model": made.model.record(),
        "trajectory": made.trajectory and made.trajectory.record(),
        "contribution": made.contribution,
        "created": made.created,
        "plugin_version": made.plugin_version,
        **({REPLACEMENT: replacement.record()} if replacement else {}),
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
        require_entries(ENTRIES, metadata, EraserError)
        widths = decoded("architecture", dict, int, metadata, EraserError)
        shared = decoded("shared", dict, str, metadata, EraserError)
        layers = _to_layers(tensors, widths, _choice("space", SPACES, metadata), shared)
        edit = _choice("edit", EDITS, metadata) if metadata["edit"] else None
        shared = (
            _choice(AT_SHARED_ENTRY, AT_SHARED, metadata) if metadata.get(AT_SHARED_ENTRY) else None
        )
        return Eraser(layers, _provenance(metadata), _number("strength", metadata), edit, shared)
    except (PureError, ValueError) as error:
        raise EraserFileError(f"'{path}' is not a valid eraser: {error}") from error


def _provenance(metadata: Mapping[str, str]) -> Provenance:
    """Where it came from. An error names the entry that is not as expected."""
    trajectory = parsed(metadata["trajectory"])
    model = decoded("model", dict, object, metadata, EraserError)
    if trajectory is not None and not isinstance(trajectory, dict):
        raise EraserError(f"trajectory: expected an object, got {metadata['trajectory'][:80]!r}.")
    try:
        return Provenance(
            method=metadata["method"],
            settings=decoded("settings", dict, (float, int, str), metadata, EraserError),
            forget=_anchors("forget", metadata),
            retain=_anchors("retain", metadata),
            edit=_choice("edits", EDITS, metadata),
            model=ModelIdentity.from_record(model),
            created=metadata["created"],
            plugin_version=metadata["plugin_version"],
            trajectory=None if trajectory is None else Trajectory.from_record(trajectory),
            contribution=decoded("contribution", dict, (float, int), metadata, EraserError),
            replacement=(
                _anchors(REPLACEMENT, metadata) if REPLACEMENT in metadata else AnchorSet()
            ),
        )
    except ValueError as error:
        raise EraserError(f"its record is not as expected: {error}") from error


def _anchors(name: str, metadata: Mapping[str, str]) -> AnchorSet:
    try:
        return AnchorSet.from_record(decoded(name, list, dict, metadata, EraserError))
    except AnchorError as error:
        raise EraserError(f"{name}: {error}") from error


def _choice(name: str, options: tuple[Any, ...], metadata: Mapping[str, str]) -> Any:
    if metadata[name] not in options:
        raise EraserError(
            f"{name}: expected one of {', '.join(options)}, got {metadata[name][:80]!r}."
        )
    return metadata[name]


def _number(name: str, metadata: Mapping[str, str]) -> float:
    return float(metadata[name])


def _to_layers(
    tensors: Mapping[str, Tensor],
    widths: Mapping[str, int],
    space: Space,
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
        layers[name] = LayerEraser(left, right, rows[0] if rows else None, space)
    layers = {name: layers[shared.get(name, name)] for name in widths}
    for name, width in widths.items():
        if layers[name].width != width:
            raise EraserError(f"layer {name}: expected width {width}, got {layers[name].width}.")
    return layers
