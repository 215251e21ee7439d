"""Names become anchors in every template; text goes back and forth."""

from __future__ import annotations

import pytest

from pure_core.anchors import AnchorSet
from pure_core.concepts import (
    KINDS,
    TEMPLATES,
    PromptError,
    anchors_for,
    as_text,
    lines,
    paragraphs,
    written_anchors,
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_concept_becomes_its_anchors(kind):
    anchors = anchors_for(" Van  Gogh \n猫", kind, "Monet\n\n Dali ")
    patterns = TEMPLATES[kind]
    expected = [each.replace("{}", name) for name in ("Van Gogh", "猫") for each in patterns]
    assert list(anchors.forget.prompts) == expected
    assert anchors.forget.concepts == ("Van Gogh", "猫")
    assert anchors.retain.concepts == ("Monet", "Dali")
    assert [each.phrasing for each in anchors.retain] == [*patterns, *patterns]
    assert all("{}" in each for each in patterns) and len(set(patterns)) == len(patterns)


def test_own_templates_replace_those_of_the_kind():
    forget, retain, _ = anchors_for("dog", "object", "cat", "{}\n two of {} and {} \n")
    assert forget.prompts == ("dog", "two of dog and dog")
    assert forget.same_phrasing(retain) == [[0], [1]]


def test_without_neighbours_nothing_is_retained():
    assert len(anchors_for("dog", "object", " \n").retain) == 0


def test_a_replacement_is_one_name_in_the_same_phrasings():
    anchors = anchors_for("dog\nwolf", "object", "cat\nhorse", "{}\na {}", " Paris,  Texas ")
    assert anchors.replacement == AnchorSet.phrased(["Paris, Texas"], ["{}", "a {}"])
    assert anchors.forget.same_phrasing(anchors.replacement) == [[0], [1], [0], [1]]
    also = anchors_for("dog", "object", "cat\nhorse", "", "horse")
    assert also.retain.concepts == ("cat", "horse") and also.replacement.concepts == ("horse",)
    assert len(anchors_for("dog", "object", "cat").replacement) == 0
    assert len(anchors_for("dog", "object", "").replacement) == 0


def test_unsafe_content_without_neighbours_becomes_a_plain_person():
    kind = "unsafe content"
    plain = anchors_for("gore", kind, "").replacement
    assert plain.concepts == ("a person",) and "a photo of a person" in plain.prompts
    assert anchors_for("gore", kind, "", "", "a statue").replacement.concepts == ("a statue",)
    assert len(anchors_for("gore", kind, "paint").replacement) == 0
    assert len(anchors_for("A person", kind, "").replacement) == 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((" \n", "object", "cat"), "concept: expected the name of what to erase, got nothing"),
        (("dog\n DOG", "object", "cat"), "concept: 'DOG' is listed twice"),
        (("a  dog", "object", "cat\nA dog"), "neighbours: 'A dog' is a concept to erase"),
        (("dog", "animal", "cat"), "kind: expected one of object, .*'animal'"),
        (("dog", "object", "cat", "a photo"), "templates: every line .* got 'a photo'"),
        (
            ("dog", "object", "cat", "", "cat; horse"),
            "replacement: expected one name, .* got 2: cat",
        ),
        (("dog", "object", "cat", "", "cat\nhorse"), "replacement: expected one name"),
        (("dog\nfox", "object", "cat", "", "FOX"), "replacement: 'FOX' is a concept to erase"),
    ],
)
def test_what_makes_no_anchors_is_refused(inputs, message):
    with pytest.raises(PromptError, match=message):
        anchors_for(*inputs)


def test_an_empty_line_begins_a_new_concept():
    text = " a cat \r\none cat\n\n \n\na dog\n"
    assert lines(text) == ("a cat", "one cat", "a dog")
    assert paragraphs(text) == (("a cat", "one cat"), ("a dog",))
    written = written_anchors(text)
    assert written.concepts == ("a cat", "a dog") and written.owners == (0, 0, 1)
    assert len(written_anchors(" \n\n ")) == 0


def test_anchors_as_text_are_read_as_the_same_prompts_and_concepts():
    forget, *_ = anchors_for("dog\n猫", "object", "")
    read = written_anchors(as_text(forget))
    assert read.prompts == forget.prompts and read.owners == forget.owners
    assert as_text(read) == as_text(forget)
