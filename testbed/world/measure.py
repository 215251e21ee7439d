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
    """Target by name and name-free (low is erased), kept neighbours, kept everything else."""

    name: Rate
    free: Rate
    kept: Rate
    unseen: Rate
    other: Rate

    @property
    def harmonic_mean(self) -> float:
        """Of what should be high: 1 - name, 1 - free, kept, other; 0 if one of them is."""
        return harmonic_mean(
            (1 - self.name.value, 1 - self.free.value, self.kept.value, self.other.value)
        )

    def __add__(self, more: object) -> Scores:
        assert isinstance(more, Scores)
        return Scores(*(a + b for a, b in zip(self, more, strict=True)))


class Trial(NamedTuple):
    """All prompts that judge the erasure of one concept."""

    kind: str
    concept: str
    name: list[Prompt]
    free: list[Prompt]
    kept: list[Prompt]
    unseen: list[Prompt]
    other: list[Prompt]

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

    def neighbours(self) -> list[str]:
        """The concepts whose prompts are captured to be kept."""
        return others(self.kind, self.concept)[:RETAINED]

    def score(self, sampler: Sampler) -> Scores:
        """Sample every prompt once and let the judge read the pictures."""
        groups = (self.name, self.free, self.kept, self.unseen, self.other)
        texts = [prompt.text for group in groups for prompt in group]
        readings = iter(read(sampler(texts)))
        rates = []
        for group in groups:
            rate = Rate(0, 0)
            for prompt in group:
                reading = next(readings)
                asked = list(prompt.asks) if group is self.other else [self.kind]
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
