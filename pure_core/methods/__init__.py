"""The methods that turn activations into an eraser, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..activations import Activations
from ..eraser import Edit, Eraser, LayerEraser
from ..progress import Progress, no_progress
from . import leace, mosaic, pure, ridge
from .common import by_name
from .leace import fit_leace
from .mosaic import fit_mosaic, join_mosaic
from .pure import fit_pure, join_pure
from .ridge import fit_ridge, join_ridge

__all__ = ["METHODS", "Join", "Method", "fit", "fit_leace", "fit_mosaic", "fit_pure", "fit_ridge"]

Join = Callable[
    [
        Sequence[LayerEraser],
        Sequence[float],
        Tensor | None,
        Mapping[str, float | str],
        Sequence[int],
    ],
    LayerEraser,
]
"""(one layer of every eraser, their shares of all rows, retain rows or None, settings, how many
concepts each has) -> the layer of all."""


class Method(NamedTuple):
    """One way to fit an eraser."""

    fit: Callable[..., Eraser]
    """(forget, retain or None, **settings) -> Eraser."""

    edit: Edit
    """The projections it edits unless asked otherwise."""

    settings: tuple[str, ...]
    """Names of its settings."""

    join: Join | None = None
    """Several concepts' erasers as the one that fitting all at once gives, or None if they do not
    hold what that takes."""

    own_retain: bool = False
    """Whether joining needs the very retain rows that every concept was fitted with."""

    needs_retain: bool = True
    """Whether it cannot be fitted without neighbours."""

    cells: int = 1
    """With how many cells its activations are best captured; 1 for whole pictures, which is all
    that it is given."""


METHODS: dict[str, Method] = {
    "pure": Method(
        fit_pure, pure.EDIT, ("forget_energy", "retain_energy"), join_pure, needs_retain=False
    ),
    "ridge": Method(fit_ridge, ridge.EDIT, ("keep", "damping", "overshoot"), join_ridge, True),
    "mosaic": Method(
        fit_mosaic, mosaic.EDIT, ("keep", "damping", "reach"), join_mosaic, own_retain=True, cells=4
    ),
    "leace": Method(fit_leace, leace.EDIT, ("shrinkage",)),
}


def fit(
    method: str,
    forget: Activations,
    retain: Activations | None,
    progress: Progress = no_progress,
    **settings: float,
) -> Eraser:
    """Fit an eraser by a method's name; progress is told in layers.

    Settings of other methods are ignored, so a form that shows all of them can pass all.

    Raises:
        FitError: unknown method or setting, a setting out of range, or forget and retain
            captured in different ways.
    """
    chosen, own = by_name(METHODS, method, settings)
    if chosen.cells == 1:
        forget, retain = forget.pooled(), retain and retain.pooled()
    return chosen.fit(forget, retain, **own, progress=progress)
