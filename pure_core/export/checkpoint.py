"""An erased checkpoint: the source file with other cross-attention keys and values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..eraser import Eraser
from ..files.safetensors_file import Piece
from ..progress import Progress, no_progress
from .averages import averages
from .provenance import export_metadata
from .source import Source, require_suffix, said_of_shared, writing

UNTRUE = (
    "modelspec.hash_sha256",
    "sshs_model_hash",
    "sshs_legacy_hash",
    "workflow",
    "prompt",
)
"""Metadata of the source that would not be true of the new file: hashes, and how it was made."""


def export_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    erasers: Sequence[Eraser],
    any_source: bool = False,
    progress: Progress = no_progress,
    prompts: bool = True,
) -> str:
    """Copy a checkpoint or U-Net file and multiply its cross-attention weights by the erasers.

    Each eraser is applied at its own strength.

    Every other tensor, the order and the types stay byte for byte. So does the metadata, but for
    `UNTRUE` and one entry more with what was done. Averaged weights are erased, too, or left out:
    see `averages.py`. The edited weights are computed in float32 or better and rounded once. Memory
    stays at a few weights, whatever the file's size.

    Args:
        prompts: Whether the record names concepts and prompts.

    Returns:
        What became of averaged weights and of weights that text and picture share, for people;
        empty if there is nothing to say.

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
        averaged = averages(file.entries, opened.model.prefix, edits)
        edits |= {copy: edits[original] for copy, original in averaged.copies.items()}
        left_out = set(averaged.left_out)
        pieces = [
            Piece(name, entry, edits.get(name))
            for name, entry in file.entries.items()
            if name not in left_out
        ]
        made = export_metadata(
            erasers, file.path.name, file.fingerprint(), file.metadata, prompts, averaged.done
        )
        kept = {name: value for name, value in file.metadata.items() if name not in UNTRUE}
        file.write(target, pieces, kept | made, progress)
        notes = (averaged.note, said_of_shared(erasers, opened.model))
        return " ".join(note for note in notes if note)
