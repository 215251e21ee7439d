"""Prompts in the same phrasing find each other."""

from __future__ import annotations

import pytest
from pure_core.phrasings import alike, name_in

TEMPLATES = ("{}", "a photo of {}", "{} style")


def said(*names: str) -> list[str]:
    return [template.replace("{}", name) for name in names for template in TEMPLATES]


@pytest.mark.parametrize("name", ["dog", "Van Gogh", "a photo", "皮卡丘"])
def test_the_name_is_what_all_phrasings_share(name):
    assert name_in(said(name)) == name


def test_every_prompt_is_paired_with_its_phrasing_of_the_neighbours():
    retain = said("cat", "bird")
    assert alike(said("dog"), (3,), retain) == [[0, 3], [1, 4], [2, 5]]
    assert alike(said("dog", "Van Gogh"), (3, 3), retain) == [[0, 3], [1, 4], [2, 5]] * 2


def test_the_order_of_the_neighbours_does_not_matter():
    retain = said("cat", "bird")
    found = alike(said("dog"), (3,), retain[::-1])
    assert [[retain[::-1][i] for i in each] for each in found] == [
        ["bird", "cat"],
        ["a photo of bird", "a photo of cat"],
        ["bird style", "cat style"],
    ]


def test_a_phrasing_that_no_neighbour_has_gets_all_of_them():
    assert alike(said("dog"), (3,), ["a photo of a cat"]) == [[0], [0], [0]]
    assert alike(["a drawing of dog", "look at dog"], (2,), ["cat", "bird"]) == [[0, 1], [0, 1]]


def test_a_single_prompt_has_no_known_name():
    assert alike(["a photo of dog"], (1,), said("cat")) == [[0, 1, 2]]
    assert alike(["dog", "dog"], (2,), said("cat")) == [[0, 1, 2]] * 2
