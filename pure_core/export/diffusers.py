"""An erased U-Net as the diffusers library keeps it: a folder with a config and one state dict."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..atomic import atomic_folder
from ..errors import ModelFileError
from ..safetensors_file import Piece, Progress, no_progress
from .provenance import Step, export_metadata
from .source import Source, require_free

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"


def export_diffusers(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    steps: Sequence[Step],
    any_source: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Write the erased U-Net of a checkpoint as a folder for `UNet2DConditionModel`.

    The tensors are those of `export_checkpoint` under diffusers' names, in the source's types.

    Raises:
        As `export_checkpoint` does; ModelFileError also for a U-Net that diffusers cannot build.
    """
    target = Path(target)
    require_free(target)
    opened = Source.open(source, steps, any_source)
    file, keys = opened.file, opened.keys
    edits = opened.edits(steps)
    pieces = [
        Piece(keys.diffusers_name(name), entry, edits.get(entry.name))
        for entry in file.entries.values()
        if (name := entry.name.removeprefix(keys.prefix)) in keys.shapes
        and entry.name.startswith(keys.prefix)
    ]
    metadata = {"format": "pt"} | export_metadata(
        steps, file.path.name, file.fingerprint(), file.metadata
    )
    try:
        with atomic_folder(target) as folder:
            config = json.dumps(keys.diffusers_config(), indent=2)
            (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
            file.write(folder / WEIGHTS, pieces, metadata, progress)
    except OSError as error:
        raise ModelFileError(
            f"'{target}' was not written: {error}. The source is as it was and nothing is left of "
            "the new folder."
        ) from error
