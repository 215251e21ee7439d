"""The numbers of an erasure on a test world, by its judge, with their intervals.

Target rate by name and name-free, neighbours kept, everything else right (PURE, arXiv 2605.25765,
evaluates the same four things on real models).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from pure_core.evaluation.rates import Rate, harmonic_mean

from . import prompts
from .judge import read
from .vocabulary import DEVELOPMENT, HELD_OUT

Sampler = Callable[[list[str]], Tensor]
"""Prompts to pictures (b, 3, 64, 64) in [0, 1]."""

RETAINED = 9
"""Neighbours that are captured, as in the paper."""


class Prompt(Protocol):
    """A prompt with a known answer."""

    @property
    def text(self) -> str:
        """What is typed."""

    @property
    def asks(self) -> dict[str, str]:
        """Attribute or kind of concept -> value."""

    def met(self, reading: Any, attribute: str) -> bool:
        """Whether the picture shows what was asked for."""


class Prompts(Protocol):
    """The module `prompts` of a world."""

    def name_of(self, kind: str, concept: str) -> str:
        """What a person types to name the concept in a node."""

    def anchor_of(self, kind: str, concept: str) -> str:
        """What the concept becomes where a method asks for it."""

    def others(self, kind: str, concept: str) -> list[str]:
        """Its neighbours, those that are listed first."""

    def concept_prompts(
        self, kind: str, concept: str, count: int, by_name: bool, seed: int = 0
    ) -> Sequence[Prompt]:
        """Prompts for the concept."""

    def neighbour_prompts(
        self, kind: str, concepts: list[str], count: int, seed: int = 0
    ) -> Sequence[Prompt]:
        """Prompts that name other concepts of the kind."""

    def unrelated_prompts(self, kind: str, count: int, seed: int = 0) -> Sequence[Prompt]:
        """Prompts for everything that is of another kind."""

    def everything_prompts(self, count: int, by_name: bool, seed: int = 0) -> Sequence[Prompt]:
        """Prompts over the whole world."""


Concepts = Mapping[str, tuple[str, ...]]
"""Kind -> concepts."""


class World(NamedTuple):
    """What pictures can show, what asks for it, and who says whether they do."""

    prompts: Prompts
    read: Callable[[Tensor], Sequence[Any]]
    """The judge: what it sees in each of the pictures (b, 3, 64, 64)."""

    splits: dict[str, Concepts]
    """"development" to choose by, "held-out" to report."""

    def trial(self, kind: str, concept: str, count: int, seed: int = 0) -> Trial:
        """`count` prompts for each number; neighbours split into captured and unseen ones."""
        ask, rest = self.prompts, self.prompts.others(kind, concept)
        listed, unlisted = rest[:RETAINED], rest[RETAINED:]
        return Trial(
            self,
            kind,
            concept,
            ask.concept_prompts(kind, concept, count, True, seed),
            ask.concept_prompts(kind, concept, count, False, seed),
            ask.neighbour_prompts(kind, listed, count, seed),
            ask.neighbour_prompts(kind, unlisted, count, seed) if unlisted else [],
            ask.unrelated_prompts(kind, count, seed),
        )

    def rates(self, sampler: Sampler, count: int, by_name: bool, seed: int = 0) -> dict[str, Rate]:
        """How often the unedited model draws what it is asked for, by attribute."""
        prompts = self.prompts.everything_prompts(count, by_name, seed)
        readings = self.read(sampler([prompt.text for prompt in prompts]))
        rates: dict[str, Rate] = {}
        for prompt, reading in zip(prompts, readings, strict=True):
            for attribute in prompt.asks:
                hit = Rate(int(prompt.met(reading, attribute)), 1)
                rates[attribute] = rates.get(attribute, Rate(0, 0)) + hit
        return rates


class Scores(NamedTuple):
    """How often the concept is shown, by name and by description (low is erased), and how often its
    listed and unlisted neighbours and everything else are (high is kept).
    """

    by_name: Rate
    by_description: Rate
    neighbours: Rate
    unlisted_neighbours: Rate
    everything_else: Rate

    def four(self) -> tuple[Rate, Rate, Rate, Rate]:
        """What the tables show: all but the unlisted neighbours, which not every trial has."""
        return self.by_name, self.by_description, self.neighbours, self.everything_else

    @property
    def harmonic_mean(self) -> float:
        """Of what should be high: 1 - the first two of the four and the others; 0 if one is."""
        by_name, by_description, *kept = (rate.value for rate in self.four())
        return harmonic_mean((1 - by_name, 1 - by_description, *kept))

    def __add__(self, more: object) -> Scores:
        assert isinstance(more, Scores)
        return Scores(*(a + b for a, b in zip(self, more, strict=True)))


class Trial(NamedTuple):
    """All prompts that judge the erasure of one concept."""

    world: World
    kind: str
    concept: str
    by_name: Sequence[Prompt]
    by_description: Sequence[Prompt]
    neighbours: Sequence[Prompt]
    unlisted_neighbours: Sequence[Prompt]
    everything_else: Sequence[Prompt]

    @property
    def name(self) -> str:
        """What a person types to name the concept in a node."""
        return self.world.prompts.name_of(self.kind, self.concept)

    def listed(self) -> list[str]:
        """The concepts whose prompts are captured to be kept."""
        return self.world.prompts.others(self.kind, self.concept)[:RETAINED]

    def listed_names(self) -> str:
        """What a person types for them, a line each."""
        return "\n".join(self.world.prompts.name_of(self.kind, each) for each in self.listed())

    def score(self, sampler: Sampler) -> Scores:
        """Sample every prompt once and let the judge read the pictures."""
        groups = (
            self.by_name,
            self.by_description,
            self.neighbours,
            self.unlisted_neighbours,
            self.everything_else,
        )
        texts = [prompt.text for group in groups for prompt in group]
        readings = iter(self.world.read(sampler(texts)))
        rates = []
        for group in groups:
            rate = Rate(0, 0)
            for prompt in group:
                reading = next(readings)
                asked = list(prompt.asks) if group is self.everything_else else [self.kind]
                asked = [attribute for attribute in asked if attribute in prompt.asks]
                hits = sum(prompt.met(reading, attribute) for attribute in asked)
                rate += Rate(hits, len(asked))
            rates.append(rate)
        return Scores(*rates)


DRAWN = World(prompts, read, {"development": DEVELOPMENT, "held-out": HELD_OUT})
"""The world that we drew."""
