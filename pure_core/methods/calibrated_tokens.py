"""Calibrated tokens (ours): token ridge whose damping and overshoot follow from the prompts.

Every token of the concept's words, and its end token, goes to where the neighbours' tokens at its
place are, by the least squares of `least_squares.py` in the space of text, so that all keys and
values become `W E`. What token ridge has as settings follows here from the prompts: each phrasing
is left out in turn, and each neighbour, see `calibration.py`.

The place of a token is counted from the first word, as phrasings begin alike, or from the end
token, as names differ in length: of a prompt's tokens at these two places the nearer one stands for
it. The target is the mean over the neighbours, of each over its prompts. With an anchor prompt for
each forget prompt the target is the anchor's token there, and the anchors are kept like neighbours.
The empty prompt is kept as well, since guidance compares everything with it. A prompt that was
written by hand is a phrasing, or a neighbour, of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..progress import Progress
from ..text import TextTask
from .calibration import BALANCE, Groups, calibrate, numbers_by
from .least_squares import least_squares_factors
from .method import TextEdit, TextMethod


def solve(task: TextTask, progress: Progress, balance: float) -> TextEdit:
    """One edit for keys and values of all layers."""
    groups = token_groups(task)
    chosen = calibrate([groups], balance)
    rows, kept = torch.cat(list(groups.forget)), torch.cat([*groups.kept, groups.always])
    targets = torch.cat([each.mean(0) for each in groups.others])
    left, right = least_squares_factors(rows, targets, kept, balance, chosen.damping, 1)
    progress(1, 1)
    return TextEdit(chosen.overshoot * left, right, rows, chosen.rounded())


def token_groups(task: TextTask) -> Groups:
    """The concept's tokens by phrasing, and the neighbours' by neighbour."""
    assert task.retain is not None
    forget, retain = task.forget.read_prompts, task.retain.read_prompts
    names = (each.concept if each.phrasing else each.prompt for each in task.retain.anchors)
    neighbours = [[retain[number] for number in numbers] for numbers in numbers_by(names)]
    kept = [torch.cat(prompts) for prompts in neighbours]
    if task.replaced:
        anchor = task.anchor.read_prompts
        others = [[standing_for(rows, [other])] for rows, other in zip(forget, anchor, strict=True)]
        kept.append(torch.cat(anchor))
    else:
        others = [[standing_for(rows, prompts) for prompts in neighbours] for rows in forget]
    phrasings = numbers_by(each.phrasing or each.prompt for each in task.forget.anchors)
    return Groups(
        [torch.cat([forget[number] for number in numbers]) for numbers in phrasings],
        [
            torch.cat([torch.stack(others[number]) for number in numbers], dim=1)
            for numbers in phrasings
        ],
        kept,
        task.empty.read,
        shifting=not task.replaced,
    )


def standing_for(rows: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """For every token of a prompt (k, D), the mean of those of other prompts that stand for it."""
    return torch.stack([_at_its_place(rows, other) for other in prompts]).mean(0)


def _at_its_place(rows: Tensor, other: Tensor) -> Tensor:
    """(k, D): for every token that of another prompt, see above."""
    places = torch.arange(len(rows))
    from_first = other[places.clamp(max=len(other) - 1)]
    from_end = other[(places + len(other) - len(rows)).clamp(min=0)]
    nearer = (from_first - rows).square().sum(1) < (from_end - rows).square().sum(1)
    return torch.where(nearer[:, None], from_first, from_end)


METHOD = TextMethod(
    name="calibrated tokens",
    summary="Token ridge that sets itself by leaving out phrasings and neighbours.",
    source="ours",
    edit="keys and values",
    settings=(BALANCE,),
    solve=solve,
    needs_retain=True,
    every_token=True,
)
