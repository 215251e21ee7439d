"""From a concept to its anchor prompts.

The anchors of PURE (arXiv 2605.25765) are short phrasings of the target (forget) and of concepts
of the same category (retain). The paper's plots suggest six templates and nine neighbours; it
publishes no list, so these templates are ours.
"""

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


class PromptError(PureError):
    """The text given for a concept cannot be turned into prompts."""


class Anchors(NamedTuple):
    """Prompts to capture."""

    forget: tuple[str, ...]
    retain: tuple[str, ...]


def lines(text: str) -> tuple[str, ...]:
    """The non-empty lines, each stripped."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def anchors(concept: str, kind: str, neighbours: str, templates: str = "") -> Anchors:
    """The concept and its neighbours in every template.

    Args:
        concept: What to forget.
        kind: One of `KINDS`, chooses the templates.
        neighbours: Concepts to keep, one a line, may be empty.
        templates: Own templates, one a line, instead of the kind's.

    Raises:
        PromptError: no concept, a template without `{}`, or the concept among its neighbours.
    """
    name = " ".join(concept.split())
    if not name:
        raise PromptError("concept: expected the name of what to erase, got nothing.")
    kept = lines(neighbours)
    if name.casefold() in {neighbour.casefold() for neighbour in kept}:
        raise PromptError(
            f"neighbours: '{name}' is the concept itself, and what is kept cannot be erased. "
            "Remove that line."
        )
    patterns = lines(templates) or TEMPLATES[kind]
    for pattern in patterns:
        if "{}" not in pattern:
            raise PromptError(
                f"templates: every line has to contain {{}} where the concept goes, got "
                f"'{pattern}'."
            )
    return Anchors(
        tuple(pattern.replace("{}", name) for pattern in patterns),
        tuple(pattern.replace("{}", each) for each in kept for pattern in patterns),
    )
