"""From concepts to their anchor prompts.

The anchors of PURE (arXiv 2605.25765) are short phrasings of the target (forget) and of concepts
of the same category (retain). The paper's plots suggest six templates and nine neighbours; it
publishes no list, so these templates are ours.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from ..pure_core.errors import PureError

_THING = (
    "{}",
    "a picture of {}",
    "a photo of {}",
    "a drawing of {}",
    "an image of {}",
    "a painting of {}",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": _THING,
    "style": (
        "a picture in the style of {}",
        "a painting by {}",
        "art by {}",
        "a drawing in the style of {}",
        "{} style",
        "an image made by {}",
    ),
    "character": _THING,
    "person": (
        "{}",
        "a photo of {}",
        "a portrait of {}",
        "a picture of {}",
        "an image of {}",
        "a close-up of {}",
    ),
    "unsafe content": (
        "{}",
        "a photo of {}",
        "a picture of {}",
        "an image showing {}",
        "a scene with {}",
        "a painting of {}",
    ),
    "custom": ("{}",),
}
"""Kind of concept -> templates, `{}` stands for the concept."""

KINDS = tuple(TEMPLATES)

ORDINARY: tuple[str, ...] = (
    "a dog on a sofa",
    "a cat sleeping in the sun",
    "a horse running in a field",
    "a bird on a branch",
    "a fish in clear water",
    "a butterfly on a flower",
    "a tree on a meadow",
    "a forest in autumn",
    "a mountain with snow",
    "a waterfall in the jungle",
    "a beach with palm trees",
    "the sea under a cloudy sky",
    "a desert at night",
    "a city street in the rain",
    "a small town in winter",
    "a red house with a garden",
    "an old castle on a hill",
    "a bridge over a river",
    "a boat on the sea",
    "a train in a station",
    "a blue car on a road",
    "a bicycle against a wall",
    "a white cup on a table",
    "a bowl of fruit",
    "a cake with candles",
    "a glass of wine",
    "a loaf of bread",
    "a yellow chair in an empty room",
    "a lamp on a desk",
    "a book with a leather cover",
    "a key on a wooden board",
    "a black clock on a wall",
    "an umbrella in the rain",
    "a green ball on grass",
    "a golden ring",
    "a bell on a string",
    "a mushroom in the grass",
    "a star in the night sky",
    "a heart made of paper",
    "a box in a corner",
    "a woman with a hat",
    "a man reading a newspaper",
    "a child with a balloon",
    "an old man with a beard",
    "a portrait of a young woman",
    "two people walking in a park",
    "a crowd at a concert",
    "a football player on a field",
    "a robot in a laboratory",
    "a round monster with one eye",
    "a tall creature with horns",
    "a purple dragon with long ears",
    "a small orange creature with three eyes",
    "a spaceship above a planet",
    "an oil painting of a landscape",
    "a pencil drawing of a tree",
    "a black and white photo of a street",
    "a watercolor of flowers",
    "a comic with bright colors",
    "a photo of something striped",
)
"""Captions of ordinary pictures, for methods that keep everything else by them."""


class PromptError(PureError):
    """The text given for a concept cannot be turned into prompts."""


class Anchors(NamedTuple):
    """Prompts to capture."""

    concepts: tuple[tuple[str, ...], ...]
    """Of every concept, its forget prompts."""

    retain: tuple[str, ...]

    others: tuple[str, ...] = ()
    """Captions of everything else, where a method takes them."""

    @property
    def forget(self) -> tuple[str, ...]:
        """The prompts of all concepts, one concept after the other."""
        return tuple(chain.from_iterable(self.concepts))


def lines(text: str) -> tuple[str, ...]:
    """The non-empty lines, each stripped."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def paragraphs(text: str) -> tuple[tuple[str, ...], ...]:
    """The lines between empty lines: what belongs to one concept."""
    blocks = re.split(r"\n\s*\n", "\n".join(text.splitlines()))
    return tuple(found for block in blocks if (found := lines(block)))


def text_of(concepts: Sequence[Sequence[str]]) -> str:
    """What `paragraphs` reads back: a prompt a line, an empty line between concepts."""
    return "\n\n".join("\n".join(prompts) for prompts in concepts)


def anchors(concepts: str, kind: str, neighbours: str, templates: str = "") -> Anchors:
    """The concepts and their neighbours in every template.

    Args:
        concepts: What to forget, one a line.
        kind: One of `KINDS`, chooses the templates.
        neighbours: Concepts to keep, one a line, may be empty.
        templates: Own templates, one a line, instead of the kind's.

    Raises:
        PromptError: no concept, one named twice, a template without `{}`, or a concept among its
            neighbours.
    """
    names = tuple(" ".join(line.split()) for line in lines(concepts))
    if not names:
        raise PromptError("concept: expected the name of what to erase, got nothing.")
    folded = [name.casefold() for name in names]
    for number, name in enumerate(names):
        if folded[number] in folded[:number]:
            raise PromptError(f"concept: '{name}' stands there twice. Remove one of the lines.")
    kept = lines(neighbours)
    for neighbour in kept:
        if neighbour.casefold() in folded:
            raise PromptError(
                f"neighbours: '{neighbour}' is a concept to erase, and what is kept cannot be "
                "erased. Remove that line."
            )
    patterns = lines(templates) or TEMPLATES[kind]
    for pattern in patterns:
        if "{}" not in pattern:
            raise PromptError(
                f"templates: every line has to contain {{}} where the concept goes, got "
                f"'{pattern}'."
            )
    return Anchors(
        tuple(tuple(pattern.replace("{}", name) for pattern in patterns) for name in names),
        tuple(pattern.replace("{}", each) for each in kept for pattern in patterns),
    )
