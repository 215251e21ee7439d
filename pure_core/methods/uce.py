"""UCE: the concept's token is read as its anchor's, other tokens as before.

Gandikota et al., "Unified Concept Editing in Diffusion Models", arXiv 2308.14761, equation 7. With
c the concept's vectors, c* their anchors' and c_p those to preserve,

    W' = (l W + e sum W c* c^T + p sum W c_p c_p^T)(l I + e sum c c^T + p sum c_p c_p^T)^-1,

the least squares solution of W' c = W c*, W' c_p = W c_p and W' = W. W stands left of everything,
so W' = W E with one E for keys and values of all layers: W' - W = W sum e (c* - c) c^T A^-1.

Defaults are those of the authors' present code: e = p = 1, l = 0.5, and of every prompt the last
word's last token. Their first version used that token and all that follow, to the end of the
padding: `tokens` chooses. Differences: prompts and anchors are those given, one encoding each.

Where all text enters by one map, as in Flux, E is an edit of that map: W' = W E, with the same
vectors, there the last token of T5 before its end. The authors' form for Flux is this with the same
weights, l, e and p, and two more things, which are not here. It also edits the first map of the
pooled CLIP vector by that vector. And its targets hold the map's bias, which the map then adds once
more, so that the concept and what is preserved are moved by the bias; our targets are W c*.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..progress import Progress
from ..text import TextTask, paired
from .least_squares import solve_rows
from .method import Factors, Setting, TextEdit, TextMethod

TOKENS = ("last", "last and after")

ERASE = Setting("erase", 1.0, "Weight of moving the concept (e).", 0, 1000, above=True, step=0.1)
PRESERVE = Setting("preserve", 1.0, "Weight of keeping the retain prompts (p).", 0, 1000, step=0.1)
RIDGE = Setting(
    "ridge",
    0.5,
    "Weight of changing nothing at all (lambda). Higher is more careful.",
    least=0,
    most=1000,
    above=True,
    step=0.1,
    advanced=True,
)
TOKEN_CHOICE = Setting(
    "tokens",
    "last",
    "Which tokens are moved: the last word's last token, or it and all after it, the end and the "
    "padding, which carry the concept too.",
    choices=TOKENS,
    advanced=True,
)


def solve(
    task: TextTask, progress: Progress, erase: float, preserve: float, ridge: float, tokens: str
) -> TextEdit:
    """One edit for keys and values of all layers."""
    forget, target, kept = uce_rows(task, tokens)
    factors = uce_factors(forget, target, kept, erase=erase, preserve=preserve, ridge=ridge)
    progress(1, 1)
    return TextEdit(*factors, forget)


def uce_rows(task: TextTask, tokens: str) -> tuple[Tensor, Tensor, Tensor]:
    """C and C* (n, D) side by side, and C_p (m, D)."""
    if tokens == "last":
        forget, target = task.forget.last, task.anchor.last
        kept = None if task.retain is None else task.retain.last
    else:
        forget, target = paired(task.forget.tails, task.anchor.tails)
        kept = None if task.retain is None else torch.cat(task.retain.tails)
    return forget, target, forget[:0] if kept is None else kept


def uce_factors(
    forget: Tensor, target: Tensor, kept: Tensor, *, erase: float, preserve: float, ridge: float
) -> Factors:
    """L (D, n) and R (n, D) with E = I - L R.

    Args:
        forget: C (n, D), a vector c a row, float64.
        target: C* (n, D).
        kept: C_p (m, D).
    """
    rows = torch.cat([forget * erase**0.5, kept * preserve**0.5])
    damping = torch.tensor(ridge, dtype=rows.dtype)
    solved = solve_rows(rows, damping, len(forget))
    return (forget - target).T * erase**0.5, solved


METHOD = TextMethod(
    name="uce",
    summary="Moves the concept's tokens to the anchor's by least squares.",
    source="Gandikota et al., arXiv 2308.14761",
    edit="keys and values",
    settings=(ERASE, PRESERVE, RIDGE, TOKEN_CHOICE),
    solve=solve,
)
