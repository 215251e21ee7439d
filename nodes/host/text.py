"""What text-side methods need of ComfyUI: encoded prompts and the model's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ...pure_core.errors import FitError
from ...pure_core.text import TextModel, TextTask, TextVectors, repeated
from .conditioning import encode
from .fingerprint import fingerprint, sketches
from .layers import ModelError, cross_attention_layers, display_name, require_plain_weights, widths
from .patch import effective_weight


def text_task(
    model: ModelPatcher,
    clip: CLIP,
    concepts: Sequence[Sequence[str]],
    retain: Sequence[str],
    anchor: Sequence[str],
) -> TextTask:
    """Everything that a text-side method is fitted on.

    Args:
        concepts: Of every concept its prompts.
        retain: Prompts to keep, may be empty.
        anchor: What the prompts become: one for all, or one for each; none for the empty prompt.

    Raises:
        ModelError: no cross-attention layers, quantised weights, no text encoder, or one whose
            vectors are not what the layers read.
        FitError: another number of anchors than of prompts, or a prompt that is too long.
    """
    layers = cross_attention_layers(model)
    require_plain_weights(layers)
    forget = [prompt for prompts in concepts for prompt in prompts]
    vectors = _encode(clip, forget, tuple(map(len, concepts)))
    wanted = set(widths(layers, "text").values())
    if wanted != {vectors.width}:
        raise ModelError(
            f"clip: its vectors have {vectors.width} numbers and the model reads {sorted(wanted)}. "
            "Connect the text encoder that belongs to the model."
        )
    by_name = {layer.name: layer for layer in layers}

    def weight_of(name: str, projection: str) -> Tensor:
        return effective_weight(model, by_name[name].key(projection))

    return TextTask(
        forget=vectors,
        anchor=repeated(_encode(clip, list(anchor) or [""]), len(forget)),
        retain=_encode(clip, retain) if retain else None,
        empty=_encode(clip, [""]),
        model=TextModel(
            tuple(by_name),
            weight_of,
            display_name(model),
            fingerprint(model),
            sketches(model, layers),
        ),
    )


@torch.no_grad()
def _encode(clip: CLIP, prompts: Sequence[str], concepts: tuple[int, ...] = ()) -> TextVectors:
    vectors = [encode(clip, prompt).tokens[0].to("cpu", torch.float64) for prompt in prompts]
    ends = [_end(clip, prompt) for prompt in prompts]
    return TextVectors(tuple(prompts), tuple(vectors), tuple(ends), concepts)


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
