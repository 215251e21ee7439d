"""PURE as published: project the concept's directions out, except what its neighbours use.

Moon et al., "PURE", arXiv 2605.25765, step 3: E = I - P_F (I - P_R).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..activations import Activations
from ..bases import Basis, check_energy, fit_basis
from ..eraser import Edit, Eraser, LayerEraser
from .common import provenance, require_comparable

EDIT: Edit = "keys and values"


@torch.no_grad()
def fit_pure(
    forget: Activations,
    retain: Activations | None,
    forget_energy: float = 0.99,
    retain_energy: float = 0.7,
) -> Eraser:
    """Fit E = I - P_F (I - P_R) in every layer.

    Args:
        forget: Activations of the concept's prompts.
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
    for layer, rows in forget.rows.items():
        kept = None if retain is None else fit_basis(retain.rows[layer], retain_energy)
        left, right = pure_factors(fit_basis(rows, forget_energy), kept)
        layers[layer] = LayerEraser(left.float(), right.float())
    settings: dict[str, float | str] = {"forget_energy": forget_energy}
    if retain is not None:
        settings["retain_energy"] = retain_energy
    return Eraser(layers, provenance("pure", settings, EDIT, forget, retain))


def pure_factors(forget: Basis, retain: Basis | None) -> tuple[Tensor, Tensor]:
    """L = V_F of shape (d, r) and R = V_F^T (I - P_R) of shape (r, d), float64.

    P_F (I - P_R) = V_F V_F^T (I - V_R V_R^T), so L R is the published edit with rank r <= r_F
    and E V_R = V_R.
    """
    left, right = forget.vectors, forget.vectors.T
    if retain is not None:
        right = right - (right @ retain.vectors) @ retain.vectors.T
    return left, right.contiguous()
