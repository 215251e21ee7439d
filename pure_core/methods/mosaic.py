"""Mosaic (ours): the ridge eraser on parts of the picture, each phrasing towards its own.

Like the ridge eraser it sends the concept's rows to where its neighbours are, keeps theirs, and
changes little else. Two things differ.

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

import torch
from torch import Tensor

from ..activations import Activations
from ..eraser import LayerEraser
from .least_squares import (
    DAMPING,
    KEEP,
    join_least_squares,
    least_squares_factors,
    rows_to_keep,
)
from .method import ActivationMethod, Factors, JoinTask, LayerRows, Remedies, Setting

BEYOND = 0.6
"""How far beyond its neighbours' mean a single concept is sent."""

REACH = Setting(
    "reach",
    0.0,
    "How far the concept is sent. 1 is the neighbours' mean, more goes beyond it and erases what 1 "
    "leaves. 0 chooses: 1.6 for one concept, less for more of them.",
    least=0,
    most=5,
    step=0.05,
    advanced=True,
)


def solve(rows: LayerRows, keep: float, damping: float, reach: float) -> Factors:
    """The eraser of one layer."""
    forget, retain = rows.forget, rows.retain
    assert retain is not None
    left, right = least_squares_factors(
        rows.forget_rows.double(),
        targets(retain, rows.layer, forget.anchors.same_phrasing(retain.anchors)),
        rows_to_keep(rows),
        keep,
        damping,
    )
    return (reach or usual_reach(len(forget.anchors.concepts))) * left, right


def join(task: JoinTask) -> LayerEraser:
    """The eraser of several concepts: as the ridge eraser's, at the reach of all of them.

    Raises:
        EraserError: an eraser without the rows it was fitted on.
    """
    if task.settings[REACH.name]:
        return join_least_squares(task)
    pairs = zip(task.layers, task.concepts, strict=True)
    at_mean = [layer.scaled(1 / usual_reach(count)) for layer, count in pairs]
    joined = join_least_squares(task._replace(layers=at_mean))
    return joined.scaled(usual_reach(sum(task.concepts)))


def usual_reach(concepts: int) -> float:
    """How far concepts are sent, by how many are erased at once."""
    reach: float = 1 + BEYOND / concepts ** (1 / 3)
    return reach


def targets(retain: Activations, layer: str, pairs: list[list[int]]) -> Tensor:
    """T_F (n_F, d), float64: for every forget row the mean over its anchor's counterparts.

    Args:
        pairs: For every forget anchor, the numbers of the retain anchors in its phrasing.
    """
    grid = retain.grid(layer).double()
    means = [grid[each].mean(dim=0) for each in pairs]
    return torch.stack(means).flatten(0, 2)


METHOD = ActivationMethod(
    name="mosaic",
    summary="Ridge on parts of the picture, phrasing by phrasing; for many concepts at once.",
    source="ours",
    edit="values",
    settings=(KEEP, DAMPING, REACH),
    solve=solve,
    by_head=True,
    remedies=Remedies(
        little_removed="Raise reach (now {reach}), or lower keep (now {keep}) or damping.",
        little_kept="Raise keep (now {keep}), or use a lower strength.",
    ),
    join=join,
    joins_own_retain=True,
    cells=4,
)
