"""The file that an export starts from, checked against the erasers that are to be applied."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..eraser import Eraser, LayerEraser, require_same_widths
from ..errors import EraserError, ModelFileError, PureError
from ..families import FileRows, ModelFile, Role, model_in_file
from ..files.atomic import why_not_written
from ..files.safetensors_file import SafetensorsFile
from ..sketch import SAME, difference, sketch


@dataclass(frozen=True)
class Source:
    """A checkpoint or U-Net file."""

    file: SafetensorsFile
    model: ModelFile

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], erasers: Sequence[Eraser], any_source: bool = False
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
        if not erasers:
            raise EraserError("Expected at least one eraser, got none.")
        file = SafetensorsFile.open(path)
        shapes = {name: entry.shape for name, entry in file.entries.items()}
        source = cls(file, model_in_file(shapes, file.path.name))
        for eraser in erasers:
            source._require_architecture(eraser)
            if not any_source:
                source._require_same_model(eraser)
        return source

    def _require_architecture(self, eraser: Eraser) -> None:
        made = eraser.provenance
        if made.model.family != self.model.family:
            raise EraserError(
                f"The eraser of {made.title} was fitted on a model of another family "
                f"({made.model.name}) than '{self.file.path.name}'. Use an eraser made for this "
                "architecture, or fit one."
            )
        try:
            require_same_widths(eraser.widths, self.model.widths(text=eraser.space == "text"))
        except EraserError as error:
            raise EraserError(
                f"The eraser of {eraser.provenance.title} was fitted on another "
                f"architecture than '{self.file.path.name}'. {error}"
            ) from error

    def _require_same_model(self, eraser: Eraser) -> None:
        made = eraser.provenance
        name = f"the eraser of {made.title}"
        if made.model.sketch.keys() != set(self.model.sites):
            raise ModelFileError(
                f"Nothing shows whether '{self.file.path.name}' is the model {name} was fitted "
                "on: the eraser comes from several models or does not say. If it is meant for "
                "this file, allow any source (any_source)."
            )
        if made.model.patched:
            raise ModelFileError(
                f"The eraser of {made.title} was fitted on {made.model.name} with a LoRA, a merge "
                f"or an eraser in it, which '{self.file.path.name}' does not hold. Write what the "
                "graph makes instead: PURE Save LoRA on that model, or ComfyUI's own Save "
                "Checkpoint after PURE Patch. If the eraser is meant for this file as it is, allow "
                "any source (any_source)."
            )
        apart = difference(made.model.sketch, self.sketches)
        if not apart <= SAME:  # NaN is not
            raise ModelFileError(
                f"'{self.file.path.name}' is not the model {name} was fitted on "
                f"({made.model.name}), or it has changed since: the weights differ by "
                f"{apart:.1%}. Fit the eraser on this file, loaded in its own precision; or allow "
                "any source (any_source), if it is a fine-tune that the eraser is meant for."
            )

    @cached_property
    def sketches(self) -> dict[str, float]:
        """Site -> sketch of its value projection, read once for all erasers."""
        return {site: sketch(self.weight(site, "values")) for site in self.model.sites}

    def weight(self, site: str, role: Role) -> Tensor:
        """W_K or W_V of a site, (d, in), in the file's type."""
        return self._read(self.model.weight(site, role))

    def bias(self, site: str, role: Role) -> Tensor | None:
        """Their bias (d,), if they have one."""
        place = self.model.bias(site, role)
        return None if place is None else self._read(place)

    def _read(self, place: FileRows) -> Tensor:
        return self.file.read(place.tensor).narrow(0, place.start, place.count)

    def edits(self, erasers: Sequence[Eraser]) -> dict[str, Callable[[Tensor], Tensor]]:
        """Tensor name -> what is done to it: every eraser in order, in float32 or better."""
        chains: dict[str, list[_Edit]] = {}
        for eraser in erasers:
            for site, layer in eraser.layers.items():
                if eraser.strength == 0 or layer.rank == 0:
                    continue
                for role in roles_of(eraser, site, self.model):
                    places = (self.model.weight(site, role), self.model.bias(site, role))
                    for place in filter(None, places):
                        chain = chains.setdefault(place.tensor, [])
                        chain.append(_Edit(place, layer, eraser.strength))
        return {tensor: partial(_edited, chain=chain) for tensor, chain in chains.items()}


def roles_of(eraser: Eraser, site: str, model: ModelFile) -> tuple[Role, ...]:
    """What an eraser edits at a site; at the text's entry, which has no keys and values, all."""
    if site == model.entry:
        return ("values",)
    left = model.shares(site) and eraser.shared_in_files == "left alone"
    return () if left else eraser.roles


def said_of_shared(erasers: Sequence[Eraser], model: ModelFile) -> str:
    """What a file gets where text and picture share weights, if it is not what the graph does."""
    shared = sum(model.shares(site) for site in model.sites)
    other = any(each.shared != each.shared_in_files and each.strength for each in erasers)
    on_outputs = any(each.space == "activations" for each in erasers)
    if not (shared and other and on_outputs):
        return ""
    said = (
        f"In {shared} of {len(model.sites)} layers text and picture share their weights. While "
        "sampling the text alone is erased there, which no file can hold: in this one the weights "
        "are edited for both, so other parts of a picture may change more."
    )
    if model.entry is None:
        return said
    return f"{said} A file holds an eraser of PURE Fit Text (token ridge) exactly."


class _Edit(NamedTuple):
    """One eraser on some rows of a tensor."""

    place: FileRows
    layer: LayerEraser
    strength: float


def _edited(tensor: Tensor, chain: Sequence[_Edit]) -> Tensor:
    """Every edit in order, without rounding in between."""
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
    for place, layer, strength in chain:
        rows = wide.narrow(0, place.start, place.count)
        rows.copy_(layer.edit_weight(rows, strength))
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
        raise ModelFileError(
            f"'{target}' was not written: {why_not_written(target, error)} The source is as it was "
            "and nothing is left of the new file."
        ) from error
