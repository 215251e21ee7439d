"""Guard (ours): the ridge eraser, held back by everything else that the model draws.

The ridge eraser moves the concept along what tells it from its neighbours, and nothing but damping
keeps that from reaching pictures of other kinds: colours, places, other subjects. Guard adds the
activations of ordinary captions, H_O, as rows that have to stay where they are, but does not aim at
them: the concept still goes where its neighbours are. With T_F, A and tau as in `ridge.py`,

    E - I = overshoot (T_F - H_F)^T H_F / n_F (A + guard H_O^T H_O / n_O)^-1,

the minimiser of the ridge objective plus guard |E H_O - H_O|^2 / n_O. Captions that name the
concept are left out: see `not_naming`.
"""

from __future__ import annotations

import re

import torch

from ..activations import Activations
from ..eraser import Edit, Eraser, LayerEraser
from ..errors import FitError
from ..progress import Progress, no_progress
from .common import check_number, fitted, neighbour_means, require_comparable, scaled_rows
from .ridge import require_neighbours, ridge_factors

EDIT: Edit = "values"

NO_NAMES = frozenset("a an the of in on at by with and or for to from his her its".split())
"""Words that name nothing."""


@torch.no_grad()
def fit_guard(
    forget: Activations,
    retain: Activations | None,
    keep: float = 10.0,
    damping: float = 0.3,
    overshoot: float = 1.8,
    *,
    others: Activations | None,
    guard: float = 3.0,
    progress: Progress = no_progress,
) -> Eraser:
    """Fit the guarded ridge eraser in every layer.

    Args:
        forget: Activations of the concepts' prompts.
        retain: Activations of their neighbours' prompts: their mean is where the concept is sent.
        keep: lambda >= 0. Higher keeps the neighbours better and erases less.
        damping: mu > 0. Higher changes less in directions that few rows use.
        overshoot: How far towards the neighbours' mean the forget rows are sent, > 0; 1 is there.
        others: Activations of ordinary captions.
        guard: Weight >= 0 of keeping those; 0 is the ridge eraser.

    Raises:
        FitError: no retain or other rows, settings out of range, activations captured in different
            ways, or other captions that all name the concept.
    """
    retain = require_neighbours("guard", forget, retain)
    if others is None:
        raise FitError(
            "The guard method keeps everything else by the activations of ordinary captions: "
            "capture some and connect them to 'others', or use the method 'ridge'."
        )
    require_comparable(forget, others)
    check_number("keep", keep, least=0)
    check_number("damping", damping, above=0)
    check_number("overshoot", overshoot, above=0)
    check_number("guard", guard, least=0)
    others = not_naming(others, forget)
    layers = {}
    for done, (layer, rows) in enumerate(forget.rows.items(), start=1):
        held = others.rows[layer].double()
        left, right = ridge_factors(
            rows.double(),
            neighbour_means(forget, retain, layer),
            retain.rows[layer].double(),
            keep,
            damping,
            others=held * (guard / len(held)) ** 0.5,
        )
        layers[layer] = LayerEraser((overshoot * left).float(), right.float(), scaled_rows(rows))
        progress(done, len(forget.rows))
    settings = {"keep": keep, "damping": damping, "overshoot": overshoot, "guard": guard}
    return fitted("guard", {**settings}, EDIT, layers, forget=forget, retain=retain)


def not_naming(others: Activations, forget: Activations) -> Activations:
    """The captions without a word that all prompts of one of the concepts share.

    Raises:
        FitError: there is none.
    """
    names: set[str] = set()
    start = 0
    for count in forget.groups:
        prompts = forget.prompts[start : start + count]
        names |= set.intersection(*(_words(prompt) for prompt in prompts)) - NO_NAMES
        start += count
    chosen = [i for i, prompt in enumerate(others.prompts) if not _words(prompt) & names]
    if not chosen:
        raise FitError("others: every caption names a concept. Capture some that do not.")
    return others.choose(chosen)


def _words(prompt: str) -> set[str]:
    return set(re.findall(r"\w+", prompt.casefold()))
