"""UCE: the concept's token is read as its anchor's, other tokens as before.

Gandikota et al., "Unified Concept Editing in Diffusion Models", arXiv 2308.14761, equation 7. With
c the concept's vectors, c* their anchors' and c_p those to preserve,

    W' = (l W + e sum W c* c^T + p sum W c_p c_p^T)(l I + e sum c c^T + p sum c_p c_p^T)^-1,

the least squares solution of W' c = W c*, W' c_p = W c_p and W' = W. W stands left of everything,
so W' = W E with one E for keys and values of all layers: W' - W = W sum e (c* - c) c^T A^-1.

Defaults are those of the authors' present code: e = p = 1, l = .5, and of every prompt the last
word's last token. Their first version used that token and all that follow, to the end of the
padding: `tokens` chooses. Differences: prompts and anchors are those given, one encoding each.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..eraser import Edit, Eraser
from ..errors import FitError, require_one_of
from ..progress import Progress, no_progress
from ..text import TextTask, paired
from .common import check_number, everywhere, fitted_text
from .ridge import solve_rows

EDIT: Edit = "keys and values"

Tokens = Literal["last", "last and after"]
"""Which of a prompt's vectors are moved: the last word's last token, or that and all after it."""

TOKENS: tuple[Tokens, ...] = get_args(Tokens)


@torch.no_grad()
def fit_uce(
    task: TextTask,
    erase: float = 1.0,
    preserve: float = 1.0,
    ridge: float = 0.5,
    tokens: Tokens = "last",
    *,
    progress: Progress = no_progress,
) -> Eraser:
    """Fit UCE.

    Args:
        erase: e > 0, weight of the concept.
        preserve: p >= 0, weight of the retain prompts.
        ridge: l > 0, weight of changing nothing.
        tokens: One of `TOKENS`.

    Raises:
        FitError: a setting out of its range.
    """
    check_weights(erase, preserve, ridge, tokens)
    forget, target, kept = uce_rows(task, tokens)
    factors = uce_factors(forget, target, kept, erase=erase, preserve=preserve, ridge=ridge)
    progress(1, 1)
    settings = settings_of(erase, preserve, ridge, tokens)
    return fitted_text("uce", settings, EDIT, everywhere(task, *factors, forget), task)


def check_weights(erase: float, preserve: float, ridge: float, tokens: str) -> None:
    """Raise FitError for a setting out of its range."""
    check_number("erase", erase, above=0)
    check_number("preserve", preserve, least=0)
    check_number("ridge", ridge, above=0)
    require_one_of("tokens", tokens, TOKENS, FitError)


def settings_of(erase: float, preserve: float, ridge: float, tokens: str) -> dict[str, float | str]:
    """As the eraser's record keeps them."""
    return {"erase": erase, "preserve": preserve, "ridge": ridge, "tokens": tokens}


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
) -> tuple[Tensor, Tensor]:
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
