"""Encoded prompts and a model to read them, small and random."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

from pure_core.anchors import AnchorSet
from pure_core.eraser import Eraser
from pure_core.families import ROLES, Role
from pure_core.model_identity import ModelIdentity
from pure_core.text import TextModel, TextTask, TextVectors, repeated

LENGTH, WIDTH = 12, 20
LAYERS = {
    "input_blocks.1.1.transformer_blocks.0.attn2": 8,
    "middle_block.1.transformer_blocks.0.attn2": 16,
    "output_blocks.3.1.transformer_blocks.0.attn2": 20,
}
FORGET = ("a cat", "a photo of a cat", "one small cat")
ANCHOR = ("an animal",)
RETAIN = ("a dog", "a fox", "red cars", "the old house", "some green trees by a lake")
CAPTIONS = ("a man at work", "blue sea and a boat", "an apple", "two horses on the long road")


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def encoded(*prompts: str, concepts: Sequence[int] = ()) -> TextVectors:
    """As a causal text encoder gives them: the same start for all, words that know those before
    them, an end and padding that know all words, and a mean that all share.

    Args:
        concepts: How many prompts each concept has; one concept has all where it is not said.
    """
    mean, start = random(WIDTH, seed=0), random(WIDTH, seed=1)
    padding = 0.3 * random(LENGTH, WIDTH, seed=2)
    vectors, ends = [], []
    for prompt in prompts:
        words = prompt.split()
        rows, before = [start], torch.zeros(WIDTH, dtype=torch.float64)
        for word in words:
            own = random(WIDTH, seed=crc32(word.encode()))
            rows.append(own + 0.5 * before)
            before = (before + own) / 2
        ends.append(len(rows))
        rows += list(padding[len(rows) :] + before)
        vectors.append(mean + torch.stack(rows))
    starts = [sum(concepts[:index]) for index in range(len(concepts))] or [0]
    parts = zip(starts, [*starts[1:], len(prompts)], strict=True)
    anchors = AnchorSet.written([prompts[start:end] for start, end in parts])
    return TextVectors(anchors, tuple(vectors), tuple(ends))


def text_model(layers: dict[str, int] = LAYERS, seed: int = 0) -> TextModel:
    """Layer -> d, with random weights."""
    weights = {
        (name, role): random(d, WIDTH, seed=seed + crc32((name + role).encode())).float()
        / WIDTH**0.5
        for name, d in layers.items()
        for role in ROLES
    }
    identity = ModelIdentity("model.safetensors", "unet", "abc")
    return TextModel(tuple(layers), lambda *which: weights[which], identity)


def text_task(
    forget: Sequence[str] = FORGET,
    anchor: Sequence[str] = ANCHOR,
    retain: Sequence[str] = RETAIN,
    concepts: Sequence[int] = (),
    model: TextModel | None = None,
) -> TextTask:
    return TextTask(
        forget=encoded(*forget, concepts=concepts),
        anchor=repeated(encoded(*anchor), len(forget)),
        retain=encoded(*retain) if retain else None,
        empty=encoded(""),
        model=model or text_model(),
        ordinary=encoded(*CAPTIONS),
    )


def weights(task: TextTask, eraser: Eraser) -> dict[tuple[str, Role], Tensor]:
    """Layer and role -> W in float64, of all that the eraser edits."""
    return {
        (layer, role): task.model.weight_of(layer, role).double()
        for layer in task.model.layers
        for role in eraser.roles
    }


def edited(task: TextTask, eraser: Eraser) -> dict[tuple[str, Role], Tensor]:
    """The same as the eraser leaves them, by dense matrices."""
    after = {}
    for (layer, role), weight in weights(task, eraser).items():
        dense = eraser.layers[layer].to(torch.float64).P
        after[layer, role] = weight @ dense if eraser.space == "text" else dense @ weight
    return after
