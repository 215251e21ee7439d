"""PURE as published: project the concept's directions out, except what its neighbours use.

Moon et al., "PURE", arXiv 2605.25765, step 3: E = I - P_F (I - P_R).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..activations import Activations
from ..bases import check_energy, fit_basis
from ..eraser import Edit, Eraser, LayerEraser
from ..errors import EraserError
from ..progress import Progress, no_progress
from .common import fitted, mixed_rows, require_comparable, scaled_rows

EDIT: Edit = "keys and values"


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

    Of several concepts, V_F is one basis over the rows of all.

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
        left, right = pure_factors(fit_basis(rows, forget_energy).vectors, kept)
        layers[layer] = LayerEraser(left.float(), right.float(), scaled_rows(rows))
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
    layers: Sequence[LayerEraser],
    weights: Sequence[float],
    retain: Tensor | None,
    settings: Mapping[str, float | str],
    _concepts: Sequence[int],
) -> LayerEraser:
    """PURE for several concepts: one V_F over all forget rows, protected by one V_R.

    Args:
        weights: Each eraser's share of all forget rows.
        retain: (n_R, d), rows to protect; None for P_R = 0.

    Raises:
        EraserError: an eraser without the rows it was fitted on, or neighbours for erasers that
            were fitted without.
    """
    rows = mixed_rows(layers, weights)
    kept = None
    if retain is not None:
        if "retain_energy" not in settings:
            raise EraserError(
                "The erasers were fitted without neighbours, so there is no retain energy to "
                "protect these with. Disconnect 'retain', or fit the concepts again with it."
            )
        kept = fit_basis(retain, float(settings["retain_energy"])).vectors
    left, right = pure_factors(fit_basis(rows, float(settings["forget_energy"])).vectors, kept)
    return LayerEraser(left.float(), right.float(), rows.float())
