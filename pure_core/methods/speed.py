"""SPEED: send the concept's token to its anchor, in the null space of what is retained.

Li et al., "SPEED: Scalable, Precise, and Efficient Concept Erasure for Diffusion Models", arXiv
2503.07392. With S = C C^T / n over the concept's vectors, S* = C* C^T / n with their anchors', P
the projection onto the null space of the retained second moment and M = (S P + r I)^-1,

    W' = W + W (S* - S) P Q M,   Q = I - M K (K^T P M K + b I)^-1 K^T P,

where K holds vectors that have to stay exactly: the start token and three centres of the empty
prompt. Values only; of every prompt the last word's last token.

The retained set is chosen in each layer (influence-based prior filtering): the prompts that the
edit without null space, W (S* - S)(I + S)^-1, changes more than the average one. Each of these is
added ten times with noise along the direction that W reads least (directed prior augmentation),
filtered in the same way. Their second moment's directions above `threshold` are retained.

Defaults are the authors' for a few concepts: threshold .1, r = 1, b = 0. Difference: their retained
prompts come from lists of their own, here they are those given.
"""

from __future__ import annotations

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from ..eraser import Edit, Eraser, LayerEraser
from ..errors import FitError
from ..progress import Progress, no_progress
from ..text import TextTask
from ..thin import thin_product
from .common import check_number, fitted_text, scaled_rows

EDIT: Edit = "values"

COPIES = 10
"""Noisy copies of every retained vector."""

CENTRES = 3
"""Centres of the empty prompt's vectors."""

SEED = 0


@torch.no_grad()
def fit_speed(
    task: TextTask,
    threshold: float = 0.1,
    regularisation: float = 1.0,
    *,
    progress: Progress = no_progress,
) -> Eraser:
    """Fit SPEED.

    Args:
        threshold: Retained directions are those in which the mean squared size of the retained
            vectors is at least this, > 0.
        regularisation: r > 0.

    Raises:
        FitError: no retain prompts, or a setting out of its range.
    """
    check_number("threshold", threshold, above=0)
    check_number("regularisation", regularisation, above=0)
    if task.retain is None:
        raise FitError("SPEED keeps what is given in 'retain': expected prompts, got none.")
    forget, target, retain = task.forget.last, task.anchor.last, task.retain.last
    fixed = invariants(task.empty.vectors[0])
    rows = scaled_rows(forget).float()
    layers = {}
    for done, name in enumerate(task.model.layers, start=1):
        weight = task.model.weight_of(name, "to_v").double()
        kept = influenced(weight, forget, target, retain)
        left, right = speed_factors(
            forget, target, kept, fixed, threshold=threshold, regularisation=regularisation
        )
        left, right = thin_product(left, right)
        layers[name] = LayerEraser(left.float(), right.float(), rows, "text")
        progress(done, len(task.model.layers))
    settings = {"threshold": threshold, "regularisation": regularisation}
    return fitted_text("speed", settings, EDIT, layers, task)


def speed_factors(
    forget: Tensor,
    target: Tensor,
    retain: Tensor,
    fixed: Tensor,
    *,
    threshold: float,
    regularisation: float,
) -> tuple[Tensor, Tensor]:
    """L = (C - C*)^T / n (D, n) and R = C P Q M (n, D), so that E = I - L R.

    Args:
        forget: C (n, D), a vector a row, float64.
        target: C* (n, D).
        retain: (m, D), what the null space is of.
        fixed: K (k, D).
    """
    n, width = forget.shape
    _, values, vectors = torch.linalg.svd(retain / len(retain) ** 0.5, full_matrices=False)
    seen = vectors[values.square() >= threshold]
    eye = torch.eye(width, dtype=forget.dtype)
    free = eye - seen.T @ seen
    inverse = torch.linalg.inv(forget.T @ forget @ free / n + regularisation * eye)
    moved = inverse @ fixed.T
    stay = torch.linalg.pinv(fixed @ free @ moved, rtol=1e-10)
    right = forget @ free @ inverse - (forget @ free @ moved) @ stay @ (fixed @ free @ inverse)
    return (forget - target).T / n, right


def influenced(weight: Tensor, forget: Tensor, target: Tensor, retain: Tensor) -> Tensor:
    """The retained vectors that the edit of one layer would change most, with noisy copies."""
    n, width = forget.shape
    system = torch.eye(n, dtype=forget.dtype) + forget @ forget.T / n
    solved = torch.linalg.solve(system, forget) / n  # C (I + S)^-1 / n
    change = weight @ (target - forget).T

    def strongest(vectors: Tensor) -> Tensor:
        sizes = (change @ (solved @ vectors.T)).square().sum(dim=0)
        return vectors[sizes >= sizes.mean()]

    kept = strongest(retain)
    _, _, directions = torch.linalg.svd(weight, full_matrices=False)
    least = directions[-1]
    generator = torch.Generator().manual_seed(SEED)
    copies = kept.repeat(COPIES, 1)
    noise = torch.randn(len(copies), width, dtype=kept.dtype, generator=generator)
    return torch.cat([kept, strongest(copies + (noise @ least)[:, None] * least)])


def invariants(empty: Tensor) -> Tensor:
    """K (4, D): the empty prompt's start token, and centres of its other vectors (T, D)."""
    centres, _ = kmeans2(empty[1:].numpy(), CENTRES, minit="++", seed=SEED)
    return torch.cat([empty[:1], torch.from_numpy(centres)])
