"""SPEED: send the concept's token to its anchor, in the null space of what is retained.

Li et al., "SPEED: Scalable, Precise, and Efficient Concept Erasure for Diffusion Models", arXiv
2503.07392. With S = C C^T / n over the concept's vectors, S* = C* C^T / n with their anchors', P
the projection onto the null space of the retained second moment and M = (S P + r I)^-1,

    W' = W + W (S* - S) P Q M,   Q = I - M K (K^T P M K + b I)^-1 K^T P,

where K holds vectors that have to stay exactly: the start token and three centres of the empty
prompt. Values only; of every prompt the last word's last token.

The retained set is chosen in each layer (influence-based prior filtering): the prompts that the
edit without null space, W (S* - S)(I + S)^-1, changes more than the average one, by the norm of
the change. Each of these is added ten times with noise along the direction that W reads least
(directed prior augmentation), and these copies are filtered by the same rule. Their second
moment's directions above `threshold` are retained.

Defaults are the authors' for a few objects, characters or styles: threshold 0.1, r = 1, b = 0.
Differences: their retained prompts come from lists of their own, here they are those given. A
prompt changed exactly as much as the average one is kept here, so that one alone is. Two of their
settings are not here: for ten people r = 0.05 with all prompts and filtered copies, and for nudity
r = 0.7 and b = 0.5 on all tokens behind the start, with the empty prompt's retained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..low_rank import thin_product
from ..text import TextTask
from .clusters import centres
from .method import Factors, Setting, TextEdit, TextMethod

COPIES = 10
"""Noisy copies of every retained vector."""

CENTRES = 3
"""Centres of the empty prompt's vectors."""

SEED = 0

THRESHOLD = Setting(
    "threshold",
    0.1,
    "From which mean squared size on a direction of the retained prompts is kept exactly. Lower "
    "keeps more.",
    least=0,
    most=100,
    above=True,
    step=0.001,
    advanced=True,
)
REGULARISATION = Setting(
    "regularisation",
    1.0,
    "Weight of changing nothing at all.",
    least=0,
    most=100,
    above=True,
    step=0.001,
    advanced=True,
)


def solve_layer(task: TextTask, layer: str, threshold: float, regularisation: float) -> TextEdit:
    """The edit of one layer's values."""
    assert task.retain is not None
    forget, target, retain = task.forget.last, task.anchor.last, task.retain.last
    weight = task.model.weight_of(layer, "values").double()
    factors = speed_factors(
        forget,
        target,
        influenced(weight, forget, target, retain),
        invariants(task.empty.vectors[0]),
        threshold=threshold,
        regularisation=regularisation,
    )
    return TextEdit(*thin_product(*factors), forget)


def speed_factors(
    forget: Tensor,
    target: Tensor,
    retain: Tensor,
    fixed: Tensor,
    *,
    threshold: float,
    regularisation: float,
) -> Factors:
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
        sizes = (change @ (solved @ vectors.T)).norm(dim=0)
        return vectors[sizes >= sizes.mean()]

    kept = strongest(retain)
    _, _, directions = torch.linalg.svd(weight, full_matrices=False)
    least = directions[-1]
    generator = torch.Generator().manual_seed(SEED)
    copies = kept.repeat(COPIES, 1)
    noise = torch.randn(len(copies), width, dtype=kept.dtype, generator=generator)
    return torch.cat([kept, strongest(copies + (noise @ least)[:, None] * least)])


def invariants(empty: Tensor) -> Tensor:
    """K (4, D): the empty prompt's start token, and centres of its other vectors (T, D).

    The vectors themselves where there are fewer.
    """
    if len(empty) <= 1 + CENTRES:
        return empty
    return torch.cat([empty[:1], centres(empty[1:], CENTRES, SEED)])


METHOD = TextMethod(
    name="speed",
    summary="Sends the concept's token to the anchor in the null space of what is retained.",
    source="Li et al., arXiv 2503.07392",
    edit="values",
    settings=(THRESHOLD, REGULARISATION),
    solve_layer=solve_layer,
    needs_retain=True,
)
