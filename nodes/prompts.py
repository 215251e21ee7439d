"""From concepts to their anchor prompts.

The anchors of PURE (arXiv 2605.25765) are short phrasings of the target (forget) and of concepts
of the same category (retain). The paper's plots suggest six templates and nine neighbours; it
publishes no list, so these templates are ours.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from ..pure_core.errors import PureError, require_one_of

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


class PromptError(PureError):
    """The text given for a concept cannot be turned into prompts."""


class Anchors(NamedTuple):
    """Prompts to capture."""

    concepts: tuple[tuple[str, ...], ...]
    """Of every concept, its forget prompts."""

    retain: tuple[str, ...]

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
        PromptError: no concept, one named twice, an unknown kind, a template without `{}`, or a
            concept among its neighbours.
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
    require_one_of("kind", kind, KINDS, PromptError)
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
