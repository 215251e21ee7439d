"""An erased checkpoint: the source file with other cross-attention keys and values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..eraser import Eraser
from ..files.safetensors_file import Piece
from ..progress import Progress, no_progress
from .provenance import export_metadata
from .source import Source, require_suffix, writing


def export_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    erasers: Sequence[Eraser],
    any_source: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Copy a checkpoint or U-Net file and multiply its cross-attention weights by the erasers.

    Each eraser is applied at its own strength.

    Every other tensor, the order, the types and the metadata stay byte for byte; the metadata
    gets one entry more, with what was done. The edited weights are computed in float32 or better
    and rounded once. Memory stays at a few weights, whatever the file's size.

    Raises:
        ModelFileError: the source is not such a file or another model than the erasers', the
            target exists, ends otherwise than in .safetensors or cannot be written.
        EraserError: no erasers, or one of another architecture.
    """
    target = Path(target)
    require_suffix(target)
    with writing(target):
        opened = Source.open(source, erasers, any_source)
        edits = opened.edits(erasers)
        file = opened.file
        made = export_metadata(erasers, file.path.name, file.fingerprint(), file.metadata)
        pieces = [Piece(name, entry, edits.get(name)) for name, entry in file.entries.items()]
        file.write(target, pieces, {**file.metadata, **made}, progress)
