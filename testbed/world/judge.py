"""The judge: reads what a picture of the small world shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .networks import Judge
from .scene import Scene
from .vocabulary import (
    BACKGROUNDS,
    BODIES,
    COLOURS,
    COVERS,
    EYES,
    OBJECTS,
    PATTERNS,
    STYLES,
    TOPS,
    Traits,
    recognise,
)

CLASSES: dict[str, tuple[str, ...]] = {
    "subject": (*OBJECTS, "creature", "other"),
    "colour": tuple(COLOURS),
    "pattern": tuple(PATTERNS),
    "background": tuple(BACKGROUNDS),
    "style": ("none", *STYLES),
    "cover": tuple(COVERS),
    "body": tuple(BODIES),
    "top": tuple(TOPS),
    "eyes": tuple(EYES),
}
WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"


def truth(scene: Scene, attribute: str) -> str | None:
    """What the judge should read, None where the picture does not show it."""
    if not scene.readable(attribute):
        return None
    if attribute == "subject" and scene.subject in ("nothing", "scrap"):
        return "other"
    if attribute == "style":
        return scene.style or "none"
    value = getattr(scene, attribute)
    assert isinstance(value, str)
    return value


def labels(scene: Scene) -> dict[str, Tensor]:
    """Class numbers by attribute, -1 where the picture does not show it."""
    found = {}
    for attribute, classes in CLASSES.items():
        value = truth(scene, attribute)
        found[attribute] = torch.tensor(-1 if value is None else classes.index(value))
    return found


def new_judge() -> Judge:
    """An untrained judge."""
    return Judge({name: len(classes) for name, classes in CLASSES.items()})


@dataclass(frozen=True)
class Reading:
    """What the judge sees in one picture."""

    subject: str
    colour: str
    pattern: str
    background: str
    style: str
    cover: str
    body: str
    top: str
    eyes: str

    @property
    def character(self) -> str | None:
        """The named character, if a creature with at least four of its five traits is seen."""
        if self.subject != "creature":
            return None
        return recognise(Traits(self.body, self.colour, self.pattern, self.top, self.eyes))

    def shows(self, kind: str, concept: str) -> bool:
        """Whether the picture shows a concept of a kind of `vocabulary.DEVELOPMENT`."""
        field = {
            "object": "subject",
            "character": "character",
            "style": "style",
            "unsafe content": "cover",
        }[kind]
        return getattr(self, field) == concept


@cache
def load_judge(path: Path = WEIGHTS) -> Judge:
    """The shipped judge."""
    return filled(new_judge(), path)


def filled(judge: Judge, path: Path) -> Judge:
    """The judge with the weights of a file, for use."""
    judge.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    )
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def read(pictures: Tensor, judge: Judge | None = None) -> list[Reading]:
    """Read pictures (b, 3, 64, 64) in [0, 1]."""
    return [Reading(**each) for each in seen(pictures, judge or load_judge(), CLASSES)]


def seen(
    pictures: Tensor, judge: Judge, classes: Mapping[str, Sequence[str]]
) -> list[dict[str, str]]:
    """Of every picture, attribute -> its likeliest class."""
    logits = judge(pictures)
    columns = {
        name: [known[i] for i in logits[name].argmax(1).tolist()] for name, known in classes.items()
    }
    return [{name: columns[name][i] for name in classes} for i in range(len(pictures))]
