"""Mosaic (ours): the ridge eraser on parts of the picture, each phrasing towards its own.

Like the ridge eraser it sends the concept's rows to where its neighbours are, keeps theirs, and
changes little else. Two things differ.

Rows are averages over the cells of a grid, not over the whole picture: h at different places weighs
the prompt's tokens differently, and a mean over all of them hides directions that carry the concept
in one place and something else in another. What the mean hides, E leaves, and only overshooting
makes up for it, at the price of whatever else lies that way.

The target of a row is the mean over the neighbours in the same phrasing, at the same latent, step
and cell. Against all phrasings, "a drawing of" the concept would be moved away from drawings too.
With a replacement it is the replacement's row there.

    E - I = reach (T_F - H_F)^T H_F / n_F A^-1

With one cell and one phrasing it is the ridge eraser. Left to itself `reach` is 1.3, chosen on
development concepts of both small U-Nets.
"""

from __future__ import annotations

from .least_squares import DAMPING, KEEP, join_least_squares, least_squares_factors
from .method import ActivationMethod, Factors, LayerRows, Remedies, Setting
from .targets import kept, targets

USUAL_REACH = 1.3
"""How far concepts are sent if nothing is said."""

REACH = Setting(
    "reach",
    0.0,
    "How far the concept is sent. 1 is the neighbours' mean, more goes beyond it and erases what 1 "
    "leaves. 0 chooses: 1.3.",
    least=0,
    most=5,
    step=0.05,
    advanced=True,
)


def solve(rows: LayerRows, keep: float, damping: float, reach: float) -> Factors:
    """The eraser of one layer."""
    left, right = least_squares_factors(
        rows.forget_rows.double(),
        targets(rows, by_phrasing=True),
        kept(rows),
        keep,
        damping,
        rows.sharing,
    )
    return (reach or USUAL_REACH) * left, right


METHOD = ActivationMethod(
    name="mosaic",
    summary="Ridge on parts of the picture, phrasing by phrasing: slower, keeps a little more.",
    source="ours",
    edit="values",
    settings=(KEEP, DAMPING, REACH),
    solve=solve,
    by_head_up_to=1,
    remedies=Remedies(
        little_removed="Raise reach (now {reach}), or lower keep (now {keep}) or damping.",
        little_kept="Raise keep (now {keep}), or use a lower strength.",
    ),
    join=join_least_squares,
    joins_own_retain=True,
    has_target=True,
    cells=4,
)
