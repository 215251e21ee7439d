"""What people type and paste as names: lists, marks, comments, characters that cannot be seen."""

from __future__ import annotations

import pytest

from pure_core.concepts import anchors_for, written_anchors


def named(concept: str, neighbours: str = "") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of what is forgotten and of what is kept."""
    forget, retain, _ = anchors_for(concept, "object", neighbours)
    return forget.concepts, retain.concepts


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("cat", ("cat",)),
        ("Paris, Texas", ("Paris, Texas",)),
        ("cat, dog, horse", ("cat", "dog", "horse")),
        ("cat; dog", ("cat", "dog")),
        ("Paris, Texas; Rome", ("Paris, Texas", "Rome")),
        ("Paris, Texas\nRome", ("Paris, Texas", "Rome")),
        ("cat,\ndog,", ("cat", "dog")),
        ("- cat\n* dog\n\u2022 horse", ("cat", "dog", "horse")),
        ("1. cat\n2. dog", ("cat", "dog")),
        ("1) cat\n2) dog", ("cat", "dog")),
        ("1. FC Nuremberg", ("1. FC Nuremberg",)),
        ("R2-D2\n3D glasses", ("R2-D2", "3D glasses")),
        ("# animals\ncat\n# more\ndog", ("cat", "dog")),
        ("# animals\ncat, dog, horse", ("cat", "dog", "horse")),
        ("\ufeffcat\u200b", ("cat",)),
        ("Van\u00a0\u00a0Gogh", ("Van Gogh",)),
        ("Dali\u0301", ("Dal\u00ed",)),
        ("\u732b\uff0c\u72ac\uff0c\u99ac", ("\u732b", "\u72ac", "\u99ac")),
    ],
)
def test_concepts(typed: str, read: tuple[str, ...]) -> None:
    assert named(typed)[0] == read


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("dog, horse", ("dog", "horse")),
        ("dog; Paris, Texas", ("dog", "Paris, Texas")),
        ("dog\nParis, Texas", ("dog", "Paris, Texas")),
        ("dog\nDog\n dog\u200b\nhorse", ("dog", "horse")),
        ("Dali\u0301\nDal\u00ed", ("Dal\u00ed",)),
        ("# nothing\n\n", ()),
    ],
)
def test_neighbours(typed: str, read: tuple[str, ...]) -> None:
    assert named("cat", typed)[1] == read


def test_a_concept_among_its_neighbours_is_found_behind_invisible_characters() -> None:
    with pytest.raises(ValueError, match="is a concept to erase"):
        named("cat", "dog, c\u200dat")


def test_prompts_keep_commas_and_marks_and_lose_what_cannot_be_seen() -> None:
    typed = "\ufeffa cat, a dog, a horse\n- 1. #one\n\u200b\n# two;\u00a0three"
    assert written_anchors(typed).record() == [
        {"prompt": "a cat, a dog, a horse", "concept": "a cat, a dog, a horse"},
        {"prompt": "- 1. #one", "concept": "a cat, a dog, a horse"},
        {"prompt": "# two; three", "concept": "# two; three"},
    ]
