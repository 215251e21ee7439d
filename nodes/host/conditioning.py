"""Encoded prompts, and many of them as one conditioning with a prompt in every batch row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ...pure_core.anchors import SLOT, AnchorSet
from ...pure_core.concepts import PromptError
from ...pure_core.families import Masks
from .sites import ModelError, Sites

ADAPTER_TOKENS, ADAPTER_WEIGHTS = "t5xxl_ids", "t5xxl_weights"
"""What Anima's text encoder adds for the model's adapter, each (T,)."""

ADAPTER_KEY = "t5xxl"
"""The tokenizer of these tokens, each of which becomes a vector."""

MASK = "attention_mask"
"""Of the text encoder's tokens, (1, T), which are not those that the adapter makes vectors of."""

EMBEDDING_MARK = "embedding:"

EMBEDDING = re.compile(rf"({EMBEDDING_MARK}[^\s,():]+)(:[\d.]+(?=\)))?")
"""A textual inversion by its file's name, as ComfyUI reads it in prompts, and its weight."""


class Encoded(NamedTuple):
    """One prompt as the model reads it."""

    tokens: Tensor
    """(1, T, D)."""

    options: dict[str, Any]
    """What ComfyUI keeps beside the tokens, 'pooled_output' of shape (1, P) among them."""

    masks: Masks = "each"

    @property
    def alone(self) -> bool:
        """Whether it has to be a batch by itself."""
        return self.masks == "alone" and MASK in self.options

    def has_rows(self, name: str) -> bool:
        """Whether an option is a tensor with a row for each prompt of a batch."""
        value = self.options[name]
        one = name == MASK and self.masks == "same"
        return isinstance(value, Tensor) and value.ndim > 1 and not one

    @property
    def shape(self) -> tuple[str, ...]:
        """Only prompts that agree in it fit into one batch.

        It says the shapes, without the batch, of tokens and of options that have a row for each
        prompt, and all other options' values, which there is one of for the whole batch.
        """
        said = {name: _said(each, self.has_rows(name)) for name, each in self.options.items()}
        tokens = _said(self.tokens, True)
        return tuple(f"{name} {each}" for name, each in [("", tokens), *sorted(said.items())])


def encode(clip: CLIP, prompt: str) -> Encoded:
    """Encode as ComfyUI's own text encode node does.

    Raises:
        ModelError: no text encoder, or one whose weights change along the schedule.
    """
    if clip is None:
        raise ModelError(
            "clip: expected a text encoder, got none. The checkpoint does not contain one: "
            "load it separately."
        )
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    if len(conditioning) != 1:
        raise ModelError(
            f"clip: expected one encoding of a prompt, got {len(conditioning)}, because hooks "
            "schedule the text encoder. Connect it without hooks."
        )
    return Encoded(*conditioning[0])


def encode_anchors(clip: CLIP, anchors: AnchorSet, sites: Sites) -> list[Encoded]:
    """Encode every anchor for a model.

    Raises:
        ModelError: as `encode` does, or the text encoder is not the model's.
        PromptError: the text encoder reads nothing of a concept or of a textual inversion.
    """
    known: dict[str, Encoded] = {}

    def read(prompt: str) -> Encoded:
        if prompt not in known:
            known[prompt] = encode(clip, prompt)
        return known[prompt]

    empty = read("")
    sites.require_text_width(empty.tokens.shape[-1])
    for name in sites.family.other_texts:
        if empty.options.get(name) is None:
            raise ModelError(
                f"clip: it gives no '{name}', which the model reads, too. Connect the text encoder "
                "that belongs to the model."
            )
    for anchor in anchors:
        for found in EMBEDDING.finditer(anchor.prompt):
            without = anchor.prompt[: found.start()] + anchor.prompt[found.end() :]
            if _same(read(anchor.prompt), read(without)):
                raise PromptError(_nothing_read(found[1]))
        rest = anchor.phrasing.replace(SLOT, "")
        if anchor.prompt.strip() and _same(read(anchor.prompt), read(rest)):
            raise PromptError(_nothing_read(anchor.concept))
    return [read(anchor.prompt) for anchor in anchors]


def _same(one: Encoded, other: Encoded) -> bool:
    return torch.equal(one.tokens, other.tokens)


def _nothing_read(name: str) -> str:
    if name.startswith(EMBEDDING_MARK):
        return (
            f"'{name}' was not found: ComfyUI read nothing of it. Check its file name in "
            "models/embeddings, and that it was made for this text encoder."
        )
    return (
        f"'{name}': the text encoder reads nothing of it, so that nothing would be erased or kept. "
        "Write it in other words."
    )


@torch.no_grad()
def adapted(model: ModelPatcher, encoded: Encoded) -> Encoded:
    """A prompt as the model's sites read it, where the model does more than pass it on.

    Anima makes other vectors of it, from the tokens of a second tokenizer, of a single prompt only.
    """
    ids = encoded.options.get(ADAPTER_TOKENS)
    if ids is None:
        return encoded._replace(masks=Sites.of(model).family.masks)
    comfy.model_management.load_models_gpu([model])
    net, device = model.model.diffusion_model, model.load_device
    dtype = model.model.get_dtype_inference()
    weights = encoded.options.get(ADAPTER_WEIGHTS)
    if weights is not None:
        weights = weights[None, :, None].to(device, dtype)
    tokens = encoded.tokens.to(device, dtype)
    vectors = net.preprocess_text_embeds(tokens, ids[None].to(device), t5xxl_weights=weights)
    gone = (ADAPTER_TOKENS, ADAPTER_WEIGHTS, MASK)
    rest = {name: each for name, each in encoded.options.items() if name not in gone}
    return Encoded(vectors.to(encoded.tokens), rest)


@torch.no_grad()
def as_entering(model: ModelPatcher, sites: Sites, vectors: Tensor) -> Tensor:
    """Vectors of the text encoder (B, T, D) as the map takes them through which text enters."""
    before = sites.family.before_entry(sites.net)
    if before is None:
        return vectors
    comfy.model_management.load_models_gpu([model])
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    return before(vectors.to(model.load_device, dtype)).to(vectors)


def _said(value: Any, by_rows: bool) -> str:
    """The shape of a row, or the value."""
    if by_rows:
        return str(tuple(value.shape[1:]))
    return str(value.tolist()) if isinstance(value, Tensor) else str(value)


def stack(prompts: Sequence[Encoded]) -> list[list[Any]]:
    """A conditioning of one entry whose batch rows are the prompts, tokens (B, T, D).

    All prompts need the same `shape`.
    """
    first = prompts[0]
    options = {
        name: torch.cat([each.options[name] for each in prompts]) if first.has_rows(name) else value
        for name, value in first.options.items()
    }
    return [[torch.cat([each.tokens for each in prompts]), options]]
