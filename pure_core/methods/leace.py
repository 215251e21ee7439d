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

import math

import torch
from torch import Tensor

from ..low_rank import thin_product
from .method import ActivationMethod, Factors, LayerRows, Remedies, Setting

SHRINKAGE = Setting(
    "shrinkage",
    0.01,
    "Share of the activations' covariance that is replaced by its mean. Higher trusts the measured "
    "covariance less.",
    least=0,
    most=1,
    above=True,
    step=0.001,
    advanced=True,
)


def solve(rows: LayerRows, shrinkage: float) -> Factors:
    """The eraser of one layer."""
    assert rows.retain_rows is not None
    owners = torch.tensor(rows.forget.anchors.owners)
    of_row = owners.repeat_interleave(rows.forget.trajectory.rows_per_anchor)
    forget, retain = rows.forget_rows.double(), rows.retain_rows.double()
    return thin_product(*leace_factors(forget, of_row, retain, shrinkage))


def leace_factors(forget: Tensor, owners: Tensor, retain: Tensor, shrinkage: float) -> Factors:
    """L = S (d, k) and R = (S^T V^-1 S)^+ S^T V^-1 (k, d), so that E = I - L R.

    Args:
        forget: (n_F, d), float64.
        owners: (n_F,), for every row the number of its concept, 0 to k - 1.
        retain: (n_R, d).
    """
    rows = torch.cat([forget, retain])
    labels = torch.zeros(len(rows), int(owners.max()) + 1, dtype=rows.dtype)
    labels[torch.arange(len(forget)), owners] = 1
    centred = rows - rows.mean(dim=0)
    together = centred.T @ (labels - labels.mean(dim=0)) / (len(rows) - 1)
    spread = centred.T @ centred / (len(rows) - 1)
    level = spread.diagonal().mean().clamp(min=1e-30)
    eye = torch.eye(rows.shape[1], dtype=rows.dtype)
    solved = torch.linalg.solve((1 - shrinkage) * spread + shrinkage * level * eye, together)
    explained = together.T @ solved
    noise = 1e-12 * float(labels.var(dim=0).max())  # of labels that no row tells apart
    return together, torch.linalg.pinv(explained, atol=noise, hermitian=True) @ solved.T


METHOD = ActivationMethod(
    name="leace",
    summary="Makes the concept linearly unreadable in the activations; edits values only.",
    source="Belrose et al., arXiv 2306.03819; its place in attention is ours",
    edit="values",
    settings=(SHRINKAGE,),
    solve=solve,
    by_head_up_to=math.inf,
    remedies=Remedies(
        little_removed="LEACE goes no further: raise strength, or use the method ridge.",
        little_kept="Raise shrinkage (now {shrinkage}), or use a lower strength.",
    ),
)
