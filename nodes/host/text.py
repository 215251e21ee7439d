"""What methods by text need of ComfyUI: encoded prompts and the model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from einops import rearrange
from torch import Tensor

from ...pure_core.anchors import AnchorSet
from ...pure_core.errors import FitError
from ...pure_core.text import TextModel, TextTask, TextVectors, repeated
from .conditioning import (
    ADAPTER_KEY,
    ADAPTER_TOKENS,
    Encoded,
    adapted,
    as_entering,
    encode,
    encode_anchors,
)
from .identity import identity
from .sites import EffectiveWeights, Sites

WORDS = ("cat", "dog")
"""Two words of one token each, to see where words stand."""


def text_task(
    model: ModelPatcher,
    clip: CLIP,
    forget: AnchorSet,
    retain: AnchorSet,
    replacements: Sequence[str],
    captions: Sequence[str] = (),
) -> TextTask:
    """Everything that a method by text is fitted on.

    Args:
        retain: What to keep, may be empty.
        replacements: Prompts that the forget prompts become: one for all, or one for each; none
            for the empty prompt.
        captions: Of all sorts, for a method that keeps them.

    Raises:
        ModelError: a model of no known family or one with several text encoders side by side,
            quantised weights, no text encoder, or one whose vectors are not what the layers read.
        PromptError: a prompt or a textual inversion of which the text encoder reads nothing.
        FitError: another number of replacements than of prompts, or a prompt that is too long.
    """
    sites = Sites.of(model)
    sites.require_edits_text()
    sites.require_plain_weights()
    become = AnchorSet.written([[each] for each in replacements or [""]])
    encoded = encode_anchors(clip, forget, sites)
    layout = _Layout.of(clip)

    def read(anchors: AnchorSet) -> TextVectors:
        return layout.vectors(model, clip, anchors, encode_anchors(clip, anchors, sites), sites)

    return TextTask(
        forget=layout.vectors(model, clip, forget, encoded, sites),
        anchor=repeated(read(become), len(forget)),
        retain=read(retain) if retain else None,
        empty=read(AnchorSet.written([[""]])),
        model=text_model(model, sites, clip),
        ordinary=read(AnchorSet.written([[each] for each in captions])) if captions else None,
    )


def text_model(model: ModelPatcher, sites: Sites, clip: CLIP | None) -> TextModel:
    """What methods on the text need of a model, read by a text encoder."""
    return TextModel(
        tuple(sites.widths(text=True)),
        EffectiveWeights(model, sites).weight,
        identity(model, sites, clip),
        at_entry=sites.entry is not None,
    )


class _Layout(NamedTuple):
    """Where words stand among a text encoder's tokens.

    CLIP: start, words, end, padding. T5: words, end, padding. Qwen and others: a template's words,
    the prompt's, the template's end. Some tokens of a template get no vector.
    """

    key: str
    """Of the tokenizer whose tokens the vectors belong to. Where several text encoders are read
    side by side they share one count of tokens, so the first speaks for all."""

    start: int
    """Where words begin."""

    end_token: int
    """What follows on them."""

    cut: int
    """Tokens at the front that get no vector."""

    tail: int
    """Tokens at the end that get none."""

    adapter: bool
    """Whether an adapter makes the vectors, which pads them on its own."""

    @classmethod
    def of(cls, clip: CLIP) -> _Layout:
        """From where two words differ, among tokens and among vectors.

        Of several tokenizers it is the one whose tokens are as many as there are vectors.

        Raises:
            FitError: nothing follows on the words.
        """
        rows = [clip.tokenize(word) for word in WORDS]
        encoded = [encode(clip, word) for word in WORDS]
        adapter = ADAPTER_TOKENS in encoded[0].options
        vectors = [each.tokens[0] for each in encoded]
        found = []
        for key in [ADAPTER_KEY] if adapter else rows[0]:
            one, other = (_tokens(each[key]) for each in rows)
            pairs = enumerate(zip(one, other, strict=True))
            start = next(place for place, (this, that) in pairs if this != that)
            if start + 1 == len(one):
                continue
            cut = tail = 0
            if not adapter and len(vectors[0]) < len(one):
                changed = (vectors[0] != vectors[1]).any(dim=1)
                cut = max(0, start - int(changed.int().argmax()))
                tail = max(0, len(one) - cut - len(vectors[0]))
            missed = abs(len(one) - cut - len(vectors[0]))
            found.append((missed, cls(key, start, one[start + 1], cut, tail, adapter)))
        if not found:
            raise FitError(
                "clip: it ends no prompt with a token, so nothing says which vectors are those of "
                "its words. Use PURE Capture and PURE Fit."
            )
        return min(found, key=lambda each: each[0])[1]

    @torch.no_grad()
    def vectors(
        self,
        model: ModelPatcher,
        clip: CLIP,
        anchors: AnchorSet,
        encoded: Sequence[Encoded],
        sites: Sites,
    ) -> TextVectors:
        """The anchors' encodings as the edited weights take them."""
        vectors, ends = [], []
        for each, anchor in zip(encoded, anchors, strict=True):
            tokens = self.read(clip, anchor.prompt)
            entering = as_entering(model, sites, adapted(model, each).tokens)[0]
            found = entering.to("cpu", torch.float64)
            vectors.append(self.one_per_token(found, len(tokens), anchor.prompt))
            ends.append(self.end(tokens))
        return TextVectors(anchors, tuple(vectors), tuple(ends), self.start - self.cut)

    def read(self, clip: CLIP, prompt: str) -> list[Any]:
        """A prompt's tokens, padding included. Those of a textual inversion are vectors.

        Raises:
            FitError: a prompt that is longer than the text encoder reads at once.
        """
        rows = clip.tokenize(prompt)[self.key]
        if len(rows) > 1:
            most = len(rows[0]) - self.start - 1
            raise FitError(
                f"'{prompt[:40]}...' is longer than the text encoder reads at once. Methods by "
                f"text need prompts of at most {most} tokens: shorten it."
            )
        return _tokens(rows)

    def end(self, tokens: Sequence[Any]) -> int:
        """Where the end token stands among the vectors."""
        ends = (isinstance(each, int) and each == self.end_token for each in tokens)
        return next(i for i, found in enumerate(ends) if found and i >= self.start) - self.cut

    def one_per_token(self, vectors: Tensor, tokens: int, prompt: str) -> Tensor:
        """The vectors (T, D) of T tokens.

        Some patches of the text encoder give several to each token, one after the other, for
        example one for the keys and one for the values. They differ only where a word is weighted
        below 0.

        Raises:
            FitError: they differ, or belong to no token.
        """
        found, tokens = len(vectors), tokens - self.cut - self.tail
        if found == tokens or self.adapter:
            return vectors[:tokens]
        if found % tokens == 0:
            each = rearrange(vectors, "(token copy) d -> copy token d", token=tokens)
            if all(torch.equal(each[0], other) for other in each):
                return each[0]
        raise FitError(
            f"clip: it gives {found} vectors for the {tokens} tokens of '{prompt[:40]}', expected "
            "one for each, or the same several times. If text encoders of different kinds are "
            "loaded together (as CLIP and T5 for Stable Diffusion 3), use PURE Capture and PURE "
            "Fit. If a patch of the text encoder changes the vectors, connect it without the "
            "patch, or take weights below 0 out of the prompt."
        )


def _tokens(rows: Sequence[Sequence[Sequence[Any]]]) -> list[Any]:
    """Of the first row, without weights."""
    return [token for token, *_ in rows[0]]
