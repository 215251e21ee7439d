"""Mosaic (ours): the ridge eraser on parts of the picture, each phrasing towards its own.

Like the ridge eraser it sends the concept's rows to where its neighbours are, keeps theirs, and
changes little else; A, keep and damping are those of `ridge.py`. Two things differ.

Rows are averages over the cells of a grid, not over the whole picture: h at different places weighs
the prompt's tokens differently, and a mean over all of them hides directions that carry the concept
in one place and something else in another. What the mean hides, E leaves, and only overshooting
makes up for it, at the price of whatever else lies that way.

The target of a row is the mean over the neighbours in the same phrasing, at the same latent, step
and cell. Against all phrasings, "a drawing of" the concept would be moved away from drawings too.

    E - I = reach (T_F - H_F)^T H_F / n_F A^-1

With one cell and one phrasing it is the ridge eraser. The more concepts are erased at once, the
less they need to be sent beyond their neighbours and the more that costs everything else: left to
itself `reach` goes down from 1.6 for one concept to 1.3 for ten. Both were chosen on development
concepts of the small model, the curve between them is a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..activations import Activations
from ..eraser import Edit, Eraser, LayerEraser
from ..phrasings import alike
from ..progress import Progress, no_progress
from .common import check_number, fitted, scaled_rows
from .ridge import join_ridge, require_neighbours, ridge_factors

EDIT: Edit = "values"

BEYOND = 0.6
"""How far beyond its neighbours' mean a single concept is sent."""


@torch.no_grad()
def fit_mosaic(
    forget: Activations,
    retain: Activations | None,
    keep: float = 10.0,
    damping: float = 0.3,
    reach: float = 0.0,
    *,
    progress: Progress = no_progress,
) -> Eraser:
    """Fit the mosaic eraser in every layer.

    Args:
        forget: Activations of the concepts' prompts, best captured with 4 cells.
        retain: Activations of their neighbours' prompts, in the same phrasings.
        keep: lambda >= 0. Higher keeps the neighbours better and erases less.
        damping: mu > 0. Higher changes less in directions that few rows use.
        reach: How far towards the neighbours' mean the forget rows are sent, >= 0; 1 is there, 0
            is 1 + 0.6 / k^(1/3) for k concepts.

    Raises:
        FitError: no retain rows, settings out of range, activations captured in different ways,
            or a layer whose retain rows are all zero.
    """
    retain = require_neighbours("mosaic", forget, retain)
    check_number("keep", keep, least=0)
    check_number("damping", damping, above=0)
    check_number("reach", reach, least=0)
    settings: dict[str, float | str] = {"keep": keep, "damping": damping, "reach": reach}
    reach = reach or usual_reach(len(forget.groups))
    pairs = alike(forget.prompts, forget.groups, retain.prompts)
    layers = {}
    for done, (layer, rows) in enumerate(forget.rows.items(), start=1):
        left, right = ridge_factors(
            rows.double(),
            targets(retain, layer, pairs),
            retain.rows[layer].double(),
            keep,
            damping,
        )
        layers[layer] = LayerEraser((reach * left).float(), right.float(), scaled_rows(rows))
        progress(done, len(forget.rows))
    return fitted("mosaic", settings, EDIT, layers, forget=forget, retain=retain)


@torch.no_grad()
def join_mosaic(
    layers: Sequence[LayerEraser],
    weights: Sequence[float],
    retain: Tensor | None,
    settings: Mapping[str, float | str],
    concepts: Sequence[int],
) -> LayerEraser:
    """The mosaic eraser of several concepts: as the ridge eraser's, at the reach of all of them.

    Raises:
        EraserError: an eraser without the rows it was fitted on.
    """
    if settings["reach"]:
        return join_ridge(layers, weights, retain, settings, concepts)
    pairs = zip(layers, concepts, strict=True)
    alone = [layer.scaled(1 / usual_reach(count)) for layer, count in pairs]
    joined = join_ridge(alone, weights, retain, settings, concepts)
    return joined.scaled(usual_reach(sum(concepts)))


def usual_reach(concepts: int) -> float:
    """How far so many concepts are sent that are erased at once."""
    reach: float = 1 + BEYOND / concepts ** (1 / 3)
    return reach


def targets(retain: Activations, layer: str, pairs: list[list[int]]) -> Tensor:
    """T_F (n_F, d), float64: for every forget row the mean over its prompt's counterparts.

    Args:
        pairs: For every forget prompt, the numbers of the retain prompts in its phrasing.
    """
    grid = retain.grid(layer).double()
    means = [grid[each].mean(dim=0) for each in pairs]
    return torch.stack(means).flatten(0, 2)
