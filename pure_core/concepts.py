"""From the names of concepts and their neighbours to anchors.

The paper's plots suggest six templates and nine neighbours; it publishes no list, so these
templates are ours.

How lists are read. People type a name a line, but also paste lists, so of a list of names

- lines that begin with `#` are comments;
- a mark before each name ("- ", "* ", "\N{BULLET} ") is dropped, and so are numbers ("1. ", "2) ")
  if every line of several has one: alone, "1. FC Nuremberg" is a name;
- a comma or semicolon at the end of a line is dropped;
- a single line with semicolons is several names, and commas belong to them. Without semicolons
  commas separate the neighbours, which are several as a rule; in a concept two or more commas are
  needed, since "Paris, Texas" is one. In a list of several lines commas belong to the names.

Prompts and templates keep all of that. Everywhere invisible characters do not count: byte
order marks and the like are dropped, unusual blanks are blanks, and letters with accents are
composed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from .anchors import NO_ANCHORS, SLOT, AnchorSet
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

_COMMAS, _SEMICOLONS = ",\N{FULLWIDTH COMMA}\N{IDEOGRAPHIC COMMA}", ";\N{FULLWIDTH SEMICOLON}"
_BETWEEN = _COMMAS + _SEMICOLONS
_COMMA, _SEMICOLON = re.compile(f"[{_COMMAS}]"), re.compile(f"[{_SEMICOLONS}]")
_BULLET = re.compile(r"^[-*+\N{BULLET}\N{EN DASH}\N{EM DASH}]\s+")
_NUMBER = re.compile(r"^\d{1,3}[.)]\s+")
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
"""Invisible, but some scripts and emoji need them inside a word."""

COMMAS_IN_CONCEPT = 2
COMMAS_IN_NEIGHBOURS = 1
"""Commas that make a single line several names."""


class PromptError(PureError):
    """The text given for a concept cannot be turned into prompts."""


PLAIN_REPLACEMENT = {"unsafe content": "a person"}
"""Kind of concept -> what it becomes where neither neighbours nor a replacement are named."""


class Anchors(NamedTuple):
    """All sides of an erasure."""

    forget: AnchorSet
    retain: AnchorSet

    replacement: AnchorSet = NO_ANCHORS
    """What all concepts become, in the same phrasings; empty where that is left to the method."""


def lines(text: str) -> tuple[str, ...]:
    """The non-empty lines, each stripped, without invisible characters."""
    return tuple(line for each in text.splitlines() if (line := _visible(each)))


def names(text: str, commas: int) -> tuple[str, ...]:
    """The names in a list that a person typed: see above.

    Args:
        commas: How many make a single line several names; semicolons always do.
    """
    given = [line for line in lines(text) if not line.startswith("#")]
    given = [_BULLET.sub("", line) for line in given]
    if len(given) > 1 and all(map(_NUMBER.match, given)):
        given = [_NUMBER.sub("", line) for line in given]
    given = [line.strip(_BETWEEN + " ") for line in given]
    if len(given) == 1:
        (line,) = given
        if _SEMICOLON.search(line):
            given = _SEMICOLON.split(line)
        elif len(_COMMA.findall(line)) >= commas:
            given = _COMMA.split(line)
    return tuple(found for each in given if (found := " ".join(each.split())))


def _visible(line: str) -> str:
    """The line without invisible characters, with letters composed and usual blanks."""
    composed = unicodedata.normalize("NFC", line)
    shown = "".join(
        " " if unicodedata.category(each) == "Zs" else each
        for each in composed
        if each in _JOINERS or unicodedata.category(each) != "Cf"
    )
    return shown.strip(" \t" + _JOINERS)


def _same_name(name: str) -> str:
    """Equal for names that a person would not tell apart."""
    return "".join(each for each in name.casefold() if each not in _JOINERS)


def paragraphs(text: str) -> tuple[tuple[str, ...], ...]:
    """The lines between empty lines: what belongs to one concept."""
    blocks = re.split(r"\n{2,}", "\n".join(map(_visible, text.splitlines())))
    return tuple(found for block in blocks if (found := lines(block)))


def written_anchors(text: str) -> AnchorSet:
    """Prompts that a person typed, one a line, an empty line between concepts.

    A concept is called by its first prompt, since its name is not said.
    """
    return AnchorSet.written(paragraphs(text))


def as_text(anchors: AnchorSet) -> str:
    """What `written_anchors` reads: a prompt a line, an empty line between concepts."""
    return "\n\n".join("\n".join(anchors.of(name).prompts) for name in anchors.concepts)


def anchors_for(
    concepts: str, kind: str, neighbours: str, templates: str = "", replacement: str = ""
) -> Anchors:
    """The concepts, their neighbours and what they become in every template.

    Args:
        concepts: What to forget, a list as described above.
        kind: One of `KINDS`, chooses the templates.
        neighbours: Concepts to keep, another list, may be empty. One that is named twice counts
            once.
        templates: Own templates, one a line, instead of the kind's.
        replacement: One name, what the concepts become, or nothing; see `PLAIN_REPLACEMENT`. It
            may be a neighbour, too.

    Raises:
        PromptError: no concept, one named twice, an unknown kind, a template without `{}`, a
            concept among its neighbours, or a replacement that is a concept or several names.
    """
    forget = names(concepts, COMMAS_IN_CONCEPT)
    if not forget:
        raise PromptError("concept: expected the name of what to erase, got nothing.")
    folded = [_same_name(name) for name in forget]
    for number, name in enumerate(forget):
        if folded[number] in folded[:number]:
            raise PromptError(f"concept: '{name}' is listed twice. Remove one of them.")
    kept = _each_once(names(neighbours, COMMAS_IN_NEIGHBOURS))
    for neighbour in kept:
        if _same_name(neighbour) in folded:
            raise PromptError(
                f"neighbours: '{neighbour}' is a concept to erase, and what is kept cannot be "
                "erased. Remove that name."
            )
    require_one_of("kind", kind, KINDS, PromptError)
    patterns = lines(templates) or TEMPLATES[kind]
    for pattern in patterns:
        if SLOT not in pattern:
            raise PromptError(
                f"templates: every line has to contain {{}} where the concept goes, got "
                f"'{pattern}'."
            )
    becomes = _replacement(replacement, folded)
    plain = PLAIN_REPLACEMENT.get(kind, "")
    if plain and not becomes and not kept and _same_name(plain) not in folded:
        becomes = (plain,)
    return Anchors(*(AnchorSet.phrased(each, patterns) for each in (forget, kept, becomes)))


def _replacement(text: str, concepts: Sequence[str]) -> tuple[str, ...]:
    """The name that a person typed for what the concepts become; none of an empty text.

    Args:
        concepts: The concepts to erase, as `_same_name` has them.
    """
    found = names(text, COMMAS_IN_CONCEPT)
    if len(found) > 1:
        raise PromptError(
            f"replacement: expected one name, what all concepts become, got {len(found)}: "
            f"{', '.join(found[:3])}. Choose one of them."
        )
    if found and _same_name(found[0]) in concepts:
        raise PromptError(
            f"replacement: '{found[0]}' is a concept to erase, and nothing can become what is "
            "erased. Name something else."
        )
    return found


def _each_once(given: Sequence[str]) -> tuple[str, ...]:
    return tuple({_same_name(name): name for name in reversed(given)}.values())[::-1]
