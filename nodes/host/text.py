"""What text-side methods need of ComfyUI: encoded prompts and the model's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ...pure_core.anchors import AnchorSet
from ...pure_core.errors import FitError
from ...pure_core.text import TextModel, TextTask, TextVectors, repeated
from .conditioning import encode
from .identity import identity
from .sites import EffectiveWeights, ModelError, Sites


def text_task(
    model: ModelPatcher,
    clip: CLIP,
    forget: AnchorSet,
    retain: AnchorSet,
    replacements: Sequence[str],
) -> TextTask:
    """Everything that a text-side method is fitted on.

    Args:
        retain: What to keep, may be empty.
        replacements: Prompts that the forget prompts become: one for all, or one for each; none
            for the empty prompt.

    Raises:
        ModelError: a model of no known family, quantised weights, no text encoder, or one whose
            vectors are not what the layers read.
        FitError: another number of replacements than of prompts, or a prompt that is too long.
    """
    sites = Sites.of(model)
    sites.require_plain_weights()
    vectors = _encode(clip, forget)
    wanted = set(sites.widths(text=True).values())
    if wanted != {vectors.width}:
        raise ModelError(
            f"clip: its vectors have {vectors.width} numbers and the model reads {sorted(wanted)}. "
            "Connect the text encoder that belongs to the model."
        )
    become = _encode(clip, AnchorSet.written([[each] for each in replacements or [""]]))
    return TextTask(
        forget=vectors,
        anchor=repeated(become, len(forget)),
        retain=_encode(clip, retain) if retain else None,
        empty=_encode(clip, AnchorSet.written([[""]])),
        model=TextModel(
            tuple(site.name for site in sites.sites),
            EffectiveWeights(model, sites).weight,
            identity(model, sites),
        ),
    )


@torch.no_grad()
def _encode(clip: CLIP, anchors: AnchorSet) -> TextVectors:
    vectors = [encode(clip, each.prompt).tokens[0].to("cpu", torch.float64) for each in anchors]
    ends = [_end(clip, each.prompt) for each in anchors]
    return TextVectors(anchors, tuple(vectors), tuple(ends))


def _end(clip: CLIP, prompt: str) -> int:
    """Where the prompt's end token stands: where the padding of the empty prompt begins.

    Text encoders that are read side by side share one count of tokens, so the first speaks for
    all. Tokens of a textual inversion are vectors.

    Raises:
        FitError: a prompt that is longer than the text encoder reads at once.
    """
    rows, (empty, *_) = (next(iter(clip.tokenize(text).values())) for text in (prompt, ""))
    if len(rows) > 1:
        raise FitError(
            f"'{prompt[:40]}...' is longer than the text encoder reads at once. Text-side methods "
            "need prompts of at most 75 tokens: shorten it."
        )
    places = [i for i, (token, *_) in enumerate(rows[0]) if i and isinstance(token, int)]
    return next(i for i in places if rows[0][i][0] == empty[1][0])
