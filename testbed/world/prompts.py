"""Prompts with known answers: what the judge must see in the picture of each."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import NamedTuple

from .captions import article, caption
from .judge import Reading
from .scene import Scene, creature, random_scene
from .vocabulary import (
    BACKGROUNDS,
    CHARACTERS,
    COLOURS,
    COVERS,
    DEVELOPMENT,
    HELD_OUT,
    OBJECTS,
    PATTERNS,
    STYLES,
)

KINDS = tuple(DEVELOPMENT)


class Prompt(NamedTuple):
    """A prompt, and what it asks for: attribute or kind of concept -> value."""

    text: str
    asks: dict[str, str]

    def met(self, reading: Reading, attribute: str) -> bool:
        """Whether the picture shows what was asked for."""
        if attribute in KINDS:
            return reading.shows(attribute, self.asks[attribute])
        return getattr(reading, attribute) == self.asks[attribute]


def ask(scene: Scene, rng: Random, by_name: bool) -> Prompt:
    """A prompt for the scene and every attribute that its words state and a picture can show."""
    text = caption(scene, rng, by_name)
    asks: dict[str, str] = {}
    if scene.character is not None:
        if scene.style is None and scene.cover == "clean":
            asks["character"] = scene.character
        asks["subject"] = "creature"
    elif scene.subject in OBJECTS:
        named = OBJECTS[scene.subject]
        if any(words in text for words in named.names + named.descriptions):
            asks["object"] = scene.subject
        for attribute, table in (("colour", COLOURS), ("pattern", PATTERNS)):
            value = getattr(scene, attribute)
            if any(word in text.split() for word in table[value]):
                asks[attribute] = value
    if any(phrase in text for phrase in BACKGROUNDS[scene.background]):
        asks["background"] = scene.background
    if scene.style is not None:
        asks["style"] = scene.style
    if scene.cover != "clean":
        asks["unsafe content"] = scene.cover
    return Prompt(text, {key: value for key, value in asks.items() if _visible(scene, key)})


def _visible(scene: Scene, attribute: str) -> bool:
    field = {"object": "subject", "character": "body", "unsafe content": "cover"}
    return scene.readable(field.get(attribute, attribute))


def names_of(kind: str, concept: str) -> tuple[str, ...]:
    """Every word that names the concept."""
    match kind:
        case "object":
            return OBJECTS[concept].names
        case "style":
            return STYLES[concept].names
        case "unsafe content":
            return COVERS[concept]
    return (concept,)


def name_of(kind: str, concept: str) -> str:
    """What a person types to name the concept in a node."""
    name = names_of(kind, concept)[0]
    return {"object": article(name), "unsafe content": f"something {name}"}.get(kind, name)


ANCHORS = {
    "object": "an object",
    "character": "a creature",
    "style": "art",
    "unsafe content": "something",
}
"""Kind -> what a concept becomes where a method asks for it: the kind's plainest word."""


def anchor_of(kind: str, concept: str) -> str:
    """The plainest word for anything of the concept's kind."""
    return ANCHORS[kind]


def others(kind: str, concept: str) -> list[str]:
    """The other concepts of the kind, development and held-out, in a fixed shuffled order."""
    rest = [c for c in (*DEVELOPMENT[kind], *HELD_OUT[kind]) if c != concept]
    Random(concept).shuffle(rest)
    return rest


def _plain_scene(rng: Random, allowed: tuple[str, ...]) -> Scene:
    """A random scene without style or cover whose subject is of an allowed kind."""
    while True:
        scene = replace(random_scene(rng), style=None, cover="clean")
        is_object = scene.subject in OBJECTS and "object" in allowed
        if is_object or (scene.character is not None and "character" in allowed):
            return scene


def concept_scene(kind: str, concept: str, rng: Random) -> Scene:
    """A random scene that shows the concept."""
    if kind == "character":
        return creature(CHARACTERS[concept], rng.choice(list(BACKGROUNDS)), concept)
    if kind == "object":
        return replace(_plain_scene(rng, ("object",)), subject=concept)
    scene = _plain_scene(rng, ("object", "character"))
    return replace(scene, style=concept) if kind == "style" else replace(scene, cover=concept)


def concept_prompts(
    kind: str, concept: str, count: int, by_name: bool, seed: int = 0
) -> list[Prompt]:
    """Prompts for one concept, by name or described without any of its names."""
    rng = Random(f"{kind} {concept} {by_name} {seed}")
    return [ask(concept_scene(kind, concept, rng), rng, by_name) for _ in range(count)]


def neighbour_prompts(kind: str, concepts: list[str], count: int, seed: int = 0) -> list[Prompt]:
    """Prompts that name other concepts of the kind, in turn."""
    rng = Random(f"{kind} {concepts} {seed}")
    return [
        ask(concept_scene(kind, concepts[i % len(concepts)], rng), rng, True) for i in range(count)
    ]


def unrelated_prompts(kind: str, count: int, seed: int = 0) -> list[Prompt]:
    """Prompts for everything that is of another kind: subjects, colours, patterns, places."""
    rng = Random(f"not {kind} {seed}")
    subjects = {"object": ("character",), "character": ("object",)}.get(
        kind, ("object", "character")
    )
    prompts = []
    for i in range(count):
        scene = _plain_scene(rng, subjects)
        if i % 4 == 1 and kind != "style":
            scene = replace(scene, style=rng.choice(list(STYLES)))
        elif i % 4 == 2 and kind != "unsafe content":
            scene = replace(scene, cover=rng.choice(list(COVERS)[1:]))
        prompts.append(ask(scene, rng, True))
    return prompts


def everything_prompts(count: int, by_name: bool, seed: int = 0) -> list[Prompt]:
    """Prompts over the whole world, to measure the unedited model."""
    rng = Random(f"everything {by_name} {seed}")
    prompts = []
    while len(prompts) < count:
        scene = random_scene(rng)
        if scene.subject in OBJECTS or scene.character is not None:
            prompts.append(ask(scene, rng, by_name))
    return prompts
