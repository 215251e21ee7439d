"""What methods by text need of ComfyUI: encoded prompts and the model's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from einops import rearrange
from torch import Tensor

from ...pure_core.anchors import AnchorSet
from ...pure_core.errors import FitError
from ...pure_core.text import TextModel, TextTask, TextVectors, repeated
from .conditioning import encode_anchors
from .identity import identity
from .sites import EffectiveWeights, Sites


def text_task(
    model: ModelPatcher,
    clip: CLIP,
    forget: AnchorSet,
    retain: AnchorSet,
    replacements: Sequence[str],
) -> TextTask:
    """Everything that a method by text is fitted on.

    Args:
        retain: What to keep, may be empty.
        replacements: Prompts that the forget prompts become: one for all, or one for each; none
            for the empty prompt.

    Raises:
        ModelError: a model of no known family, quantised weights, no text encoder, or one whose
            vectors are not what the layers read.
        PromptError: a prompt or a textual inversion of which the text encoder reads nothing.
        FitError: another number of replacements than of prompts, or a prompt that is too long.
    """
    sites = Sites.of(model)
    sites.require_plain_weights()
    become = AnchorSet.written([[each] for each in replacements or [""]])
    vectors = _encode(clip, forget, sites)
    return TextTask(
        forget=vectors,
        anchor=repeated(_encode(clip, become, sites), len(forget)),
        retain=_encode(clip, retain, sites) if retain else None,
        empty=_encode(clip, AnchorSet.written([[""]]), sites),
        model=TextModel(
            tuple(sites.widths(text=True)),
            EffectiveWeights(model, sites).weight,
            identity(model, sites, clip),
            at_entry=sites.entry is not None,
        ),
    )


@torch.no_grad()
def _encode(clip: CLIP, anchors: AnchorSet, sites: Sites) -> TextVectors:
    encoded = encode_anchors(clip, anchors, sites)
    tokens = [_tokens(clip, each.prompt) for each in anchors]
    ends = [_end(clip, each.prompt) for each in anchors]
    vectors = [
        _one_per_token(each.tokens[0].to("cpu", torch.float64), count, anchor.prompt)
        for each, count, anchor in zip(encoded, tokens, anchors, strict=True)
    ]
    return TextVectors(anchors, tuple(vectors), tuple(ends))


def _tokens(clip: CLIP, prompt: str) -> int:
    """How many tokens a prompt has, padding included."""
    rows = next(iter(clip.tokenize(prompt).values()))
    return sum(map(len, rows))


def _one_per_token(vectors: Tensor, tokens: int, prompt: str) -> Tensor:
    """The vectors (T, D) of T tokens.

    Some patches of the text encoder give several to each token, one after the other, for example
    one for the keys and one for the values. They differ only where a word is weighted below 0.

    Raises:
        FitError: they differ, or belong to no token.
    """
    found = len(vectors)
    if found == tokens:
        return vectors
    if found % tokens == 0:
        each = rearrange(vectors, "(token copy) d -> copy token d", token=tokens)
        if all(torch.equal(each[0], other) for other in each):
            return each[0]
    raise FitError(
        f"clip: it gives {found} vectors for the {tokens} tokens of '{prompt[:40]}', expected one "
        "for each, or the same several times. A patch of the text encoder changes them: connect "
        "it without the patch, or take weights below 0 out of the prompt."
    )


def _end(clip: CLIP, prompt: str) -> int:
    """Where the prompt's end token stands: where the padding of the empty prompt begins.

    Text encoders that are read side by side share one count of tokens, so the first speaks for
    all. Tokens of a textual inversion are vectors.

    Raises:
        FitError: a prompt that is longer than the text encoder reads at once.
    """
    rows, (empty, *_) = (next(iter(clip.tokenize(text).values())) for text in (prompt, ""))
    if len(empty) < 2 or rows[0][0][0] != empty[0][0]:
        raise FitError(
            "clip: its prompts do not begin with a start token, as CLIP's do. Methods by text need "
            "to know where a prompt begins and ends: use a method on activations instead."
        )
    if len(rows) > 1:
        raise FitError(
            f"'{prompt[:40]}...' is longer than the text encoder reads at once. Methods by text "
            "need prompts of at most 75 tokens: shorten it."
        )
    places = [i for i, (token, *_) in enumerate(rows[0]) if i and isinstance(token, int)]
    return next(i for i in places if rows[0][i][0] == empty[1][0])
