"""The ridge eraser (ours): the concept's rows go where its neighbours' rows are.

With H_F the forget rows, H_R the retain rows and T_F, for each forget row, the mean of the
retain prompts at the same latent and step:

    A = H_F^T H_F / n_F + keep H_R^T H_R / n_R + damping tau I,  tau = |H_R|^2 / (n_R d)
    E = (T_F^T H_F / n_F + keep H_R^T H_R / n_R + damping tau I) A^-1

which is the minimiser of

    |E H_F - T_F|^2 / n_F + keep |E H_R - H_R|^2 / n_R + damping tau |E - I|^2.

E - I is linear in T_F - H_F, so aiming `overshoot` times as far as the neighbours' mean scales it.
Beyond 1 makes up for what this fit cannot see: rows are means over positions, and damping and
keeping stop the rows short of their targets.

It edits the values only: E is fitted in their space, and the attention stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..activations import Activations
from ..eraser import Edit, Eraser, LayerEraser
from ..errors import FitError
from ..progress import Progress, no_progress
from ..thin import thin_product
from .common import (
    check_number,
    fitted,
    mixed_rows,
    neighbour_means,
    require_comparable,
    scaled_rows,
)

EDIT: Edit = "values"


@torch.no_grad()
def fit_ridge(
    forget: Activations,
    retain: Activations | None,
    keep: float = 1.0,
    damping: float = 0.01,
    overshoot: float = 1.0,
    *,
    progress: Progress = no_progress,
) -> Eraser:
    """Fit the ridge eraser in every layer.

    Args:
        forget: Activations of the concept's prompts.
        retain: Activations of its neighbours' prompts, captured in the same way: their mean is
            where the concept is sent.
        keep: lambda >= 0. Higher keeps the neighbours better and erases less.
        damping: mu > 0. Higher changes less in directions that few rows use.
        overshoot: How far towards the neighbours' mean the forget rows are sent, > 0; 1 is there.

    Raises:
        FitError: no retain rows, settings out of range, activations captured in different ways,
            or a layer whose retain rows are all zero.
    """
    retain = require_neighbours("ridge", forget, retain)
    check_number("keep", keep, least=0)
    check_number("damping", damping, above=0)
    check_number("overshoot", overshoot, above=0)
    layers = {}
    for done, (layer, rows) in enumerate(forget.rows.items(), start=1):
        targets = neighbour_means(forget, retain, layer)
        left, right = ridge_factors(
            rows.double(), targets, retain.rows[layer].double(), keep, damping
        )
        layers[layer] = LayerEraser((overshoot * left).float(), right.float(), scaled_rows(rows))
        progress(done, len(forget.rows))
    settings: dict[str, float | str] = {"keep": keep, "damping": damping, "overshoot": overshoot}
    return fitted("ridge", settings, EDIT, layers, forget=forget, retain=retain)


def require_neighbours(method: str, forget: Activations, retain: Activations | None) -> Activations:
    """The retain rows, if they can be what a concept is sent to.

    Raises:
        FitError: there are none, they were captured in another way, or a layer's are all zero.
    """
    if retain is None:
        raise FitError(
            f"The {method} method sends the concept to its neighbours and needs their "
            "activations: connect 'retain', or use the method 'pure'."
        )
    require_comparable(forget, retain)
    for layer, rows in retain.rows.items():
        if not bool(rows.any()):
            raise FitError(f"Layer {layer}: every retain activation is zero, nothing to fit to.")
    return retain


def ridge_factors(
    forget: Tensor,
    targets: Tensor,
    retain: Tensor,
    keep: float,
    damping: float,
) -> tuple[Tensor, Tensor]:
    """Thin factors of the ridge solution: E = I - L R, L (d, r), R (r, d).

    E - I = (T_F - H_F)^T (H_F A^-1 / n_F), so the rank is at most n_F.

    Args:
        forget: H_F of shape (n_F, d), float64.
        targets: T_F of shape (n_F, d), float64.
        retain: H_R of shape (n_R, d), float64.
    """
    kept, floor = kept_rows(retain, keep, damping)
    n = len(forget)
    solved = solve_rows(torch.cat([forget / n**0.5, kept]), floor, n) / n**0.5
    return thin_product((forget - targets).T, solved)


def kept_rows(retain: Tensor, keep: float, damping: float) -> tuple[Tensor, Tensor]:
    """What holds E back: Y and c with Y^T Y + c I = keep H_R^T H_R / n_R + damping tau I."""
    return retain * (keep / len(retain)) ** 0.5, damping * retain.square().mean()


@torch.no_grad()
def join_ridge(
    layers: Sequence[LayerEraser],
    weights: Sequence[float],
    retain: Tensor | None,
    settings: Mapping[str, float | str],
    _concepts: Sequence[int],
) -> LayerEraser:
    """The ridge eraser of several concepts, from each one's own eraser and rows.

    An eraser gives its moment back: (H_F - T_F)^T H_F / n_F = L R A, with A of its own rows. The
    joint eraser is I - (their weighted mean) A^-1, with A of all rows: what `fit_ridge` finds for
    all concepts at once.

    Args:
        weights: Each eraser's share of all forget rows.
        retain: (n_R, d), the rows that every concept was fitted with.

    Raises:
        EraserError: an eraser without the rows it was fitted on.
    """
    assert retain is not None  # without it nothing was fitted
    rows = mixed_rows(layers, weights)
    kept, floor = kept_rows(retain.double(), float(settings["keep"]), float(settings["damping"]))
    base = kept.T @ kept + floor * torch.eye(kept.shape[1], dtype=kept.dtype)
    moments = []
    for layer, share in zip(layers, weights, strict=True):
        own, right = mixed_rows([layer], [1.0]), layer.proj_right.double()
        moments.append(share * (right @ base + (right @ own.T) @ own))
    every = torch.linalg.cholesky(base + rows.T @ rows)
    solved = torch.cholesky_solve(torch.cat(moments).T, every).T
    left, right = thin_product(torch.cat([each.proj_left.double() for each in layers], 1), solved)
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
