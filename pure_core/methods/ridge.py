"""The ridge eraser (ours): the concept's rows go where its neighbours' rows are.

The least squares of `least_squares.py`, with T_F, for each forget row, the mean over the retain
anchors at the same latent and step. With a replacement it is the replacement's row in the same
phrasing.

E - I is linear in T_F - H_F, so aiming `overshoot` times as far as the neighbours' mean scales it.
Beyond 1 makes up for what this fit cannot see: rows are means over positions, and damping and
keeping stop the rows short of their targets.

It edits the values only: E is fitted in their space, and the attention stays as it is.
"""

from __future__ import annotations

from .least_squares import DAMPING, KEEP, join_least_squares, least_squares_factors
from .method import ActivationMethod, Factors, LayerRows, Remedies, Setting
from .targets import kept, targets

OVERSHOOT = Setting(
    "overshoot",
    1.3,
    "How far the concept is sent. 1 is the neighbours' mean, more goes beyond it and erases what "
    "1 leaves, but may push neighbours towards the concept: lower it then.",
    least=0.1,
    most=5,
    step=0.1,
    advanced=True,
)


def solve(rows: LayerRows, keep: float, damping: float, overshoot: float) -> Factors:
    """The eraser of one layer."""
    left, right = least_squares_factors(
        rows.forget_rows.double(),
        targets(rows, by_phrasing=False),
        kept(rows),
        keep,
        damping,
        rows.sharing,
    )
    return overshoot * left, right


METHOD = ActivationMethod(
    name="ridge",
    summary="Least squares: sends the concept to what its neighbours do, and edits values only.",
    source="ours",
    edit="values",
    settings=(KEEP, DAMPING, OVERSHOOT),
    solve=solve,
    by_head_up_to=1,
    remedies=Remedies(
        little_removed="Raise overshoot (now {overshoot}), or lower keep (now {keep}) or damping.",
        little_kept="Raise keep (now {keep}), or use a lower strength.",
    ),
    join=join_least_squares,
    joins_own_retain=True,
    has_target=True,
)
