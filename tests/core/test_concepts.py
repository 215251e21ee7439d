"""Names become anchors in every template; text goes back and forth."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((" \n", "object", "cat"), "concept: expected the name of what to erase, got nothing"),
        (("dog\n DOG", "object", "cat"), "concept: 'DOG' is listed twice"),
        (("a  dog", "object", "cat\nA dog"), "neighbours: 'A dog' is a concept to erase"),
        (("dog", "animal", "cat"), "kind: expected one of object, .*'animal'"),
        (("dog", "object", "cat", "a photo"), "templates: every line .* got 'a photo'"),
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
