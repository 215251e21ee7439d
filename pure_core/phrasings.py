"""Prompts that say the same of different things: 'a photo of a dog' and 'a photo of a cat'."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import reduce


def name_in(prompts: Sequence[str]) -> str:
    """The longest text that all prompts of one concept share: its name, if they are phrasings."""

    def shared(one: str, other: str) -> str:
        found = SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
        return one[found.a : found.a + found.size]

    return reduce(shared, prompts).strip()


def alike(forget: Sequence[str], groups: Sequence[int], retain: Sequence[str]) -> list[list[int]]:
    """For every forget prompt, the retain prompts in the same phrasing.

    A phrasing is what stands before and after the concept's name. A retain prompt belongs to the
    longest that fits it. Where none does, or a concept has a single prompt, so that its name is not
    known, it is all retain prompts.

    Args:
        groups: How many of the forget prompts each concept has, in their order.
    """
    every = list(range(len(retain)))
    found, start = [], 0
    for count in groups:
        prompts = forget[start : start + count]
        frames = [tuple(each.split(name_in(prompts) or each, 1)) for each in prompts]
        fitting: dict[tuple[str, ...], list[int]] = {frame: [] for frame in frames}
        for index, prompt in enumerate(retain):
            fits = [frame for frame in fitting if _fits(prompt, frame)]
            if fits:
                fitting[max(fits, key=lambda frame: sum(map(len, frame)))].append(index)
        found += [fitting[frame] or every if count > 1 else every for frame in frames]
        start += count
    return found


def _fits(prompt: str, frame: tuple[str, ...]) -> bool:
    before, after = frame[0], frame[-1]
    inside = len(prompt) > len(before) + len(after)
    return inside and prompt.startswith(before) and prompt.endswith(after)
