"""The file that an export starts from, checked against the erasers that are to be applied."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from ..eraser import LayerEraser, require_same_widths
from ..errors import EraserError, ModelFileError, PureError
from ..safetensors_file import SafetensorsFile
from ..sketch import SAME, difference, sketch
from .provenance import Step
from .unet import UNetKeys


@dataclass(frozen=True)
class Source:
    """A checkpoint or U-Net file."""

    file: SafetensorsFile
    keys: UNetKeys

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], steps: Sequence[Step], any_source: bool = False
    ) -> Source:
        """Read a file's header and check that the erasers belong to it.

        Args:
            any_source: Accept another model of the same architecture than the one an eraser was
                fitted on, for example a fine-tune.

        Raises:
            ModelFileError: not a safetensors file, damaged, without cross-attention, or another
                model than the erasers' while `any_source` is off.
            EraserError: no erasers, or one of another architecture.
        """
        if not steps:
            raise EraserError("Expected at least one eraser, got none.")
        file = SafetensorsFile.open(path)
        shapes = {name: entry.shape for name, entry in file.entries.items()}
        source = cls(file, UNetKeys.find(shapes, file.path.name))
        for step in steps:
            source._require_architecture(step)
            if not any_source:
                source._require_same_model(step)
        return source

    def _require_architecture(self, step: Step) -> None:
        try:
            require_same_widths(step.eraser.widths, self.keys.widths(step.eraser.side))
        except EraserError as error:
            raise EraserError(
                f"The eraser of {step.concept} was fitted on another "
                f"architecture than '{self.file.path.name}'. {error}"
            ) from error

    def _require_same_model(self, step: Step) -> None:
        made = step.eraser.provenance
        name = f"the eraser of {step.concept}"
        if made.source_sketch.keys() != step.eraser.layers.keys():
            raise ModelFileError(
                f"It cannot be told whether '{self.file.path.name}' is the model {name} was fitted "
                "on: the eraser comes from several models or does not say. If it is meant for "
                "this file, allow any source (any_source)."
            )
        apart = difference(made.source_sketch, self.sketches)
        if not apart <= SAME:  # NaN is not
            raise ModelFileError(
                f"'{self.file.path.name}' is not the model {name} was fitted on "
                f"({made.source_name}), or it has changed since: the weights differ by "
                f"{apart:.1%}. Fit the eraser on this file, loaded in its own precision; or allow "
                "any source (any_source), if it is a fine-tune that the eraser is meant for."
            )

    @cached_property
    def sketches(self) -> dict[str, float]:
        """Layer -> sketch of its value projection, read once for all erasers."""
        return {layer: sketch(self.weight(layer, "to_v")) for layer in self.keys.layers}

    def weight(self, layer: str, projection: str) -> Tensor:
        """W_K or W_V of a layer, (d, in), in the file's type."""
        return self.file.read(self.keys.weight(layer, projection))

    def edits(self, steps: Sequence[Step]) -> dict[str, Callable[[Tensor], Tensor]]:
        """Tensor name -> what is done to it: every eraser in order, in float32 or better."""
        chains: dict[str, list[tuple[LayerEraser, float]]] = {}
        for step in steps:
            for layer, eraser in step.eraser.layers.items():
                if step.strength == 0 or eraser.rank == 0:
                    continue
                for projection in step.projections:
                    key = self.keys.weight(layer, projection)
                    chains.setdefault(key, []).append((eraser, step.strength))
        return {key: partial(_edit, chain=chain) for key, chain in chains.items()}


def _edit(weight: Tensor, chain: Sequence[tuple[LayerEraser, float]]) -> Tensor:
    """Every edit in order, rounded by nobody in between."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    for eraser, strength in chain:
        wide = eraser.edit_weight(wide, strength)
    return wide


def require_suffix(target: Path) -> None:
    """Raise ModelFileError unless the name says what will be in the file."""
    if target.suffix != ".safetensors":
        raise ModelFileError(f"Expected a file name ending in .safetensors, got '{target.name}'.")


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """For a block that makes `target`: refuse a taken name, and say what could not be written.

    Raises:
        ModelFileError: for every OSError, naming the target.
    """
    try:
        if os.path.lexists(target):
            raise FileExistsError
        yield
    except PureError:
        raise
    except FileExistsError as error:
        raise ModelFileError(f"'{target}' exists already: choose another name.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(
            f"'{target}' was not written: {reason}. The source is as it was and nothing is left "
            "of the new file."
        ) from error
