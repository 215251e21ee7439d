"""LEACE: no linear classifier can tell the concept's rows from its neighbours' any more.

Belrose et al., "LEACE: Perfect linear concept erasure in closed form", arXiv 2306.03819. Of all
affine maps after which rows x and labels z are uncorrelated, LEACE changes the rows least:

    r(x) = x - A B (x - mean),   E = I - A B = I - S (S^T V^-1 S)^+ S^T V^-1,

with V the rows' covariance and S = Cov(x, z). Labels say to which concept a row belongs, neighbours
to none. V is shrunk towards a multiple of the identity, by `shrinkage`; without correlation between
E x and z it leaves whatever V is.

Its place in attention is ours: rows are captured activations, values are edited. A value projection
has no bias, so E alone is used, without the part A B mean: what is guarded is the same, but the
mean moves. The package concept-erasure estimates the shrinkage; here it is set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..activations import Activations
from ..eraser import Edit, Eraser, LayerEraser
from ..errors import FitError
from ..progress import Progress, no_progress
from ..thin import thin_product
from .common import check_number, fitted, require_comparable, scaled_rows

EDIT: Edit = "values"


@torch.no_grad()
def fit_leace(
    forget: Activations,
    retain: Activations | None,
    shrinkage: float = 0.01,
    *,
    progress: Progress = no_progress,
) -> Eraser:
    """Fit LEACE in every layer.

    Args:
        forget: Activations of the concepts' prompts.
        retain: Activations of their neighbours' prompts, captured in the same way.
        shrinkage: Share of the covariance that is replaced by its mean times the identity, in
            (0, 1].

    Raises:
        FitError: no retain rows, shrinkage out of its range, or activations captured in different
            ways.
    """
    if retain is None:
        raise FitError(
            "LEACE makes the concept look like its neighbours and needs their activations: connect "
            "'retain', or use the method 'pure'."
        )
    check_number("shrinkage", shrinkage, above=0, most=1)
    require_comparable(forget, retain)
    sizes = [count * forget.settings.per_prompt for count in forget.groups]
    layers = {}
    for done, (name, rows) in enumerate(forget.rows.items(), start=1):
        left, right = leace_factors(rows.double(), sizes, retain.rows[name].double(), shrinkage)
        left, right = thin_product(left, right)
        layers[name] = LayerEraser(left.float(), right.float(), scaled_rows(rows))
        progress(done, len(forget.rows))
    return fitted("leace", {"shrinkage": shrinkage}, EDIT, layers, forget=forget, retain=retain)


def leace_factors(
    forget: Tensor, sizes: list[int], retain: Tensor, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """L = S (d, k) and R = (S^T V^-1 S)^+ S^T V^-1 (k, d), so that E = I - L R.

    Args:
        forget: (n_F, d), float64, one concept's rows after the other's.
        sizes: How many rows each of the k concepts has.
        retain: (n_R, d).
    """
    rows = torch.cat([forget, retain])
    labels = torch.zeros(len(rows), len(sizes), dtype=rows.dtype)
    owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels[torch.arange(len(forget)), owner] = 1
    centred = rows - rows.mean(dim=0)
    together = centred.T @ (labels - labels.mean(dim=0)) / (len(rows) - 1)
    spread = centred.T @ centred / (len(rows) - 1)
    level = spread.diagonal().mean().clamp(min=1e-30)
    eye = torch.eye(rows.shape[1], dtype=rows.dtype)
    solved = torch.linalg.solve((1 - shrinkage) * spread + shrinkage * level * eye, together)
    explained = together.T @ solved
    noise = 1e-12 * float(labels.var(dim=0).max())  # of labels that no row tells apart
    return together, torch.linalg.pinv(explained, atol=noise, hermitian=True) @ solved.T
