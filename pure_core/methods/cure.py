"""CURE: project the concept's token vectors out, except what the retained ones use.

Das Biswas et al., "CURE: Concept Unlearning via Orthogonal Representation Editing in Diffusion
Models", arXiv 2505.12677. Equation 2 decomposes the token vectors, C = U diag(s) V^T; equation 4
weighs each direction by its share of the energy, r_i = s_i^2 / sum s_j^2,

    f(r; a) = a r / ((a - 1) r + 1),        P = V diag(f) V^T,

and equation 7 edits keys and values of all layers: W' = W (I - (P_f - P_f P_r)).

Default a = 2, the authors' for objects and artists (5 for unsafe content). They published no code
and do not say which tokens they take: here all tokens of the words, without start, end and
padding, which every prompt shares and which would be the leading direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..bases import fit_basis
from ..eraser import Edit, Eraser
from ..progress import Progress, no_progress
from ..text import TextTask
from .common import check_number, everywhere, fitted_text

EDIT: Edit = "keys and values"


@torch.no_grad()
def fit_cure(task: TextTask, alpha: float = 2.0, *, progress: Progress = no_progress) -> Eraser:
    """Fit CURE.

    Args:
        alpha: a >= 1. 1 weighs a direction by its share of energy; the higher, the more of them
            count fully.

    Raises:
        FitError: alpha below 1.
    """
    check_number("alpha", alpha, least=1)
    retain = None if task.retain is None else task.retain.words
    factors = cure_factors(task.forget.words, retain, alpha)
    progress(1, 1)
    layers = everywhere(task, *factors, task.forget.words)
    return fitted_text("cure", {"alpha": alpha}, EDIT, layers, task)


def cure_factors(forget: Tensor, retain: Tensor | None, alpha: float) -> tuple[Tensor, Tensor]:
    """L = V_f diag(f) (D, r) and R = V_f^T (I - P_r) (r, D), so that E = I - L R.

    Args:
        forget: Token vectors of the concept (n, D), float64.
        retain: Those to keep, or None for P_r = 0.
    """
    vectors, weights = _spectral(forget, alpha)
    right = vectors.T
    if retain is not None:
        kept, shares = _spectral(retain, alpha)
        right = right - ((right @ kept) * shares) @ kept.T
    return vectors * weights, right.contiguous()


def _spectral(rows: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """V (D, r) and f (r,)."""
    basis = fit_basis(rows, 1.0)
    share = basis.singular_values.square() / basis.total_energy
    return basis.vectors, alpha * share / ((alpha - 1) * share + 1)
