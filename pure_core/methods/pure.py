"""PURE as published: project the concept's directions out, except what its neighbours use.

Moon et al., "PURE", arXiv 2605.25765, step 3: E = I - P_F (I - P_R).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..activations import Activations
from ..bases import check_energy, fit_basis
from ..eraser import Edit, Eraser, LayerEraser, stack_rows
from ..errors import EraserError
from ..progress import Progress, no_progress
from .common import fitted, forget_rows, require_comparable

EDIT: Edit = "keys and values"

SHARED = 1e-5
"""Angle, in radians, below which a direction of one concept counts as another's too. Bases that
were stored in float32 are known to about 1e-7."""


@torch.no_grad()
def fit_pure(
    forget: Activations,
    retain: Activations | None,
    forget_energy: float = 0.99,
    retain_energy: float = 0.7,
    *,
    progress: Progress = no_progress,
) -> Eraser:
    """Fit E = I - P_F (I - P_R) in every layer.

    Of several concepts, each gets the basis it would have alone, and V_F spans all of them.

    Args:
        forget: Activations of the concepts' prompts.
        retain: Activations of its neighbours' prompts. Without them P_R = 0, and E removes
            what the concept shares with everything else too.
        forget_energy: Share of the forget rows' energy that V_F holds, in (0, 1].
        retain_energy: Share of the retain rows' energy that V_R holds, in (0, 1]. The higher,
            the more of the concept is kept with its neighbours.

    Raises:
        FitError: energy outside (0, 1], or activations captured in different ways.
    """
    check_energy("forget_energy", forget_energy)
    check_energy("retain_energy", retain_energy)
    require_comparable(forget, retain)
    layers = {}
    for done, (layer, rows) in enumerate(forget.rows.items(), start=1):
        kept = None if retain is None else fit_basis(retain.rows[layer], retain_energy).vectors
        own = [fit_basis(part, forget_energy).vectors for part in forget.by_concept(rows)]
        basis, _ = union(own)
        left, right = pure_factors(basis, kept)
        weighted = forget_rows(forget, rows)
        layers[layer] = LayerEraser(left.float(), right.float(), stack_rows([weighted]))
        progress(done, len(forget.rows))
    settings: dict[str, float | str] = {"forget_energy": forget_energy}
    if retain is not None:
        settings["retain_energy"] = retain_energy
    return fitted("pure", settings, EDIT, layers, forget=forget, retain=retain)


def pure_factors(forget: Tensor, retain: Tensor | None) -> tuple[Tensor, Tensor]:
    """L = V_F of shape (d, r) and R = V_F^T (I - P_R) of shape (r, d), float64.

    P_F (I - P_R) = V_F V_F^T (I - V_R V_R^T), so L R is the published edit with rank r <= r_F
    and E V_R = V_R.

    Args:
        forget: V_F (d, r_F), orthonormal, float64.
        retain: V_R (d, r_R), orthonormal, float64, or None for P_R = 0.
    """
    left, right = forget, forget.T
    if retain is not None:
        right = right - (right @ retain) @ retain.T
    return left, right.contiguous()


@torch.no_grad()
def join_pure(
    layers: Sequence[LayerEraser], retain: Tensor | None, settings: Mapping[str, float | str]
) -> LayerEraser:
    """PURE for several concepts, from each one's own eraser: one basis over all of them.

    A concept's L_i is its V_F, so V_F of all is an orthonormal basis of the L_i together.

    Args:
        retain: (n_R, d), rows to protect; None if every eraser was fitted with the same ones. Then
            V_F^T (I - P_R) follows from the L_i^T (I - P_R) that the erasers hold as R_i.
    """
    left, mixing = union([layer.proj_left.double() for layer in layers])
    if retain is None:
        right = mixing.T @ torch.cat([layer.proj_right.double() for layer in layers])
    elif "retain_energy" not in settings:
        raise EraserError(
            "The erasers were fitted without neighbours, so there is no retain energy to protect "
            "these with. Disconnect 'retain', or fit the concepts again with it."
        )
    else:
        kept = fit_basis(retain, float(settings["retain_energy"])).vectors
        left, right = pure_factors(left, kept)
    return LayerEraser(left.float(), right.float(), stack_rows([each.rows for each in layers]))


def union(bases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of all spaces together, and how it is made of theirs.

    Directions that the spaces share to within `SHARED` are counted once.

    Args:
        bases: V_i (d, r_i) each, orthonormal, float64.

    Returns:
        V (d, r) and M (sum of r_i, r) with V = [V_1, V_2, ..] M.
    """
    together = torch.cat(list(bases), dim=1)
    d, count = together.shape
    if len(bases) == 1:
        return together, torch.eye(count, dtype=together.dtype)
    if count < d:
        frame, inner = torch.linalg.qr(together)
        directions, sizes, mixed = torch.linalg.svd(inner)
        kept = sizes > SHARED
        return frame @ directions[:, kept], mixed.T[:, kept] / sizes[kept]
    squares, directions = torch.linalg.eigh(together @ together.T)
    kept = squares > SHARED**2
    basis = directions[:, kept].flip(1)
    return basis, together.T @ basis / squares[kept].flip(0)
