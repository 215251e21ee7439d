"""TRCE, its first stage: the concept's prompts end as the same prompts about the anchor do.

Chen et al., "TRCE: Towards Reliable Malicious Concept Erasure in Text-to-Image Diffusion Models",
arXiv 2503.07389. The end token of a prompt has heard all of it, a concept in other words too. With
c the concept's vectors at some places of each of n prompts, c* the anchor's at the same places, w
the places' weights and c_p all tokens of each of m ordinary captions,

    A = sum w c c^T / n + s sum c_p c_p^T / m
    W' = (sum w W c* c^T / n + s sum W c_p c_p^T / m) A^-1,

the captions being in both sums. W stands left of everything, so W' = W E with one E for keys and
values of all layers: W' - W = W sum w (c* - c) c^T A^-1 / n.

Four places have a weight of their own: the start token, the first end token, the last one and the
name. The padding of CLIP repeats the end token, so the last one stands for all, and its weight is
multiplied by how many they are. As in the authors' code, the name's last token goes to the anchor's
last vector, and the others to their like. Their settings, which are the presets, use the first end
token alone, with s = 0.01 for sexual content (the default) and 0.02 for unsafe content of many
kinds. "all places" weighs each place by 1, the default of their function.

Differences. They keep 30 000 captions of photographs by sums that are not with their code, and no
neighbours: here it is a short list of our own (`captions.py`), all tokens of each, without those
that name the concept, and the retain prompts. They erase twenty words with fifteen phrasings each,
here the prompts are those given. They find the end token by counting words, we count tokens. A^-1
exists there because the captions are many: here A has a floor of a millionth of its mean on top,
which W' = W minimises too, so that directions that nothing reads stay. The second stage, which
trains the model, is not here.

A text encoder without a start token (T5) has no such row. What stands for the last end token is the
last vector there is: padding of T5, the end of a language model's template, and no row where
nothing follows on the words' end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import FitError
from ..progress import Progress
from ..text import TextTask
from .captions import CAPTIONS
from .method import Factors, Setting, TextEdit, TextMethod, Value

FLOOR = 1e-6
"""Of the mean eigenvalue of A, added to all."""


def _weight(name: str, default: float, of: str) -> Setting:
    return Setting(name, default, of, 0, 1000, step=0.1, advanced=True)


START = _weight("start_weight", 0.0, "Weight of moving the start token, where there is one.")
END = _weight(
    "end_weight", 1.0, "Weight of moving the end token, which has heard the whole prompt."
)
PADDING = _weight(
    "padding_weight",
    0.0,
    "Weight of moving the last token of the padding; it counts as often as there is padding.",
)
NAME = _weight("name_weight", 0.0, "Weight of moving the last word's last token.")
CAPTION_WEIGHT = Setting(
    "caption_weight",
    0.01,
    "Weight of keeping ordinary captions and the retain prompts (s). Higher keeps better and "
    "erases less.",
    least=0,
    most=1000,
    step=0.001,
)


def solve(
    task: TextTask,
    progress: Progress,
    start_weight: float,
    end_weight: float,
    padding_weight: float,
    name_weight: float,
    caption_weight: float,
) -> TextEdit:
    """One edit for keys and values of all layers.

    Raises:
        FitError: nothing to keep, or no place with a weight.
    """
    forget, target, weights = trce_rows(
        task, start=start_weight, end=end_weight, padding=padding_weight, name=name_weight
    )
    shares = weights / len(task.forget.prompts)
    factors = trce_factors(forget, target, shares, kept_prompts(task), caption_weight)
    progress(1, 1)
    return TextEdit(*factors, forget)


def trce_rows(
    task: TextTask, *, start: float, end: float, padding: float, name: float
) -> tuple[Tensor, Tensor, Tensor]:
    """C and C* (k, D) side by side, of all prompts, and their weights w (k,), each above 0.

    Raises:
        FitError: no weight is above 0, of those that the text encoder has a place for.
    """
    rows: list[tuple[float, Tensor, Tensor]] = []
    prompts = zip(
        task.forget.vectors, task.forget.ends, task.anchor.vectors, task.anchor.ends, strict=True
    )
    for here, own, there, stop in prompts:
        if task.forget.start:
            rows.append((start, here[0], there[0]))
        rows.append((end, here[own], there[stop]))
        rows.append((padding * (len(here) - 1 - own), here[-1], there[-1]))
        rows.append((name, here[own - 1], there[-1]))
    rows = [each for each in rows if each[0] > 0]
    if not rows:
        raise FitError(
            f"{START.name}, {END.name}, {PADDING.name}, {NAME.name}: expected one above 0, of a "
            f"token that this text encoder gives, got none. Set {END.name} to 1."
        )
    weights, forget, target = zip(*rows, strict=True)
    return torch.stack(forget), torch.stack(target), torch.tensor(weights, dtype=torch.float64)


def kept_prompts(task: TextTask) -> list[Tensor]:
    """C_p, (T, D) of each: captions that do not name the concept, and the retain prompts.

    Raises:
        FitError: there are none.
    """
    kept: list[Tensor] = []
    if task.ordinary is not None:
        names = "|".join(map(re.escape, task.forget.anchors.concepts))
        named = re.compile(rf"\b({names})\b", re.IGNORECASE)
        pairs = zip(task.ordinary.prompts, task.ordinary.vectors, strict=True)
        kept += [vectors for prompt, vectors in pairs if not named.search(prompt)]
    if task.retain is not None:
        kept += task.retain.vectors
    if not kept:
        raise FitError(
            "retain: the method trce keeps ordinary captions and what is given there, expected "
            "some prompts, got none."
        )
    return kept


def trce_factors(
    forget: Tensor,
    target: Tensor,
    shares: Tensor,
    kept: Sequence[Tensor],
    caption_weight: float,
) -> Factors:
    """L (D, k) and R (k, D) with E = I - L R.

    Args:
        forget: C (k, D), a vector c a row, float64.
        target: C* (k, D).
        shares: w / n (k,).
        kept: C_p, of every prompt (T, D).
    """
    share = caption_weight / len(kept)
    moment = forget.T @ (shares[:, None] * forget)
    for tokens in kept:  # one by one: together they can be large
        moment += share * tokens.T @ tokens
    moment += FLOOR * moment.trace() / len(moment) * torch.eye(len(moment), dtype=moment.dtype)
    solved = torch.cholesky_solve(forget.T, torch.linalg.cholesky(moment)).T
    return (forget - target).T * shares, solved


def _preset(caption_weight: float, **weights: float) -> dict[str, Value]:
    places = {each.name: each.default for each in (START, END, PADDING, NAME)}
    return {**places, **weights, CAPTION_WEIGHT.name: caption_weight}


METHOD = TextMethod(
    name="trce",
    summary="Moves how the concept's prompts end to how the anchor's do, by least squares that "
    "keep ordinary captions.",
    source="Chen et al., arXiv 2503.07389, stage 1",
    edit="keys and values",
    settings=(CAPTION_WEIGHT, START, END, PADDING, NAME),
    presets={
        "sexual content": _preset(0.01),
        "unsafe content": _preset(0.02),
        "all places": _preset(0.01, **{each.name: 1.0 for each in (START, END, PADDING, NAME)}),
    },
    preset_for_kind={"unsafe content": "unsafe content"},
    solve=solve,
    captions=CAPTIONS,
)
