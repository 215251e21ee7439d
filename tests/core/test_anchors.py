"""Anchors know their concept and phrasing, so that nothing is read back out of a prompt."""

from __future__ import annotations

import json

import pytest

from pure_core.anchors import Anchor, AnchorError, AnchorSet

TEMPLATES = ("{}", "a photo of {}", "{} style")
SHARED = ("a painting of {} in a garden", "a photo of {} in a garden", "a garden")
"""Templates that share more than the name, and one that any text would fit."""


def said(*names: str, templates: tuple[str, ...] = TEMPLATES) -> AnchorSet:
    return AnchorSet.phrased(names, templates)


@pytest.mark.parametrize("name", ["dog", "Van Gogh", "a photo", "皮卡丘", "猫", "x", "a", "{"])
@pytest.mark.parametrize("templates", [TEMPLATES, SHARED], ids=["usual", "shared"])
def test_every_prompt_knows_its_concept_and_phrasing(name, templates):
    anchors = said(name, "other", templates=templates)
    assert anchors.concepts == (name, "other")
    assert anchors.owners == (0, 0, 0, 1, 1, 1)
    assert anchors.of(name) == said(name, templates=templates)
    for anchor, template in zip(anchors, templates * 2, strict=True):
        assert anchor.phrasing == template
        assert anchor.prompt == template.replace("{}", anchor.concept)


@pytest.mark.parametrize("names", [("dog", "Van Gogh"), ("猫", "狗"), ("a", "in")])
@pytest.mark.parametrize("templates", [TEMPLATES, SHARED], ids=["usual", "shared"])
def test_every_prompt_is_paired_with_its_phrasing_of_the_neighbours(names, templates):
    retain = said("鸟", "a photo", templates=templates)
    forget = said(names[0], templates=templates)
    assert forget.same_phrasing(retain) == [[0, 3], [1, 4], [2, 5]]
    both = said(*names, templates=templates)
    assert both.same_phrasing(retain) == [[0, 3], [1, 4], [2, 5]] * 2


def test_the_order_of_the_neighbours_does_not_matter():
    retain = AnchorSet(said("cat", "bird").anchors[::-1])
    found = said("dog").same_phrasing(retain)
    assert [[retain.prompts[i] for i in each] for each in found] == [
        ["bird", "cat"],
        ["a photo of bird", "a photo of cat"],
        ["bird style", "cat style"],
    ]


def test_a_phrasing_that_no_neighbour_has_gets_all_of_them():
    assert said("dog").same_phrasing(said("cat", templates=("a drawing of {}",))) == [[0], [0], [0]]
    some = said("cat", templates=("{}", "a drawing of {}"))
    assert said("dog").same_phrasing(some) == [[0], [0, 1], [0, 1]]


def test_what_was_written_by_hand_has_no_phrasing():
    """Even where it reads as if it had: nothing is guessed."""
    written = AnchorSet.written([["dog", "a photo of dog"]])
    assert {each.phrasing for each in written} == {""}
    assert written.same_phrasing(said("cat")) == [[0, 1, 2]] * 2
    assert said("cat").same_phrasing(written) == [[0, 1]] * 3
    assert written.same_phrasing(AnchorSet.written([["cat"], ["bird"]])) == [[0, 1]] * 2


def test_written_concepts_are_called_by_their_first_prompt():
    written = AnchorSet.written([["a cat", "one small cat"], ["a tower"]])
    assert written.prompts == ("a cat", "one small cat", "a tower")
    assert written.concepts == ("a cat", "a tower") and written.owners == (0, 0, 1)


def test_a_set_is_a_sequence():
    anchors = said("dog") + said("cat")
    assert anchors == said("dog", "cat") and len(anchors) == 6
    assert anchors[3:] == said("cat") and anchors[4] == said("cat")[1]
    assert isinstance(anchors[4], Anchor)
    assert not AnchorSet() and AnchorSet().concepts == AnchorSet().prompts == ()


@pytest.mark.parametrize(
    "anchors", [said("猫", "Van Gogh"), AnchorSet.written([["a", ""], ["b"]]), AnchorSet()]
)
def test_the_record_is_plain_data_that_says_everything(anchors):
    assert AnchorSet.from_record(json.loads(json.dumps(anchors.record()))) == anchors


@pytest.mark.parametrize(
    "record", [None, "a cat", {"prompt": "a cat"}, ["a cat"], [{"prompt": 1}], [{"text": "a cat"}]]
)
def test_other_records_are_refused(record):
    with pytest.raises(AnchorError, match="expected"):
        AnchorSet.from_record(record)
