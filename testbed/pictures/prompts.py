"""Prompts with known answers: what the judge must see in the picture of each."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import NamedTuple

from .captions import GENERIC, article, caption
from .judge import Reading
from .scene import Scene, random_scene
from .vocabulary import CONCEPTS, HANDS, KINDS, of_group, of_kind


class Prompt(NamedTuple):
    """A prompt, and what it asks for: attribute or kind of concept -> value."""

    text: str
    asks: dict[str, str]

    def met(self, reading: Reading, attribute: str) -> bool:
        """Whether the picture shows what was asked for."""
        if attribute in KINDS:
            return reading.shows(attribute, self.asks[attribute])
        return bool(getattr(reading, attribute) == self.asks[attribute])


def ask(scene: Scene, rng: Random, by_name: bool, *fields: str) -> Prompt:
    """A prompt that states these fields of the scene, and what a picture of it must show."""
    says = frozenset(fields)
    text = caption(scene, rng, by_name, says).text
    asks = {"background": scene.background} if "background" in says else {}
    if "style" in says:
        asks["style"] = scene.style
    if "concept" in says:
        asks[CONCEPTS[scene.concept].kind] = scene.concept
    return Prompt(text, asks)


def names_of(kind: str, concept: str) -> tuple[str, ...]:
    """Every word that names the concept."""
    return HANDS[concept].names if kind == "style" else CONCEPTS[concept].names


def name_of(kind: str, concept: str) -> str:
    """What a person types to name the concept in a node."""
    name = names_of(kind, concept)[0]
    return name if kind == "style" else article(name)


def anchor_of(kind: str, concept: str) -> str:
    """The plainest word for anything of the concept's group."""
    return "art" if kind == "style" else GENERIC[CONCEPTS[concept].group]


def others(kind: str, concept: str) -> list[str]:
    """The other concepts of the kind, those of its own group first, in a fixed shuffled order."""
    rng = Random(concept)
    rest = [name for name in of_kind(kind) if name != concept]
    rng.shuffle(rest)
    if kind != "style":
        near = of_group(CONCEPTS[concept].group)
        rest.sort(key=lambda name: name not in near)
    return rest


def concept_scene(kind: str, concept: str, rng: Random) -> Scene:
    """A random scene that shows the concept."""
    scene = random_scene(rng)
    return replace(scene, style=concept) if kind == "style" else replace(scene, concept=concept)


def _fields(kind: str, rng: Random) -> tuple[str, ...]:
    """What a prompt for a concept of the kind states: it, and sometimes where it is."""
    fields = ("concept", "style") if kind == "style" else ("concept",)
    return (*fields, "background") if rng.random() < 0.6 else fields


def concept_prompts(
    kind: str, concept: str, count: int, by_name: bool, seed: int = 0
) -> list[Prompt]:
    """Prompts for one concept, by name or described without any of its names."""
    rng = Random(f"{kind} {concept} {by_name} {seed}")
    return [
        ask(concept_scene(kind, concept, rng), rng, by_name, *_fields(kind, rng))
        for _ in range(count)
    ]


def neighbour_prompts(kind: str, concepts: list[str], count: int, seed: int = 0) -> list[Prompt]:
    """Prompts that name other concepts of the kind, in turn."""
    rng = Random(f"{kind} {concepts} {seed}")
    return [
        ask(concept_scene(kind, concepts[i % len(concepts)], rng), rng, True, *_fields(kind, rng))
        for i in range(count)
    ]


def unrelated_prompts(kind: str, count: int, seed: int = 0) -> list[Prompt]:
    """Prompts for everything that is of another kind: subjects, hands, backgrounds."""
    rng = Random(f"not {kind} {seed}")
    prompts = []
    while len(prompts) < count:
        scene = random_scene(rng)
        if CONCEPTS[scene.concept].kind == kind:
            continue
        fields = ["concept", "background"]
        if kind != "style" and rng.random() < 0.5:
            fields.append("style")
        prompts.append(ask(scene, rng, True, *fields))
    return prompts


def everything_prompts(count: int, by_name: bool, seed: int = 0) -> list[Prompt]:
    """Prompts over the whole world, to measure the unedited model: half name a hand as well."""
    rng = Random(f"everything {by_name} {seed}")
    return [
        ask(
            random_scene(rng),
            rng,
            by_name,
            "concept",
            *(field for field in ("style", "background") if rng.random() < 0.6),
        )
        for _ in range(count)
    ]
