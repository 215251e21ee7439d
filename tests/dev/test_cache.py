"""The cache: an entry is built once, and an interrupted build starts again."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PURE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_entry_is_built_once(own_cache: Path) -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "content").write_text("whole")

    first, second = cache.entry("thing", build), cache.entry("thing", build)
    assert first == second == own_cache / "thing"
    assert built == [first]
    assert (first / "content").read_text() == "whole"


def test_an_interrupted_build_starts_again_from_nothing(own_cache: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.entry("thing", broken)
    folder = cache.entry("thing", lambda folder: (folder / "content").write_text("whole"))
    assert sorted(path.name for path in folder.iterdir()) == [cache.STAMP, "content"]


def test_digest_sees_contents_and_their_borders(tmp_path: Path) -> None:
    file = tmp_path / "pins.txt"
    file.write_text("torch==1")
    before = cache.digest(file)
    assert cache.digest("torch==1") == before
    file.write_text("torch==2")
    assert cache.digest(file) != before
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
