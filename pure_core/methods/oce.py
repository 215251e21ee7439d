"""OCE: turn the values so that the concept's direction goes away and angles stay.

Sun et al., "Orthogonal Concept Erasure for Diffusion Models", arXiv 2605.28902. Every layer's value
projection is multiplied by the rotation R = U V^T from the singular value decomposition of

    M = -e G (I - G*) + g W C_g W^T + p sum (W c_p)(W c_p)^T + l W W^T,

with G and G* the projections onto the values W c of concept and anchors, c_p the retained prompts'
last tokens and C_g the second moment of ordinary prompts' tokens. Only the ratios matter: here
l = 1, `rotation` = e / l, `general` = g / l and `preserve_values` = p / l. The authors' differ a
lot between kinds of concepts: defaults are those for objects, presets those for all kinds and for
Flux.

Where all text enters by one map, as in Flux, R turns what that map puts out, without its bias:
W' = R W. That is the authors' form, which edits this one matrix, at the last token of T5 before its
end; the pooled CLIP vector's map is an option that they leave off. Their demonstration there has
e = 1000, g = 10, p = 5 and l = 10. C_g is of all tokens but the padding.

As in the authors' code: values only, and where det R < 0 the last column is negated. Differences:
their ordinary prompts are 30 000 captions of photographs, here the retain prompts, with start and
end tokens; G* is a basis of the anchors' numerical rank, because repeated anchors would give
arbitrary directions; and where a layer is wider than the text, R turns only the span of its
values, because M says nothing about the rest. R - I is dense in that span and kept at its numerical
rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..bases import fit_basis
from ..low_rank import thin_product
from ..text import TextTask
from .method import Setting, TextEdit, TextMethod

ROTATION = Setting(
    "rotation",
    200.0,
    "Weight of turning the concept away (e / l).",
    least=0,
    most=1e6,
    above=True,
    step=1,
    advanced=True,
)
GENERAL = Setting(
    "general",
    1.0,
    "Weight of keeping what ordinary prompts read (g / l).",
    least=0,
    most=1e6,
    step=0.1,
    advanced=True,
)
PRESERVE_VALUES = Setting(
    "preserve_values",
    0.0,
    "Weight of keeping the values of the retain prompts (p / l). The authors use 0 for objects and "
    "nudity, 0.1 for styles, 0.5 for people.",
    least=0,
    most=1000,
    step=0.1,
    advanced=True,
)


def solve_layer(
    task: TextTask, layer: str, rotation: float, general: float, preserve_values: float
) -> TextEdit:
    """The rotation of one layer's values."""
    assert task.retain is not None
    read = task.retain.read
    weight = task.model.weight_of(layer, "values").double()
    forget = task.forget.last @ weight.T
    turned = oce_rotation(
        weight,
        forget,
        task.anchor.last @ weight.T,
        task.retain.last @ weight.T,
        read.T @ read / len(read),
        rotation=rotation,
        general=general,
        preserve=preserve_values,
    )
    eye = torch.eye(len(weight), dtype=torch.float64)
    return TextEdit(*thin_product(eye - turned, eye), forget)


def oce_rotation(
    weight: Tensor,
    forget: Tensor,
    anchor: Tensor,
    kept: Tensor,
    ordinary: Tensor,
    *,
    rotation: float,
    general: float,
    preserve: float,
) -> Tensor:
    """R (d, d) of one layer.

    Args:
        weight: W (d, D), float64.
        forget: Values W c of the concept (n, d).
        anchor: Those of the anchors (k, d).
        kept: Those of the retained prompts (m, d).
        ordinary: C_g (D, D).
    """
    frame = fit_basis(weight.T, 1.0).vectors  # nothing happens outside the values' span
    if frame.shape[1] == len(weight):
        frame = torch.eye(len(weight), dtype=weight.dtype)
    inner, eye = frame.T @ weight, torch.eye(frame.shape[1], dtype=weight.dtype)
    concept, there, kept = (_projection(forget @ frame), _projection(anchor @ frame), kept @ frame)
    moment = inner @ (general * ordinary + torch.eye(len(ordinary), dtype=weight.dtype)) @ inner.T
    objective = moment + preserve * kept.T @ kept - rotation * concept @ (eye - there)
    left, _, right = torch.linalg.svd(objective)
    turned: Tensor = left @ right
    if torch.linalg.det(turned) < 0:
        turned[:, -1] = -turned[:, -1]
    return torch.eye(len(weight), dtype=weight.dtype) + frame @ (turned - eye) @ frame.T


def _projection(values: Tensor) -> Tensor:
    """The projection (d, d) onto the span of the rows' directions."""
    sizes = values.norm(dim=1, keepdim=True).clamp(min=1e-30)
    vectors = fit_basis(values / sizes, 1.0).vectors
    return vectors @ vectors.T


METHOD = TextMethod(
    name="oce",
    summary="Rotates the values so that the concept's direction goes away and angles stay.",
    source="Sun et al., arXiv 2605.28902",
    edit="values",
    settings=(ROTATION, GENERAL, PRESERVE_VALUES),
    presets={
        "objects": {"rotation": 200.0, "general": 1.0, "preserve_values": 0.0},
        "styles": {"rotation": 50.0, "general": 1.0, "preserve_values": 0.1},
        "nudity": {"rotation": 300.0, "general": 2.0, "preserve_values": 0.0},
        "ten people": {"rotation": 350.0, "general": 5.0, "preserve_values": 0.5},
        "Flux": {"rotation": 100.0, "general": 1.0, "preserve_values": 0.5},
    },
    preset_for_kind={
        "object": "objects",
        "style": "styles",
        "person": "ten people",
        "unsafe content": "nudity",
    },
    solve_layer=solve_layer,
    space="activations",
    needs_retain=True,
)
