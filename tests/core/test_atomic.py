"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pure_core.files.atomic import STALE, atomic_file, atomic_folder


def test_a_file_appears_when_it_is_whole(tmp_path: Path):
    target = tmp_path / "new [1].bin"
    with atomic_file(target) as file:
        file.write(b"half")
        assert not target.exists()
        file.write(b" and half")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_bytes() == b"half and half"


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_after_an_error_nothing_is_left(tmp_path: Path, make):
    with pytest.raises(KeyboardInterrupt), make(tmp_path / "new") as made:
        if make is atomic_folder:
            (made / "inside").write_text("something")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("age", [0, STALE + 60])
def test_what_a_killed_writer_left_is_removed_once_it_is_old(tmp_path: Path, age: int):
    left = tmp_path / f".new [1].{32 * 'a'}.tmp"
    left.write_text("half")
    foreign = tmp_path / ".new [1].backup.tmp"
    foreign.write_text("somebody's")
    os.utime(foreign, (0, 0))
    os.utime(left, (time.time() - age,) * 2)
    with atomic_folder(tmp_path / "new [1]") as folder:
        (folder / "inside").write_text("whole")
    assert left.exists() == (age == 0) and foreign.exists()
    assert (tmp_path / "new [1]" / "inside").read_text() == "whole"


def test_a_name_that_is_taken_meanwhile_stays_taken(tmp_path: Path):
    target = tmp_path / "new"
    with pytest.raises(FileExistsError), atomic_file(target) as file:
        file.write(b"ours")
        target.write_text("precious")
    assert target.read_text() == "precious" and list(tmp_path.iterdir()) == [target]
    with atomic_file(target, overwrite=True) as file:
        file.write(b"asked for")
    assert target.read_text() == "asked for"
