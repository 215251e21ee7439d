"""Rates say how sure they are, and a ledger loses nothing that was finished."""

from __future__ import annotations

import json
import math

import pytest

from pure_core.evaluation.ledger import Ledger, LedgerError
from pure_core.evaluation.rates import Rate, Z, harmonic_mean

FIELDS = ("method", "seed")


@pytest.mark.parametrize("rate", [Rate(3, 24), Rate(40, 41), Rate(500, 1000)])
def test_the_ends_of_wilsons_interval_solve_its_equation(rate):
    for p in rate.interval():
        assert abs(rate.value - p) == pytest.approx(Z * math.sqrt(p * (1 - p) / rate.total))


def test_the_interval_of_none_and_of_all():
    low, high = Rate(0, 8).interval()
    assert low == 0 and high == pytest.approx(Z * Z / (8 + Z * Z))
    assert Rate(8, 8).interval() == pytest.approx((1 - high, 1))
    assert all(map(math.isnan, Rate(0, 0).interval()))


def test_a_published_interval():
    """15 of 148: 0.0624 to 0.1605 (Newcombe, Stat. Med. 17, 1998, table I, method 3)."""
    assert Rate(15, 148).interval() == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_counts_add_up_and_print_with_a_leading_zero():
    assert Rate(1, 8) + Rate(3, 8) == Rate(4, 16)
    assert str(Rate(4, 16)) == "0.25 (0.10–0.49, n=16)"
    assert str(Rate(0, 0)) == "-"
    pair = (3, 8)
    with pytest.raises(TypeError):
        Rate(1, 8) + pair


def test_the_harmonic_mean_is_that_of_the_reciprocals():
    assert harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.25] * 4) == pytest.approx(0.25)
    assert harmonic_mean([1.0, 0.0]) == 0
    for wrong in ([], [0.5, -0.1]):
        with pytest.raises(ValueError, match="expected"):
            harmonic_mean(wrong)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "results.jsonl"


def test_a_ledger_goes_on_where_it_stopped(file):
    ledger = Ledger(file, FIELDS)
    assert not file.exists()
    ledger.add(("pure", 0), {"by name": Rate(3, 24), "fit_s": 0.05})
    ledger.add(("ridge", 0), {"by name": Rate(0, 24), "note": "größer"})
    again = Ledger(file, FIELDS)
    assert dict(again) == dict(ledger)
    assert Rate(*again["pure", 0]["by name"]) == Rate(3, 24)
    assert ("pure", 1) not in again
    again.add(("pure", 1), {})
    assert list(Ledger(file, FIELDS)) == [("pure", 0), ("ridge", 0), ("pure", 1)]


def test_every_line_is_json_and_says_its_key(file):
    Ledger(file, FIELDS).add(("pure", 0), {"note": "größer"})
    head, line = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert head["key"] == list(FIELDS)
    assert line == {"method": "pure", "seed": 0, "note": "größer"}
    assert "größer" in file.read_text(encoding="utf-8")


def test_the_last_of_two_entries_counts(file):
    ledger = Ledger(file, FIELDS)
    for value in (1, 2):
        ledger.add(("pure", 0), {"value": value})
    assert ledger["pure", 0] == Ledger(file, FIELDS)["pure", 0] == {"value": 2}


def test_a_kill_anywhere_loses_the_unfinished_line_alone(file):
    ledger = Ledger(file, FIELDS)
    for seed in range(3):
        ledger.add(("größer", seed), {"value": seed})
    whole = file.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        finished = max(0, sum(end <= cut for end in ends) - 1)
        again = Ledger(file, FIELDS)
        assert list(again) == [("größer", seed) for seed in range(finished)], cut
        for seed in range(finished, 3):
            again.add(("größer", seed), {"value": seed})
        assert file.read_bytes() == whole, cut


def test_two_processes_may_add_to_one_file(file):
    one, other = Ledger(file, FIELDS), Ledger(file, FIELDS)
    one.add(("pure", 0), {})
    other.add(("pure", 1), {})
    one.add(("pure", 2), {})
    assert list(Ledger(file, FIELDS)) == [("pure", 0), ("pure", 1), ("pure", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method,seed,value\npure,0,1\n", "holds no results of this kind"),
        ("method,seed", "holds no results of this kind"),
        ('{"format": "something else"}\n', "holds no results of this kind"),
        ('{"format": "pure results", "version": 2, "key": []}\n', "version 2"),
        ('{"format": "pure results", "version": 1, "key": ["a"]}\n', "by method, seed, got"),
    ],
)
def test_another_file_is_refused_and_left_as_it_is(file, text, message):
    file.write_text(text, encoding="utf-8")
    with pytest.raises(LedgerError, match=message):
        Ledger(file, FIELDS)
    assert file.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("line", ['{"method": "pure"}', '{"method": "pure", "se', "[]", ""])
def test_a_broken_line_in_the_middle_is_named(file, line):
    ledger = Ledger(file, FIELDS)
    ledger.add(("pure", 0), {})
    with file.open("a", encoding="utf-8") as out:
        out.write(line + "\n")
    ledger.add(("pure", 1), {})
    with pytest.raises(LedgerError, match="line 3: expected an entry with method, seed"):
        Ledger(file, FIELDS)


def test_what_cannot_be_kept_is_refused(file):
    ledger = Ledger(file, FIELDS)
    for key, entry in (
        (("pure",), {}),
        (("pure", 0), {"seed": 1}),
        (("pure", 0), {"value": math.nan}),
    ):
        with pytest.raises(ValueError):
            ledger.add(key, entry)
    assert not file.exists() and not ledger
