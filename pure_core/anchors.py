"""Anchors: the prompts that stand for a concept, with the concept's name and the phrasing.

PURE (arXiv 2605.25765) captures a model on short prompts for the target (forget anchors) and for
concepts of the same category (retain anchors). Whatever is captured, fitted or saved carries its
anchors, so that a concept's name and a prompt's phrasing are known wherever they are needed and
never read back out of the prompt's text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import PureError

SLOT = "{}"
"""Where the concept's name goes in a phrasing."""


class AnchorError(PureError):
    """Anchors that do not say which concept they stand for."""


@dataclass(frozen=True)
class Anchor:
    """One prompt that stands for a concept."""

    prompt: str
    """The text that is encoded."""

    concept: str
    """The concept's name, as people call it."""

    phrasing: str = ""
    """The template that the prompt was written from, with `{}` for the name; empty for a prompt
    that was written by hand."""

    @classmethod
    def phrased(cls, concept: str, phrasing: str) -> Anchor:
        """The concept's name in a template."""
        return cls(phrasing.replace(SLOT, concept), concept, phrasing)


@dataclass(frozen=True)
class AnchorSet(Sequence[Anchor]):
    """Anchors in order, of one concept or several."""

    anchors: tuple[Anchor, ...] = ()

    @classmethod
    def phrased(cls, concepts: Sequence[str], phrasings: Sequence[str]) -> AnchorSet:
        """Every concept in every phrasing, one concept after the other."""
        return cls(tuple(Anchor.phrased(name, each) for name in concepts for each in phrasings))

    @classmethod
    def written(cls, concepts: Sequence[Sequence[str]]) -> AnchorSet:
        """Prompts written by hand, a list for each concept, which is called by its first prompt."""
        return cls(tuple(Anchor(each, prompts[0]) for prompts in concepts for each in prompts))

    def __len__(self) -> int:
        return len(self.anchors)

    def __iter__(self) -> Iterator[Anchor]:
        return iter(self.anchors)

    def __getitem__(self, index: Any) -> Any:
        """An anchor, or for a slice a set."""
        found = self.anchors[index]
        return AnchorSet(found) if isinstance(index, slice) else found

    def __add__(self, other: AnchorSet) -> AnchorSet:
        return AnchorSet(self.anchors + other.anchors)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The texts, in order."""
        return tuple(each.prompt for each in self.anchors)

    @cached_property
    def concepts(self) -> tuple[str, ...]:
        """The names of the concepts, each once, in the order in which they appear."""
        return tuple(dict.fromkeys(each.concept for each in self.anchors))

    def of(self, concept: str) -> AnchorSet:
        """The anchors of one concept."""
        return AnchorSet(tuple(each for each in self.anchors if each.concept == concept))

    @property
    def owners(self) -> tuple[int, ...]:
        """For every anchor, the number of its concept in `concepts`."""
        number = {name: index for index, name in enumerate(self.concepts)}
        return tuple(number[each.concept] for each in self.anchors)

    def same_phrasing(self, others: AnchorSet) -> list[list[int]]:
        """For every anchor, the numbers of those among `others` in the same phrasing.

        All of them, where the anchor was written by hand or none has its phrasing.
        """
        every = list(range(len(others)))
        by_phrasing: dict[str, list[int]] = {}
        for number, each in enumerate(others):
            by_phrasing.setdefault(each.phrasing, []).append(number)
        return [by_phrasing.get(each.phrasing, every) if each.phrasing else every for each in self]

    def record(self) -> list[dict[str, str]]:
        """As plain data for files: the fields that are not empty."""
        return [
            {name: value for name, value in vars(each).items() if value} for each in self.anchors
        ]

    @classmethod
    def from_record(cls, record: object) -> AnchorSet:
        """The anchors of a `record`.

        Raises:
            AnchorError: it is not a list of objects with a text for each field of `Anchor`.
        """
        if not isinstance(record, list):
            raise AnchorError(f"expected a list of anchors, got {type(record).__name__}.")
        for each in record:
            texts = isinstance(each, dict) and all(
                isinstance(item, str) for pair in each.items() for item in pair
            )
            if not texts or not each.keys() <= {"prompt", "concept", "phrasing"}:
                raise AnchorError(
                    "expected anchors with the texts 'prompt', 'concept' and 'phrasing', got "
                    f"{str(each)[:80]}."
                )
        return cls(
            tuple(
                Anchor(each.get("prompt", ""), each.get("concept", ""), each.get("phrasing", ""))
                for each in record
            )
        )


NO_ANCHORS = AnchorSet()
"""For sides that an erasure does not have."""
