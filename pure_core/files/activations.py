"""The file format of activations: the rows of every layer, and how they were captured.

A safetensors file with `<layer>.rows` (n, d) in float32, and `<layer>.means` where the rows are by
cells. Its metadata holds the format, the anchors, the trajectory and the model, as JSON. So a
model's retain set is captured once and used for every concept. There are no model weights in it.
"""

from __future__ import annotations

import os
from typing import Any

from ..activations import Activations
from ..anchors import AnchorSet
from ..errors import ActivationError, ActivationFileError, PureError
from ..hidden import hidden_anchors
from ..model_identity import ModelIdentity
from ..trajectory import Trajectory
from .tensors import (
    Kind,
    decoded,
    load_tensors,
    require_entries,
    require_tensors,
    save_tensors,
)

KIND = Kind("activations", "pure-activations", "2", ("1", "2"), ActivationFileError)
"""Version 1 did not record heads."""

_ROWS, _MEANS = ".rows", ".means"


def save_activations(
    activations: Activations,
    path: str | os.PathLike[str],
    overwrite: bool = False,
    prompts: bool = True,
) -> None:
    """Write activations to a `.safetensors` file, complete or not at all.

    Args:
        prompts: Off: no text of a person goes into the file. Prompts, names of concepts and
            phrasings become digests, by which it can still be loaded, fitted with and joined with
            other such files: see `hidden.py`.

    Raises:
        ActivationFileError: the name does not end in .safetensors, the file exists and
            `overwrite` is off, or the folder cannot be written to.
    """
    tensors = {name + _ROWS: rows for name, rows in activations.rows.items()}
    tensors |= {name + _MEANS: rows for name, rows in (activations.means or {}).items()}
    metadata = {
        "layers": list(activations.rows),
        "anchors": (
            activations.anchors if prompts else hidden_anchors(activations.anchors)
        ).record(),
        "trajectory": activations.trajectory.record(),
        "model": activations.model.record(),
        "heads": activations.heads,
    }
    save_tensors(KIND, path, tensors, metadata, overwrite)


def load_activations(path: str | os.PathLike[str]) -> Activations:
    """Read activations, float32 on the CPU.

    Raises:
        ActivationFileError: the file is missing, not safetensors, damaged, holds no activations,
            or is of a version this plugin does not know.
    """
    tensors, metadata = load_tensors(KIND, path)

    def record(name: str) -> dict[str, Any]:
        found: dict[str, Any] = decoded(name, dict, object, metadata, ActivationError)
        return found

    try:
        require_entries(("layers", "anchors", "trajectory", "model"), metadata, ActivationError)
        layers = decoded("layers", list, str, metadata, ActivationError)
        trajectory = Trajectory.from_record(record("trajectory"))
        heads = (
            decoded("heads", dict, int, metadata, ActivationError) if "heads" in metadata else {}
        )
        parts = (_ROWS,) if trajectory.cells == 1 else (_ROWS, _MEANS)
        expected = {name + part for name in layers for part in parts}
        require_tensors(tensors, expected, len(layers), ActivationError)
        return Activations(
            {name: tensors[name + _ROWS] for name in layers},
            AnchorSet.from_record(decoded("anchors", list, dict, metadata, ActivationError)),
            trajectory,
            ModelIdentity.from_record(record("model")),
            {name: tensors[name + _MEANS] for name in layers} if len(parts) > 1 else None,
            heads,
        )
    except (PureError, ValueError) as error:
        raise ActivationFileError(f"'{path}' does not hold valid activations: {error}") from error
