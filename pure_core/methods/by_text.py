"""The methods that work on the text encoder's vectors, by name: the peers of PURE."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..eraser import Edit, Eraser
from ..progress import Progress, no_progress
from ..text import TextTask
from . import cure, double_projections, oce, rece, speed, uce
from .common import by_name

__all__ = ["TEXT_METHODS", "TextMethod", "fit_text"]


class TextMethod(NamedTuple):
    """One way to fit an eraser from encoded prompts."""

    fit: Callable[..., Eraser]
    """(task, **settings) -> Eraser."""

    edit: Edit
    """The projections it edits unless asked otherwise."""

    settings: tuple[str, ...]
    """Names of its settings."""


_LEAST_SQUARES = ("erase", "preserve", "ridge", "tokens")

TEXT_METHODS: dict[str, TextMethod] = {
    "uce": TextMethod(uce.fit_uce, uce.EDIT, _LEAST_SQUARES),
    "cure": TextMethod(cure.fit_cure, cure.EDIT, ("alpha",)),
    "rece": TextMethod(rece.fit_rece, rece.EDIT, (*_LEAST_SQUARES, "rounds", "recovery")),
    "speed": TextMethod(speed.fit_speed, speed.EDIT, ("threshold", "regularisation")),
    "oce": TextMethod(oce.fit_oce, oce.EDIT, ("rotation", "preserve")),
    "double projections": TextMethod(
        double_projections.fit_double_projections, double_projections.EDIT, ()
    ),
}


def fit_text(
    method: str, task: TextTask, progress: Progress = no_progress, **settings: float | str
) -> Eraser:
    """Fit an eraser by a method's name; progress is told in layers, prompts or rounds.

    Settings of other methods are ignored, so a form that shows all of them can pass all.

    Raises:
        FitError: unknown method or setting, a setting out of range, or prompts that the method
            cannot do without.
    """
    chosen, own = by_name(TEXT_METHODS, method, settings)
    return chosen.fit(task, **own, progress=progress)
