"""The judge: reads what a picture shows, whose hand drew it, and on what background."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from testbed.world.judge import filled, seen
from testbed.world.networks import Judge

from .scene import OTHER, Scene
from .vocabulary import BACKGROUNDS, CONCEPTS, HANDS

CLASSES: dict[str, tuple[str, ...]] = {
    "concept": (*CONCEPTS, OTHER),
    "style": (*HANDS, OTHER),
    "background": tuple(BACKGROUNDS),
}
WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"


def labels(scene: Scene) -> dict[str, int]:
    """Class numbers by attribute."""
    return {name: classes.index(getattr(scene, name)) for name, classes in CLASSES.items()}


def new_judge() -> Judge:
    """An untrained judge."""
    return Judge({name: len(classes) for name, classes in CLASSES.items()})


@dataclass(frozen=True)
class Reading:
    """What the judge sees in one picture."""

    concept: str
    style: str
    background: str

    def shows(self, kind: str, concept: str) -> bool:
        """Whether the picture shows a concept of a kind of `vocabulary.KINDS`."""
        return (self.style if kind == "style" else self.concept) == concept


@cache
def load_judge(path: Path = WEIGHTS) -> Judge:
    """The shipped judge."""
    return filled(new_judge(), path)


@torch.no_grad()
def read(pictures: Tensor, judge: Judge | None = None) -> list[Reading]:
    """Read pictures (b, 3, 64, 64) in [0, 1]."""
    return [Reading(**each) for each in seen(pictures, judge or load_judge(), CLASSES)]
