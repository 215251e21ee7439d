"""Regularised least squares: the algebra that several methods share.

With forget rows H_F, their targets T_F and the rows to keep H_R (see `targets.py`),

    A = H_F^T H_F / n_F + keep H_R^T H_R / n_R + damping tau I,  tau = |H_R|^2 / (n_R d)
    E = (T_F^T H_F / n_F + keep H_R^T H_R / n_R + damping tau I) A^-1

is the minimiser of

    |E H_F - T_F|^2 / n_F + keep |E H_R - H_R|^2 / n_R + damping tau |E - I|^2.

Head by head, of c concepts at once, keep and damping are divided by c: in the few dimensions of a
head, each concept needs as much weight against the neighbours as it has alone. A whole layer has
room for all of them, and there they are not divided.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..eraser import LayerEraser
from ..low_rank import thin_product
from .method import Factors, JoinTask, Setting
from .rows import mixed_rows

KEEP = Setting(
    "keep",
    10.0,
    "Weight of keeping the neighbours (lambda). Higher keeps better and erases less.",
    least=0,
    most=1000,
    step=0.1,
)

DAMPING = Setting(
    "damping",
    0.3,
    "Weight of changing nothing else (mu). Higher is more careful with whatever is neither "
    "concept nor neighbour.",
    least=0,
    most=10,
    above=True,
)


def least_squares_factors(
    forget: Tensor, targets: Tensor, retain: Tensor, keep: float, damping: float, concepts: int
) -> Factors:
    """Thin factors of the solution: E = I - L R, L (d, r), R (r, d).

    E - I = (T_F - H_F)^T (H_F A^-1 / n_F), so the rank is at most n_F.

    Args:
        forget: H_F of shape (n_F, d), float64.
        targets: T_F of shape (n_F, d), float64.
        retain: H_R of shape (n_R, d), float64.
        concepts: What keep and damping are divided by.
    """
    kept, floor = kept_rows(retain, keep / concepts, damping / concepts)
    n = len(forget)
    solved = solve_rows(torch.cat([forget / n**0.5, kept]), floor, n) / n**0.5
    return thin_product((forget - targets).T, solved)


def kept_rows(retain: Tensor, keep: float, damping: float) -> tuple[Tensor, Tensor]:
    """What holds E back: Y and c with Y^T Y + c I = keep H_R^T H_R / n_R + damping tau I."""
    return retain * (keep / len(retain)) ** 0.5, damping * retain.square().mean()


def join_least_squares(task: JoinTask) -> LayerEraser:
    """The eraser of several concepts, from each one's own eraser and rows.

    An eraser gives its moment back: (H_F - T_F)^T H_F / n_F = L R A, with A of its own rows. The
    joint eraser is I - (their weighted mean) A^-1, with A of all rows: what fitting all concepts
    at once finds.

    Raises:
        EraserError: an eraser without the rows it was fitted on.
    """
    assert task.retain is not None  # without it nothing was fitted
    rows = mixed_rows(task.layers, task.shares)
    keep, damping = (float(task.settings[each.name]) for each in (KEEP, DAMPING))
    kept, floor = kept_rows(task.retain.double(), keep, damping)
    base = kept.T @ kept + floor * torch.eye(kept.shape[1], dtype=kept.dtype)
    moments = []
    for layer, share, count in zip(task.layers, task.shares, task.concepts, strict=True):
        own, right = mixed_rows([layer], [1.0]), layer.proj_right.double()
        moments.append(share * (right @ base / count + (right @ own.T) @ own))
    every = torch.linalg.cholesky(base / task.all_concepts + rows.T @ rows)
    solved = torch.cholesky_solve(torch.cat(moments).T, every).T
    stacked = torch.cat([each.proj_left.double() for each in task.layers], 1)
    left, right = thin_product(stacked, solved)
    return LayerEraser(left.float(), right.float(), rows.float())


def solve_rows(rows: Tensor, damping: Tensor, count: int) -> Tensor:
    """The first `count` rows of X (X^T X + c I)^-1 = (X X^T + c I)^-1 X, by the smaller system.

    Args:
        rows: X of shape (n, d), float64.
        damping: c > 0.

    Returns:
        (count, d).
    """
    n, d = rows.shape
    eye = torch.eye(min(n, d), dtype=rows.dtype)
    if d <= n:
        factor = torch.linalg.cholesky(rows.T @ rows + damping * eye)
        return torch.cholesky_solve(rows[:count].T, factor).T
    factor = torch.linalg.cholesky(rows @ rows.T + damping * eye)
    return torch.cholesky_solve(eye[:, :count], factor).T @ rows
