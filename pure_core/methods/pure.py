"""PURE as published: project the concept's directions out, except what its neighbours use.

Moon et al., "PURE", arXiv 2605.25765, step 3: E = I - P_F (I - P_R), with P_F and P_R the
projections onto the leading directions of forget and retain rows. It is the M nearest to I - P_F
with M P_R = P_R (the authors' later manuscript, where the method is called CASE).

That manuscript names ranges of the forget energy, 0.95 to 0.99 on SDXL and 0.50 to 0.99 on FLUX
without retain anchors, 100 rows for every anchor, and a retain energy of its own, whose value it
does not give. The project's small U-Net needs 0.9999 and 0.3, the defaults.

Of several concepts, V_F is one basis over the rows of all.
"""

from __future__ import annotations

from torch import Tensor

from ..bases import fit_basis
from ..eraser import LayerEraser
from .method import ActivationMethod, Factors, JoinTask, LayerRows, Remedies, Setting
from .rows import mixed_rows

FORGET_ENERGY = Setting(
    "forget_energy",
    0.9999,
    "Share of the forget activations' energy (cumulative variance) that is projected out. Higher "
    "removes more directions. The authors use 0.95 to 0.99 on SDXL and 0.50 to 0.99 on FLUX; the "
    "small U-Net of this project needs 0.9999.",
    least=0,
    most=1,
    above=True,
    step=0.0001,
)

RETAIN_ENERGY = Setting(
    "retain_energy",
    0.3,
    "Share of the retain activations' energy that is protected. Where the neighbours' directions "
    "contain the concept, a high value keeps the concept too: lower it if the report says that "
    "little is removed. The authors publish no value; the small U-Net of this project needs 0.3.",
    least=0,
    most=1,
    above=True,
)


def solve(rows: LayerRows, forget_energy: float, retain_energy: float) -> Factors:
    """E = I - P_F (I - P_R) of one layer; without neighbours P_R = 0."""
    retain = rows.retain_rows
    kept = None if retain is None else fit_basis(retain, retain_energy).vectors
    return pure_factors(fit_basis(rows.forget_rows, forget_energy).vectors, kept)


def pure_factors(forget: Tensor, retain: Tensor | None) -> Factors:
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


def join(task: JoinTask) -> LayerEraser:
    """PURE for several concepts: one V_F over all forget rows, protected by one V_R.

    Raises:
        EraserError: an eraser without the rows it was fitted on.
    """
    rows = mixed_rows(task.layers, task.shares)
    kept = None
    if task.retain is not None:
        kept = fit_basis(task.retain, float(task.settings[RETAIN_ENERGY.name])).vectors
    forget = fit_basis(rows, float(task.settings[FORGET_ENERGY.name])).vectors
    left, right = pure_factors(forget, kept)
    return LayerEraser(left.float(), right.float(), rows.float())


METHOD = ActivationMethod(
    name="pure",
    summary="The published projection: removes the concept's directions from keys and values.",
    source="Moon et al., arXiv 2605.25765",
    edit="keys and values",
    settings=(FORGET_ENERGY, RETAIN_ENERGY),
    presets={
        "authors' range": {"forget_energy": 0.99, "retain_energy": 0.7},
        "small U-Net": {"forget_energy": 0.9999, "retain_energy": 0.3},
    },
    solve=solve,
    remedies=Remedies(
        little_removed="The neighbours' directions hold the rest: lower retain_energy (now "
        "{retain_energy}), or use the method ridge.",
        little_kept="Raise retain_energy (now {retain_energy}), or use a lower strength.",
        without_retain="Raise strength or forget_energy (now {forget_energy}).",
    ),
    join=join,
    needs_retain=False,
)
