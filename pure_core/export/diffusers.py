"""An erased U-Net as the diffusers library keeps it: a folder with a config and one state dict."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..eraser import Eraser
from ..errors import ModelFileError
from ..files.atomic import atomic_folder
from ..files.safetensors_file import Piece
from ..progress import Progress, no_progress
from .provenance import export_metadata
from .source import Source, writing

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"


def export_diffusers(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    erasers: Sequence[Eraser],
    any_source: bool = False,
    progress: Progress = no_progress,
    prompts: bool = True,
) -> str:
    """Write the erased U-Net of a checkpoint as a folder for `UNet2DConditionModel`.

    The tensors are those of `export_checkpoint` under diffusers' names, in the source's types,
    without averaged weights. Returns an empty text: there is nothing to say of the rest.

    Raises:
        As `export_checkpoint` does; ModelFileError also for a U-Net that diffusers cannot build.
    """
    target = Path(target)
    with writing(target):
        opened = Source.open(source, erasers, any_source)
        file, model = opened.file, opened.model
        edits = opened.edits(erasers)
        pieces = [
            Piece(model.diffusers_name(name.removeprefix(model.prefix)), entry, edits.get(name))
            for name, entry in file.entries.items()
            if name.startswith(model.prefix)
        ]
        config = json.dumps(model.diffusers_config(), indent=2)
        _require_different([piece.name for piece in pieces])
        made = export_metadata(erasers, file.path.name, file.fingerprint(), file.metadata, prompts)
        with atomic_folder(target) as folder:
            (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
            file.write(folder / WEIGHTS, pieces, {"format": "pt", **made}, progress)
        return ""


def _require_different(names: Sequence[str]) -> None:
    """Raise ModelFileError if two tensors would have one name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ModelFileError(
            f"Two tensors of the source would both be called '{twice[0]}' in diffusers: the file "
            "mixes two naming schemes. Export a checkpoint instead."
        )
