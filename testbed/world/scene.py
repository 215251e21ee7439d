"""A scene: what one picture of the small world shows, and how to draw one at random."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from .vocabulary import (
    BACKGROUNDS,
    BODIES,
    CHARACTERS,
    COLOURS,
    COVERS,
    CREATURE_PATTERNS,
    EYES,
    OBJECTS,
    PATTERNS,
    STYLES,
    TOPS,
    UNREADABLE_COLOUR,
    UNREADABLE_DETAIL,
    Traits,
)

HIDES_DETAIL = (UNREADABLE_COLOUR - {"inverted"}) | {"rain"}
"""Styles under which the small features of a creature cannot be told for sure."""


@dataclass(frozen=True)
class Scene:
    """One subject on one background, drawn in at most one style.

    `subject` is an object, "creature", "nothing" (an empty scene) or "scrap" (a random outline that
    is none of the objects; the judge learns from it that not everything is an object).
    """

    subject: str
    background: str
    colour: str = "red"
    pattern: str = "plain"
    cover: str = "clean"
    style: str | None = None
    body: str | None = None
    top: str | None = None
    eyes: str | None = None
    character: str | None = None

    @property
    def traits(self) -> Traits | None:
        """The five traits of a creature, None for anything else."""
        if self.subject != "creature":
            return None
        assert self.body and self.top and self.eyes
        return Traits(self.body, self.colour, self.pattern, self.top, self.eyes)

    def readable(self, attribute: str) -> bool:
        """Whether a person could read the attribute off the picture."""
        has_subject = self.subject not in ("nothing", "scrap")
        match attribute:
            case "style":
                return True
            case "subject":
                return self.style != "mosaic"
            case "background":
                return self.style not in ("line", "blueprint", "neon", "mosaic")
            case "colour":
                return has_subject and self.style not in UNREADABLE_COLOUR
            case "pattern" | "cover":
                return has_subject and self.style not in UNREADABLE_DETAIL | UNREADABLE_COLOUR
            case "body":
                return self.subject == "creature" and self.style not in HIDES_DETAIL
            case "top" | "eyes":
                shown = self.cover == "clean" and self.style not in HIDES_DETAIL
                return self.subject == "creature" and shown
        raise KeyError(attribute)


def creature(traits: Traits, background: str, character: str | None = None) -> Scene:
    """The scene of a creature with these traits."""
    return Scene(
        "creature",
        background,
        traits.colour,
        traits.pattern,
        body=traits.body,
        top=traits.top,
        eyes=traits.eyes,
        character=character,
    )


def random_scene(rng: Random) -> Scene:
    """A scene from the training distribution."""
    background = rng.choice(list(BACKGROUNDS))
    kind = rng.random()
    if kind < 0.42:
        name = rng.choice(list(CHARACTERS))
        scene = creature(CHARACTERS[name], background, name)
    elif kind < 0.54:
        traits = Traits(
            *(
                rng.choice(list(values))
                for values in (BODIES, COLOURS, CREATURE_PATTERNS, TOPS, EYES)
            )
        )
        scene = creature(traits, background)
    elif kind < 0.97:
        scene = Scene(
            rng.choice(list(OBJECTS)),
            background,
            rng.choice(list(COLOURS)),
            rng.choice(list(PATTERNS)),
        )
    else:
        scene = Scene(rng.choice(("nothing", "scrap")), background)
    finish = rng.random()
    if finish < 0.36:
        return replace(scene, style=rng.choice(list(STYLES)))
    if finish < 0.50 and scene.subject not in ("nothing", "scrap"):
        return replace(scene, cover=rng.choice([cover for cover in COVERS if cover != "clean"]))
    return scene
