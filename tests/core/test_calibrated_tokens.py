"""Calibrated tokens against their definition, token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pure_core.anchors import AnchorSet
from pure_core.errors import FitError
from pure_core.fitting import fit_text
from pure_core.methods.calibrated_tokens import standing_for, token_groups
from pure_core.methods.calibration import calibrate
from pure_core.text import TextTask, TextVectors
from tests.core.texts import WIDTH, edited, encoded, random, text_task, weights

EYE = torch.eye(WIDTH, dtype=torch.float64)
PHRASINGS = ("{}", "a photo of {}", "one small {}")
NAMES = ("dog", "red fox", "horse")
METHOD = "calibrated tokens"


def phrased(*names: str) -> TextVectors:
    anchors = AnchorSet.phrased(names, PHRASINGS)
    return replace(encoded(*anchors.prompts), anchors=anchors)


def task(anchor: TextVectors | None = None) -> TextTask:
    own = phrased("cat")
    nothing = text_task(own.prompts, ("",)).anchor
    return replace(text_task(), forget=own, anchor=anchor or nothing, retain=phrased(*NAMES))


def tokens(vectors: TextVectors, number: int) -> Tensor:
    return vectors.vectors[number][1 : vectors.ends[number] + 1]


def target(row: Tensor, place: int, length: int, others: list[Tensor]) -> Tensor:
    """By loops: of each prompt the nearer of the tokens counted from both ends."""
    found = []
    for other in others:
        first = other[min(place, len(other) - 1)]
        last = other[max(place - length + len(other), 0)]
        found.append(min(first, last, key=lambda each: float((each - row).norm())))
    return torch.stack(found).mean(0)


def dense(given: TextTask, balance: float, damping: float, overshoot: float) -> Tensor:
    """E from sums over tokens."""
    retain = [tokens(given.retain, each) for each in range(len(given.retain.ends))]
    replaced = given.anchor.prompts[0] != ""
    extra = [tokens(given.anchor, each) for each in range(3)] if replaced else []
    kept = torch.cat([*retain, *extra, given.empty.vectors[0][:2]])
    change, seen, count = torch.zeros_like(EYE), torch.zeros_like(EYE), 0
    for number in range(3):
        rows = tokens(given.forget, number)
        for place, row in enumerate(rows):
            if replaced:
                goal = target(row, place, len(rows), [extra[number]])
            else:
                each = [retain[3 * name : 3 * name + 3] for name in range(3)]
                goal = torch.stack([target(row, place, len(rows), own) for own in each]).mean(0)
            change += torch.outer(goal - row, row)
            seen += torch.outer(row, row)
            count += 1
    floor = damping * kept.square().mean()
    moment = seen / count + balance * kept.T @ kept / len(kept) + floor * EYE
    return EYE + overshoot * change / count @ torch.linalg.inv(moment)


@pytest.mark.parametrize("balance", [1.0, 10.0, 200.0])
@pytest.mark.parametrize("becomes", [None, "horse"])
def test_it_is_least_squares_with_what_it_found(balance, becomes):
    given = task(phrased(becomes) if becomes else None)
    eraser = fit_text(METHOD, given, balance=balance)
    chosen = calibrate([token_groups(given)], balance)
    assert eraser.provenance.settings.items() >= {"balance": balance, **chosen.rounded()}.items()
    by_hand = dense(given, balance, chosen.damping, chosen.overshoot)
    after = edited(given, eraser)
    for at, weight in weights(given, eraser).items():
        assert torch.allclose(after[at], weight @ by_hand, atol=1e-4)


def test_a_token_goes_where_the_one_at_its_place_is():
    """Whatever a name's length: what stands before it is counted from the first word."""
    words = random(5, WIDTH, seed=3)
    longer = torch.cat([words[:2], random(2, WIDTH, seed=4), words[3:]])
    found = standing_for(words, [longer])
    assert torch.equal(found[[0, 1, 3, 4]], words[[0, 1, 3, 4]])
    assert any(torch.equal(found[2], each) for each in longer[2:4])
    assert torch.equal(standing_for(words, [longer, words]), (found + words) / 2)


def test_groups_are_phrasings_and_names():
    groups = token_groups(task())
    assert [len(each) for each in groups.forget] == [2, 5, 4]
    assert [tuple(each.shape[:2]) for each in groups.others] == [(3, 2), (3, 5), (3, 4)]
    assert len(groups.kept) == len(NAMES) and groups.shifting
    by_hand = replace(task(), retain=encoded("a dog", "the fox"))  # each is one of its own
    assert len(token_groups(by_hand).kept) == 2


def test_the_neighbours_and_the_empty_prompt_stay():
    given = task()
    layer = next(iter(fit_text(METHOD, given, balance=1000.0).layers.values())).to(torch.float64)
    for rows in (given.retain.words, given.empty.read):
        assert (layer(rows) - rows).norm() < 0.15 * rows.norm()
    with pytest.raises(FitError, match="retain: the method calibrated tokens keeps"):
        fit_text(METHOD, replace(given, retain=None))
    with pytest.raises(FitError, match="balance: expected from"):
        fit_text(METHOD, given, balance=0.0)


def test_repeated_neighbours_change_nothing():
    given = task()
    twice = replace(given, retain=given.retain.chosen([*range(9), *range(9)]))
    one, other = (fit_text(METHOD, each).provenance.settings for each in (given, twice))
    assert one["damping"] == other["damping"]
    assert other["overshoot"] == pytest.approx(one["overshoot"], rel=0.02)
