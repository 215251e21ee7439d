"""From the names of concepts and their neighbours to anchors.

The paper's plots suggest six templates and nine neighbours; it publishes no list, so these
templates are ours.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .anchors import SLOT, AnchorSet
from .errors import PureError, require_one_of

_PLAIN = (
    "{}",
    "a picture of {}",
    "a photo of {}",
    "a drawing of {}",
    "an image of {}",
    "a painting of {}",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": _PLAIN,
    "style": (
        "a picture in the style of {}",
        "a painting by {}",
        "art by {}",
        "a drawing in the style of {}",
        "{} style",
        "an image made by {}",
    ),
    "character": _PLAIN,
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
    """Both sides of an erasure."""

    forget: AnchorSet
    retain: AnchorSet


def lines(text: str) -> tuple[str, ...]:
    """The non-empty lines, each stripped."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def paragraphs(text: str) -> tuple[tuple[str, ...], ...]:
    """The lines between empty lines: what belongs to one concept."""
    blocks = re.split(r"\n\s*\n", "\n".join(text.splitlines()))
    return tuple(found for block in blocks if (found := lines(block)))


def written_anchors(text: str) -> AnchorSet:
    """Prompts that a person typed, one a line, an empty line between concepts.

    A concept is called by its first prompt, since its name is not said.
    """
    return AnchorSet.written(paragraphs(text))


def as_text(anchors: AnchorSet) -> str:
    """What `written_anchors` reads: a prompt a line, an empty line between concepts."""
    return "\n\n".join("\n".join(anchors.of(name).prompts) for name in anchors.concepts)


def anchors_for(concepts: str, kind: str, neighbours: str, templates: str = "") -> Anchors:
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
            raise PromptError(f"concept: '{name}' is listed twice. Remove one of the lines.")
    kept = tuple(" ".join(line.split()) for line in lines(neighbours))
    for neighbour in kept:
        if neighbour.casefold() in folded:
            raise PromptError(
                f"neighbours: '{neighbour}' is a concept to erase, and what is kept cannot be "
                "erased. Remove that line."
            )
    require_one_of("kind", kind, KINDS, PromptError)
    patterns = lines(templates) or TEMPLATES[kind]
    for pattern in patterns:
        if SLOT not in pattern:
            raise PromptError(
                f"templates: every line has to contain {{}} where the concept goes, got "
                f"'{pattern}'."
            )
    return Anchors(AnchorSet.phrased(names, patterns), AnchorSet.phrased(kept, patterns))
