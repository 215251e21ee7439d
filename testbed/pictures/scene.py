"""A scene: what one picture shows, and how to draw one at random."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .vocabulary import BACKGROUNDS, CONCEPTS, HANDS

OTHER = "other"


@dataclass(frozen=True)
class Scene:
    """One icon of one hand on one background.

    `concept` may be "other": an icon that is none of the concepts, or no icon at all. `style` may
    be "other": a set that is none of the five hands, or nothing to tell a hand by.
    """

    concept: str
    style: str
    background: str


def random_scene(rng: Random) -> Scene:
    """A scene from the training distribution: every concept, hand and background alike."""
    return Scene(rng.choice(list(CONCEPTS)), rng.choice(list(HANDS)), rng.choice(list(BACKGROUNDS)))


def strange_scene(rng: Random) -> Scene:
    """A scene of which the judge must say that it is not of this world."""
    background = rng.choice(list(BACKGROUNDS))
    kind = rng.random()
    if kind < 0.45:
        return Scene(OTHER, rng.choice(list(HANDS)), background)
    if kind < 0.85:
        return Scene(rng.choice(list(CONCEPTS)), OTHER, background)
    return Scene(OTHER, OTHER, background)
