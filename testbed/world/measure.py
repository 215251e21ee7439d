"""The four numbers of an erasure on the small world, by the judge, with their intervals.

Target rate by name and name-free, neighbours kept, everything else right (PURE, arXiv 2605.25765,
evaluates the same four things on real models).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pure_core.evaluation.rates import Rate, harmonic_mean

from .judge import read
from .prompts import (
    Prompt,
    concept_prompts,
    everything_prompts,
    neighbour_prompts,
    others,
    unrelated_prompts,
)

Sampler = Callable[[list[str]], Tensor]
"""Prompts to pictures (b, 3, 64, 64) in [0, 1]."""

RETAINED = 9
"""Neighbours that are captured, as in the paper."""


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

    kind: str
    concept: str
    by_name: list[Prompt]
    by_description: list[Prompt]
    neighbours: list[Prompt]
    unlisted_neighbours: list[Prompt]
    everything_else: list[Prompt]

    @classmethod
    def of(cls, kind: str, concept: str, count: int, seed: int = 0) -> Trial:
        """`count` prompts for each number; neighbours split into captured and unseen ones."""
        rest = others(kind, concept)
        return cls(
            kind,
            concept,
            concept_prompts(kind, concept, count, True, seed),
            concept_prompts(kind, concept, count, False, seed),
            neighbour_prompts(kind, rest[:RETAINED], count, seed),
            neighbour_prompts(kind, rest[RETAINED:], count, seed) if rest[RETAINED:] else [],
            unrelated_prompts(kind, count, seed),
        )

    def neighbour_names(self) -> list[str]:
        """The concepts whose prompts are captured to be kept."""
        return others(self.kind, self.concept)[:RETAINED]

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
        readings = iter(read(sampler(texts)))
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


def model_rates(sampler: Sampler, count: int, by_name: bool) -> dict[str, Rate]:
    """How often the unedited model draws what it is asked for, by attribute."""
    prompts = everything_prompts(count, by_name)
    rates: dict[str, Rate] = {}
    for prompt, reading in zip(prompts, read(sampler([p.text for p in prompts])), strict=True):
        for attribute in prompt.asks:
            hit = Rate(int(prompt.met(reading, attribute)), 1)
            rates[attribute] = rates.get(attribute, Rate(0, 0)) + hit
    return rates
