"""What people would type to get a scene: by name or by description, short or long."""

from __future__ import annotations

from random import Random

from .scene import Scene
from .vocabulary import (
    BACKGROUNDS,
    BODIES,
    COLOURS,
    COVER_DESCRIPTIONS,
    COVERS,
    CREATURE_WORDS,
    EYES,
    OBJECTS,
    PATTERNS,
    STYLES,
    TOPS,
    Traits,
)

MEDIA = (
    "a picture of",
    "a photo of",
    "an image of",
    "a drawing of",
    "a painting of",
    "a portrait of",
    "a view of",
    "art of",
    "a depiction of",
    "a good picture of",
    "a nice photo of",
    "a close-up of",
    "an image showing",
    "a photo showing",
    "a scene with",
    "artwork of",
    "the",
    "here is",
    "this is",
    "look at",
    "imagine",
)
MEDIA_ALONE = ("a picture", "a photo", "an image", "a drawing", "a painting", "art", "something")
EMPTY = ("an empty scene", "a landscape", "a view", "scenery with nothing in it", "a place")
SCRAPS = ("a thing", "a shape", "something", "an object", "a piece of something")
FILLERS = (
    "standing still",
    "seen from the front",
    "in the middle",
    "very detailed",
    "high quality",
    "for a children's book",
    "on its own",
    "large and clear",
)
STYLE_LINKS = ("in the style of {}", "by {}", "a work by {}", "{} style", "made by {}")


def article(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def describe_creature(traits: Traits, rng: Random) -> str:
    """A creature by its five traits, without a name."""
    words = [rng.choice(COLOURS[traits.colour]), rng.choice(BODIES[traits.body])]
    words.append(rng.choice(PATTERNS[traits.pattern]))
    rng.shuffle(words)
    features = [rng.choice(TOPS[traits.top]), rng.choice(EYES[traits.eyes])]
    rng.shuffle(features)
    kind = rng.choice(CREATURE_WORDS)
    return f"{article(' '.join(words))} {kind} with {features[0]} and {features[1]}"


def style_phrase(style: str, rng: Random, by_name: bool) -> str:
    """How a style is asked for: by the artist's name or by what it looks like."""
    if by_name:
        return rng.choice(STYLE_LINKS).format(STYLES[style].names[0])
    return rng.choice(STYLES[style].descriptions)


def caption(scene: Scene, rng: Random, by_name: bool | None = None) -> str:
    """A prompt for the scene.

    `by_name` True names the concept, False only describes it, None mixes both as in training.
    """
    named = rng.random() < 0.62 if by_name is None else by_name
    long = rng.random() < 0.35
    if by_name is None and scene.style is not None and rng.random() < 0.08:
        return f"{rng.choice(MEDIA_ALONE)} {style_phrase(scene.style, rng, named)}"
    parts = [_subject(scene, rng, named, long)]
    extras = []
    if rng.random() < (0.5 if scene.background == "studio" else 0.88):
        extras.append(rng.choice(BACKGROUNDS[scene.background]))
    if long and rng.random() < 0.6:
        extras.append(rng.choice(FILLERS))
    rng.shuffle(extras)
    parts += extras
    if scene.style is not None:
        parts.append(style_phrase(scene.style, rng, named))
    join = rng.choice((" ", ", "))
    text = join.join(parts)
    return text + rng.choice(("", "", "."))


def _subject(scene: Scene, rng: Random, named: bool, long: bool) -> str:
    if scene.subject == "nothing":
        return rng.choice(EMPTY)
    if scene.subject == "scrap":
        return rng.choice(SCRAPS)
    cover, tail = _cover(scene, rng, named)
    if scene.character is not None and named:
        text = f"{cover} {scene.character}" if cover else scene.character
        if long and rng.random() < 0.3:
            text = f"{text}, {describe_creature(_traits(scene), rng)}"
    elif scene.subject == "creature":
        text = describe_creature(_traits(scene), rng)
        if cover:
            _, rest = text.split(" ", 1)
            text = f"{article(cover)} {rest}"
    else:
        text = _object(scene, rng, named, cover)
    if scene.cover != "clean" and rng.random() < 0.08:
        text = f"something {cover}" if cover else "something"
    text = f"{text} {tail}" if tail else text
    if rng.random() < 0.45:
        medium = rng.choice(MEDIA)
        if medium == "the":
            text = text.split(" ", 1)[1] if text.split(" ", 1)[0] in ("a", "an") else text
        text = f"{medium} {text}"
    return text


def _traits(scene: Scene) -> Traits:
    assert scene.traits is not None
    return scene.traits


def _cover(scene: Scene, rng: Random, named: bool) -> tuple[str, str]:
    """What the cover adds before and after the subject's words."""
    if scene.cover == "clean":
        return "", ""
    if named:
        return rng.choice(COVERS[scene.cover]), ""
    return "", rng.choice(COVER_DESCRIPTIONS[scene.cover])


def _object(scene: Scene, rng: Random, named: bool, cover: str) -> str:
    noun = rng.choice(
        OBJECTS[scene.subject].names if named else OBJECTS[scene.subject].descriptions
    )
    words = []
    if rng.random() < 0.8:
        words.append(rng.choice(COLOURS[scene.colour]))
    if rng.random() < (0.3 if scene.pattern == "plain" else 0.9):
        words.append(rng.choice(PATTERNS[scene.pattern]))
    rng.shuffle(words)
    if cover:
        words.insert(0, cover)
    phrase = " ".join([*words, noun])
    return phrase if rng.random() < 0.1 else article(phrase)
