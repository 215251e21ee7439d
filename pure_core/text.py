"""Encoded prompts: the text encoder's vectors that cross-attention turns into keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .anchors import AnchorSet
from .errors import FitError
from .families import ROLES, Role
from .model_identity import ModelIdentity

WeightOf = Callable[[str, Role], Tensor]
"""Layer and role -> the weight (d, D) as the model has it. Of an entry, whatever the role."""


@dataclass(frozen=True, eq=False)
class TextVectors:
    """Prompts, encoded.

    A prompt is a start token, its words' tokens, an end token and padding. Some text encoders have
    no start token (T5), or one whose template is cut away before the model reads it (Qwen).
    """

    anchors: AnchorSet

    vectors: tuple[Tensor, ...]
    """Of every prompt (T, D), float64."""

    ends: tuple[int, ...]
    """Of every prompt, where its end token stands."""

    start: int = 1
    """Where the first word stands in all prompts: 1 behind a start token, 0 without one."""

    def __post_init__(self) -> None:
        if not self.anchors:
            raise FitError("Expected at least one prompt, got none.")
        for prompt, each, end in zip(self.prompts, self.vectors, self.ends, strict=True):
            if each.ndim != 2 or not self.start <= end < len(each):
                raise FitError(
                    f"'{prompt}': expected vectors (T, D) with an end token from {self.start} on, "
                    f"got shape {tuple(each.shape)} and end {end}."
                )
            if not bool(torch.isfinite(each).all()):
                raise FitError(f"'{prompt}': its encoding holds NaN or infinity.")

    @property
    def prompts(self) -> tuple[str, ...]:
        """The anchors' texts."""
        return self.anchors.prompts

    @property
    def width(self) -> int:
        """D."""
        return self.vectors[0].shape[1]

    @property
    def last(self) -> Tensor:
        """(n, D): of every prompt the last word's last token.

        Of an empty one it is the start token, or the end token where there is no start.
        """
        return torch.stack([tail[0] for tail in self.tails])

    @property
    def words(self) -> Tensor:
        """(m, D): every token of the words."""
        return torch.cat([self.words_of(number) for number in range(len(self.ends))])

    @property
    def read(self) -> Tensor:
        """(m, D): the words with their start and end tokens."""
        return self._each(lambda each, end: each[: end + 1])

    @property
    def read_prompts(self) -> list[Tensor]:
        """Of every prompt (k, D): its words' tokens and its end token."""
        pairs = zip(self.vectors, self.ends, strict=True)
        return [each[self.start : end + 1] for each, end in pairs]

    @property
    def tails(self) -> list[Tensor]:
        """Of every prompt (k, D): from what `last` is to the end of the padding."""
        pairs = zip(self.vectors, self.ends, strict=True)
        return [each[max(end - 1, 0) :] for each, end in pairs]

    def words_of(self, number: int) -> Tensor:
        """(m, D): every token of one prompt's words."""
        return self.vectors[number][self.start : self.ends[number]]

    def end_of(self, number: int) -> Tensor:
        """(D,): one prompt's end token."""
        return self.vectors[number][self.ends[number]]

    def chosen(self, numbers: Sequence[int]) -> TextVectors:
        """Some of the prompts, by their numbers."""
        return TextVectors(
            AnchorSet(tuple(self.anchors[number] for number in numbers)),
            tuple(self.vectors[number] for number in numbers),
            tuple(self.ends[number] for number in numbers),
            self.start,
        )

    def _each(self, part: Callable[[Tensor, int], Tensor]) -> Tensor:
        return torch.cat([part(*each) for each in zip(self.vectors, self.ends, strict=True)])


@dataclass(frozen=True, eq=False)
class TextModel:
    """What methods by text need of a model."""

    layers: tuple[str, ...]
    """Names of what is edited: the cross-attention layers, or the one linear map through which all
    of the text enters."""

    weight_of: WeightOf
    identity: ModelIdentity

    at_entry: bool = False
    """Whether the only layer is the map through which all text enters the model."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """What each of them has weights for; one role for an entry, whose values are all."""
        return ("values",) if self.at_entry else ROLES


@dataclass(frozen=True, eq=False)
class TextTask:
    """What is to be erased in text space, and on which model."""

    forget: TextVectors

    anchor: TextVectors
    """What the concept becomes: one for every forget prompt."""

    retain: TextVectors | None

    empty: TextVectors
    """The empty prompt."""

    model: TextModel

    ordinary: TextVectors | None = None
    """Captions of all sorts, for a method that keeps them."""

    def __post_init__(self) -> None:
        if len(self.anchor.prompts) != len(self.forget.prompts):
            raise FitError(
                f"anchor: expected one prompt, or as many as there are to forget "
                f"({len(self.forget.prompts)}), got {len(self.anchor.prompts)}."
            )
        for prompt, end in zip(self.forget.prompts, self.forget.ends, strict=True):
            if end == self.forget.start:
                raise FitError(f"forget: '{prompt}' has no words that the text encoder reads.")
        others = [self.anchor, self.empty]
        others += [each for each in (self.retain, self.ordinary) if each is not None]
        kind = self.forget.width, self.forget.start
        if any((each.width, each.start) != kind for each in others):
            raise FitError("All prompts have to be encoded by one text encoder.")

    @property
    def replaced(self) -> bool:
        """Whether anything was chosen for what the concept becomes."""
        return any(self.anchor.prompts)


def repeated(anchor: TextVectors, count: int) -> TextVectors:
    """A single prompt as many; several stay as they are."""
    if len(anchor.prompts) != 1:
        return anchor
    anchors = AnchorSet(anchor.anchors.anchors * count)
    return TextVectors(anchors, anchor.vectors * count, anchor.ends * count, anchor.start)


def paired(forget: Sequence[Tensor], anchor: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Two lists of (k, D) as rows side by side, each pair as long as its shorter half."""
    pairs = list(zip(forget, anchor, strict=True))
    lengths = [min(len(one), len(other)) for one, other in pairs]
    return (
        torch.cat([one[:k] for (one, _), k in zip(pairs, lengths, strict=True)]),
        torch.cat([other[:k] for (_, other), k in zip(pairs, lengths, strict=True)]),
    )
