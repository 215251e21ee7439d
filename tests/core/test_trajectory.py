"""A trajectory says what is sampled, refuses what cannot be, and survives a file."""

from __future__ import annotations

import json

import pytest

from pure_core.trajectory import Trajectory, TrajectoryError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0, "run_steps": 0}, "steps: expected 1 or more, got 0"),
        ({"latents": 0}, "latents: expected 1 or more, got 0"),
        ({"cells": 0}, "cells: expected 1 or more, got 0"),
        ({"length": 0}, "length: expected 1 or more, got 0"),
        ({"run_steps": 0}, r"run_steps: expected 1 to steps \(16\), got 0"),
        ({"run_steps": 17}, r"run_steps: expected 1 to steps \(16\), got 17"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"width": -8}, "width: expected 0 or more, got -8"),
        ({"height": -8}, "height: expected 0 or more, got -8"),
    ],
)
def test_numbers_outside_their_range_are_refused(change, message):
    Trajectory().check()
    with pytest.raises(TrajectoryError, match=message):
        Trajectory(**change).check()


def test_every_anchor_has_a_row_for_each_latent_step_and_cell():
    assert Trajectory(latents=3, run_steps=5).rows_per_anchor == 15
    assert Trajectory(latents=3, run_steps=5, cells=4).rows_per_anchor == 15 * 16


def test_the_usual_size_fills_in_what_was_not_given():
    assert Trajectory().resolved(768)[5:7] == (768, 768)
    assert Trajectory(width=512).resolved(768)[5:7] == (512, 768)
    whole = Trajectory(width=512, height=640)
    assert whole.resolved(768) == whole


def test_every_field_counts_as_a_difference():
    one = Trajectory()
    assert one.differences(one) == []
    for name, value in one._asdict().items():
        other = one._replace(**{name: f"{value}x" if isinstance(value, str) else value + 1})
        assert one.differences(other) == [f"{name} {value} / {getattr(other, name)}"]


def test_the_record_comes_back():
    for each in (Trajectory(), Trajectory(cfg=1, cells=4, seed=2**40, scheduler="karras")):
        record = json.loads(json.dumps(each.record()))
        assert Trajectory.from_record(record) == each and "length" not in record


def test_the_length_of_a_clip_is_in_its_record_and_that_of_a_picture_is_not():
    clip = Trajectory(length=17)
    assert clip.record()["length"] == 17 and Trajectory.from_record(clip.record()) == clip
    assert "length" not in Trajectory().record()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 16.5}, "steps: expected int, got 16.5"),
        ({"steps": True}, "steps: expected int, got True"),
        ({"cfg": "4"}, "cfg: expected float, got '4'"),
        ({"scheduler": 1}, "scheduler: expected str, got 1"),
        ({"more": 1}, "got .*'more'"),
        ({"cells": 0}, "cells: expected 1 or more"),
    ],
)
def test_other_records_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Trajectory.from_record(Trajectory()._asdict() | change)
    with pytest.raises(ValueError, match="expected"):
        Trajectory.from_record({"steps": 16})
