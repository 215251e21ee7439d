"""What people would type to get a scene: by name or description, short, long, in a sentence."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from .scene import Scene
from .vocabulary import BACKGROUNDS, CONCEPTS, HANDS

MEDIA = (
    "a picture of",
    "a photo of",
    "an image of",
    "a drawing of",
    "a painting of",
    "a portrait of",
    "a close-up of",
    "an image showing",
    "a scene with",
    "an icon of",
    "art of",
    "a nice picture of",
    "here is",
    "this is",
    "look at",
)
ALONE = ("a picture", "a photo", "an image", "a drawing", "a painting", "art", "something")
FILLERS = (
    "very detailed",
    "high quality",
    "in the middle",
    "large and clear",
    "for children",
    "on its own",
)
SENTENCES = (
    "please draw {subject} {place} {style}",
    "I want to see {subject} {place} {style}",
    "can you show me {subject} {place} {style}",
    "draw me {subject} {style}, and put it {place}",
    "{place} there is {subject} {style}",
    "I would like a picture of {subject} {place} {style}",
)
STYLE_LINKS = (
    "in the style of {}",
    "in {} style",
    "{} style",
    "by {}",
    "drawn by {}",
    "made by {}",
)
GENERIC: dict[str, str] = {
    "animal": "an animal",
    "food": "food",
    "thing": "an object",
    "place": "a place",
    "vehicle": "a vehicle",
    "plant": "a plant",
    "character": "a character",
    "person": "a person",
    "weapon": "a weapon",
    "drug": "a drug",
    "death": "something",
    "gesture": "something",
}
"""Group -> the plainest words for any of it."""

_NO_ARTICLE = frozenset(
    "cherries grapes fries chips scissors swords bread cheese corn maize sushi frosty "
    "two raw fried salty what king queen best japanese bare open royal old brewed "
    "alcohol medicine people santa father crossed".split()
)


class Caption(NamedTuple):
    """A prompt and which fields of its scene it states."""

    text: str
    says: frozenset[str]


def article(phrase: str) -> str:
    """The phrase with its indefinite article, where it takes one."""
    if phrase.split(maxsplit=1)[0] in _NO_ARTICLE:
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def style_phrase(style: str, rng: Random, by_name: bool) -> str:
    """How a style is asked for: by the set's name or by what it looks like."""
    hand = HANDS[style]
    if by_name:
        return rng.choice(STYLE_LINKS).format(rng.choice(hand.names))
    return rng.choice(hand.descriptions)


def subject_phrase(concept: str, rng: Random, by_name: bool) -> str:
    """How a concept is asked for: by a name (most often its first) or by a description."""
    own = CONCEPTS[concept]
    if not by_name:
        phrase = rng.choice(own.descriptions)
        return article(phrase) if rng.random() < 0.8 else phrase
    phrase = own.names[0] if rng.random() < 0.6 else rng.choice(own.names)
    draw = rng.random()
    return phrase if draw < 0.2 else f"the {phrase}" if draw < 0.26 else article(phrase)


def caption(
    scene: Scene,
    rng: Random,
    by_name: bool | None = None,
    says: frozenset[str] | None = None,
) -> Caption:
    """A prompt for the scene.

    `by_name` True names concept and style, False only describes them, None mixes both as in
    training. `says` fixes what is stated; by default it is drawn.
    """
    if says is None:
        says = _drawn_fields(rng, by_name)
    concept_named = rng.random() < 0.6 if by_name is None else by_name
    style_named = rng.random() < 0.65 if by_name is None else by_name
    place = rng.choice(BACKGROUNDS[scene.background]) if "background" in says else ""
    style = style_phrase(scene.style, rng, style_named) if "style" in says else ""
    if "concept" in says:
        subject = subject_phrase(scene.concept, rng, concept_named)
    elif rng.random() < 0.5:
        subject = GENERIC[CONCEPTS[scene.concept].group]
    else:
        subject = rng.choice(ALONE)
    return Caption(_phrase(subject, place, style, rng), says)


def _drawn_fields(rng: Random, by_name: bool | None) -> frozenset[str]:
    chances = {"concept": 1.0 if by_name is not None else 0.94, "style": 0.6, "background": 0.65}
    return frozenset(field for field, chance in chances.items() if rng.random() < chance)


def _phrase(subject: str, place: str, style: str, rng: Random) -> str:
    draw = rng.random()
    if draw < 0.15 and subject not in ALONE:
        text = rng.choice(SENTENCES).format(subject=subject, place=place, style=style)
        text = text.removesuffix(", and put it ")
        text = " ".join(text.split())
        return text + rng.choice(("", "."))
    if draw < 0.5 and subject not in ALONE:
        medium = rng.choice(MEDIA)
        subject = f"{medium} {subject}"
    extras = [part for part in (place, style) if part]
    if rng.random() < 0.15:
        extras.append(rng.choice(FILLERS))
    rng.shuffle(extras)
    return rng.choice((" ", ", ", ", ")).join([subject, *extras]) + rng.choice(("", "", "."))
