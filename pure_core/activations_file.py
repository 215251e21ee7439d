"""The file format of activations: the rows of every layer, and how they were captured.

A safetensors file with `<layer>.rows` (n, d) in float32. Its metadata holds the format, the
prompts, how many of them belong to each concept, and the capture settings, as JSON. So a model's
retain set is captured once and used for every concept. There are no model weights in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from .activations import Activations, CaptureSettings
from .errors import ActivationError, ActivationFileError
from .tensor_file import (
    Kind,
    decoded,
    load_tensors,
    require_entries,
    require_tensors,
    save_tensors,
)

KIND = Kind("activations", "pure-activations", "2", ("1", "2"), ActivationFileError)
"""Version 1 knew no cells: every row was averaged over the whole picture."""

_ROWS = ".rows"

TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("steps", "run_steps", "latents", "seed", "width", "height", "cells"), int),
    "cfg": (float, int),
    **dict.fromkeys(("sampler_name", "scheduler", "source_name", "source_fingerprint"), str),
    "source_sketch": dict,
}
"""What each of the capture settings is."""


def save_activations(
    activations: Activations, path: str | os.PathLike[str], overwrite: bool = False
) -> None:
    """Write activations to a `.safetensors` file, complete or not at all.

    Raises:
        ActivationFileError: the name does not end in .safetensors, the file exists and
            `overwrite` is off, or the folder cannot be written to.
    """
    tensors = {name + _ROWS: rows for name, rows in activations.rows.items()}
    metadata = {
        "layers": list(activations.rows),
        "prompts": activations.prompts,
        "concepts": activations.groups,
        "settings": asdict(activations.settings),
    }
    save_tensors(KIND, path, tensors, metadata, overwrite)


def load_activations(path: str | os.PathLike[str]) -> Activations:
    """Read activations, float32 on the CPU.

    Raises:
        ActivationFileError: the file is missing, not safetensors, damaged, holds no activations,
            or is of a version this plugin does not know.
    """
    tensors, metadata = load_tensors(KIND, path)
    try:
        require_entries(("layers", "prompts", "concepts", "settings"), metadata, ActivationError)
        layers = decoded("layers", list, str, metadata, ActivationError)
        expected = {name + _ROWS for name in layers}
        require_tensors(tensors, expected, len(layers), ActivationError)
        return Activations(
            {name: tensors[name + _ROWS] for name in layers},
            tuple(decoded("prompts", list, str, metadata, ActivationError)),
            _settings(metadata),
            tuple(decoded("concepts", list, int, metadata, ActivationError)),
        )
    except ActivationError as error:
        raise ActivationFileError(f"'{path}' does not hold valid activations: {error}") from error


def _settings(metadata: Mapping[str, str]) -> CaptureSettings:
    """The capture settings. ActivationError names the one that is not as expected."""
    found: dict[str, Any] = decoded("settings", dict, object, metadata, ActivationError)
    if metadata["format_version"] == "1":
        found.setdefault("cells", 1)
    names = [field.name for field in fields(CaptureSettings)]
    wrong = [name for name in names if not isinstance(found.get(name), TYPES[name])]
    if wrong or found.keys() != set(names):
        odd = wrong or sorted(found.keys() ^ set(names))
        raise ActivationError(f"the capture settings {odd} are not as expected.")
    return CaptureSettings(**found)
