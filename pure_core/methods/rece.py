"""RECE: erase, look for the vectors that bring the concept back, erase those too.

Gong et al., "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models", arXiv
2407.12383. It starts from UCE's edit. In every round the vector that comes closest to what the
unedited model read,

    c' = argmin sum |W' c' - W c|^2 + m |c'|^2 = (m I + sum W'^T W')^-1 (sum W'^T W) c,

is found over keys and values of all layers, and UCE sends it to the concept's anchor. All edits
stand right of W, so with S = sum W^T W and W' = W E it is c' = (m I + E^T S E)^-1 E^T S c, and S is
all that is needed of the model.

As in the authors' code, the rounds have weights of their own, l = p = 0.1, and the first edit has
those of UCE, whose p they set to 0.1 for styles. Presets are theirs by kind of concept: rounds, m,
and that p. Default: three rounds and m = 0.1, theirs for nudity. Differences: they treat all 77
positions, here `tokens` chooses, and they retain the empty prompt as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..eraser import LayerEraser
from ..low_rank import thin_product
from ..progress import Progress
from ..text import TextTask
from .method import Setting, TextEdit, TextMethod, Value
from .uce import ERASE, PRESERVE, RIDGE, TOKEN_CHOICE, uce_factors, uce_rows

ROUNDS = Setting(
    "rounds",
    3,
    "How often what brings the concept back is erased as well; 0 is UCE alone.",
    least=0,
    most=100,
    step=1,
    advanced=True,
)
RECOVERY = Setting(
    "recovery",
    0.1,
    "What keeps the vectors small that bring the concept back (m).",
    least=0,
    most=100,
    above=True,
    step=0.001,
    advanced=True,
)
ROUND_RIDGE = Setting(
    "round_ridge",
    0.1,
    "Weight of changing nothing at all in the rounds (lambda). Higher is more careful.",
    least=0,
    most=1000,
    above=True,
    step=0.01,
    advanced=True,
)
ROUND_PRESERVE = Setting(
    "round_preserve",
    0.1,
    "Weight of keeping the retain prompts in the rounds (p).",
    least=0,
    most=1000,
    step=0.01,
    advanced=True,
)


def solve(
    task: TextTask,
    progress: Progress,
    erase: float,
    preserve: float,
    ridge: float,
    tokens: str,
    rounds: int,
    recovery: float,
    round_ridge: float,
    round_preserve: float,
) -> TextEdit:
    """One edit for keys and values of all layers."""
    forget, target, kept = uce_rows(task, tokens)
    moment = weight_moment(task, progress)
    first = uce_factors(forget, target, kept, erase=erase, preserve=preserve, ridge=ridge)
    edit = _text(*first)
    edited = [forget]
    for _ in range(int(rounds)):
        found = recovered(forget, edit.P, moment, recovery)
        edited.append(found)
        again = uce_factors(
            found, target, kept, erase=erase, preserve=round_preserve, ridge=round_ridge
        )
        edit = edit.then(_text(*again))
        edit = _text(*thin_product(edit.proj_left, edit.proj_right))
    return TextEdit(edit.proj_left, edit.proj_right, torch.cat(edited))


def weight_moment(task: TextTask, progress: Progress) -> Tensor:
    """S = sum W^T W over keys and values of all layers, (D, D) float64."""
    moment = torch.zeros(task.forget.width, task.forget.width, dtype=torch.float64)
    for done, layer in enumerate(task.model.layers, start=1):
        for role in task.model.roles:
            weight = task.model.weight_of(layer, role).double()
            moment += weight.T @ weight
        progress(done, len(task.model.layers))
    return moment


def recovered(vectors: Tensor, edit: Tensor, moment: Tensor, recovery: float) -> Tensor:
    """c' of every c: the rows (n, D) that the edited model reads most like the unedited ones.

    Args:
        vectors: C (n, D).
        edit: E (D, D) with W' = W E.
        moment: S (D, D).
    """
    seen = edit.T @ moment
    system = seen @ edit + recovery * torch.eye(len(moment), dtype=moment.dtype)
    found: Tensor = torch.linalg.solve(system, seen @ vectors.T)
    return found.T


def _text(left: Tensor, right: Tensor) -> LayerEraser:
    return LayerEraser(left, right, space="text")


def _preset(rounds: int, recovery: float, preserve: float = 1.0) -> dict[str, Value]:
    weights = {each.name: each.default for each in (ERASE, RIDGE, ROUND_RIDGE, ROUND_PRESERVE)}
    return {ROUNDS.name: rounds, RECOVERY.name: recovery, PRESERVE.name: preserve, **weights}


METHOD = TextMethod(
    name="rece",
    summary="UCE, then again for the vectors that bring the concept back.",
    source="Gong et al., arXiv 2407.12383",
    edit="keys and values",
    settings=(
        ERASE,
        PRESERVE,
        RIDGE,
        TOKEN_CHOICE,
        ROUNDS,
        RECOVERY,
        ROUND_RIDGE,
        ROUND_PRESERVE,
    ),
    presets={
        "objects": _preset(1, 0.1),
        "difficult objects": _preset(1, 0.001),
        "styles": _preset(1, 0.001, preserve=0.1),
        "unsafe content": _preset(2, 0.1),
        "nudity": _preset(3, 0.1),
    },
    preset_for_kind={
        "object": "objects",
        "style": "styles",
        "unsafe content": "unsafe content",
    },
    solve=solve,
)
