"""CURE: project the concept's token vectors out, except what the retained ones use.

Das Biswas et al., "CURE: Concept Unlearning via Orthogonal Representation Editing in Diffusion
Models", arXiv 2505.12677. Equation 2 decomposes the token vectors, C = U diag(s) V^T; equation 4
weighs each direction by its share of the energy, r_i = s_i^2 / sum s_j^2,

    f(r; a) = a r / ((a - 1) r + 1),        P = V diag(f) V^T,

and equation 7 edits keys and values of all layers: W' = W (I - (P_f - P_f P_r)).

Presets are the authors': a = 2 for objects and artists (the default), 5 for unsafe content. The
paper does not say which tokens are taken: here all tokens of the words, without start, end and
padding, which every prompt shares and which would be the leading direction.
"""

from __future__ import annotations

from torch import Tensor

from ..bases import fit_basis
from ..progress import Progress
from ..text import TextTask
from .method import Factors, Setting, TextEdit, TextMethod

ALPHA = Setting(
    "alpha",
    2.0,
    "A factor, not a number of directions: the higher it is, the more of a concept's directions "
    "count. The authors use 2 for objects and artists, 5 for unsafe content.",
    least=1,
    most=1000,
    step=0.1,
)


def solve(task: TextTask, progress: Progress, alpha: float) -> TextEdit:
    """One edit for keys and values of all layers."""
    retain = None if task.retain is None else task.retain.words
    factors = cure_factors(task.forget.words, retain, alpha)
    progress(1, 1)
    return TextEdit(*factors, task.forget.words)


def cure_factors(forget: Tensor, retain: Tensor | None, alpha: float) -> Factors:
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


METHOD = TextMethod(
    name="cure",
    summary="Projects the concept's token directions out, except what the retained ones use.",
    source="Das Biswas et al., arXiv 2505.12677",
    edit="keys and values",
    settings=(ALPHA,),
    presets={"objects and artists": {"alpha": 2.0}, "unsafe content": {"alpha": 5.0}},
    preset_for_kind={
        "object": "objects and artists",
        "style": "objects and artists",
        "unsafe content": "unsafe content",
    },
    solve=solve,
)
