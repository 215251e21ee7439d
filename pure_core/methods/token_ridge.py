"""Ridge on the prompts' tokens (ours): each goes where the neighbours' tokens at its place are.

The least squares of `least_squares.py` in the space of text, so that all keys and values become
`W E`. H_F are the tokens of the forget prompts' words with their end tokens, H_R those of the
retain prompts. T_F has, for each forget row, the mean of the retain prompts' tokens at the same
place, counted back from the end token: phrasings differ in front of a name more than behind it.
Where no retain prompt reaches that far back, it is the mean at the farthest place that one reaches.

With an anchor prompt for each forget prompt, T_F has the anchor's tokens at these places instead,
and they are kept like the retain prompts'.

E - I is linear in T_F - H_F, and `overshoot` scales it as in `ridge.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..progress import Progress
from ..text import TextTask
from .least_squares import DAMPING, KEEP, least_squares_factors
from .method import TextEdit, TextMethod
from .ridge import OVERSHOOT


def solve(
    task: TextTask, progress: Progress, keep: float, damping: float, overshoot: float
) -> TextEdit:
    """One edit for keys and values of all layers."""
    assert task.retain is not None
    forget, kept = task.forget.read_prompts, task.retain.read_prompts
    rows = torch.cat(forget)
    if task.replaced:
        anchor = task.anchor.read_prompts
        pairs = zip(forget, anchor, strict=True)
        targets = torch.cat([tokens_at_their_places([one], [other]) for one, other in pairs])
        kept += dict(zip(task.anchor.prompts, anchor, strict=True)).values()  # each prompt once
    else:
        targets = tokens_at_their_places(forget, kept)
    left, right = least_squares_factors(rows, targets, torch.cat(kept), keep, damping, 1)
    progress(1, 1)
    return TextEdit(overshoot * left, right, rows)


def tokens_at_their_places(forget: list[Tensor], others: list[Tensor]) -> Tensor:
    """T_F (n, D): for every token of every forget prompt the mean of the other prompts' there.

    Args:
        forget: Of each prompt (k, D), in the order of its tokens, the end token last.
        others: The same of at least one.
    """
    farthest = max(map(len, others))
    means = [
        torch.stack([each[-back] for each in others if len(each) >= back]).mean(0)
        for back in range(1, farthest + 1)
    ]
    return torch.stack(
        [means[min(back, farthest) - 1] for each in forget for back in range(len(each), 0, -1)]
    )


METHOD = TextMethod(
    name="token ridge",
    summary="Least squares: sends every token of the concept's prompts to where its neighbours' "
    "tokens at that place are.",
    source="ours",
    edit="keys and values",
    settings=(KEEP, DAMPING, OVERSHOOT),
    solve=solve,
    needs_retain=True,
    every_token=True,
)
