"""The shipped models: written once for their sources, and placed without a second copy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dev import model
from dev.console import SetupError
from dev.model import World, place_models
from testbed.pictures.expand import FILES

TINY = World("tiny", "tiny", ("checkpoints/a.safetensors", "vae/b.safetensors"), reads=("shared",))

EXPAND = """
import sys
from pathlib import Path

target = Path(sys.argv[1])
for weights in sorted((Path(__file__).parent / "weights").iterdir()):
    folder = target / {"a": "checkpoints", "b": "vae"}[weights.stem]
    folder.mkdir()
    (folder / f"{weights.stem}.safetensors").write_bytes(weights.read_bytes())
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a tiny world in it."""
    root = tmp_path / "checkout"
    weights = root / "tiny" / "weights"
    weights.mkdir(parents=True)
    (root / "shared").mkdir()
    (root / "tiny" / "expand.py").write_text(EXPAND)
    (weights / "a.bin").write_text("first")
    (weights / "b.bin").write_text("second")
    monkeypatch.setattr(model, "ROOT", root)
    return root


def placed(root: Path, base: str = "one") -> list[Path]:
    return place_models(TINY, Path(sys.executable), root / ".dev", root / base / "models")


def folders(root: Path) -> list[Path]:
    return [path for path in (root / ".dev").iterdir() if path.is_dir()]


def test_they_are_written_once_and_every_base_has_the_same_files(root: Path) -> None:
    first, other = placed(root), placed(root, "other")
    assert [path.read_text() for path in first] == ["first", "second"]
    assert all(one.samefile(two) for one, two in zip(first, other, strict=True))
    (written,) = folders(root)
    before = written.stat().st_mtime_ns
    assert placed(root) == first and folders(root) == [written]
    assert written.stat().st_mtime_ns == before


@pytest.mark.parametrize("source", ["tiny/weights/a.bin", "tiny/new.py", "shared/new.py"])
def test_a_changed_source_writes_them_again_and_removes_what_was(root: Path, source: str) -> None:
    placed(root)
    (before,) = folders(root)
    (root / source).write_text("changed = True")
    again = placed(root)
    (after,) = folders(root)
    assert after != before
    assert [path.read_text() for path in again][1:] == ["second"]
    assert (again[0].read_text() == "first") == (source != "tiny/weights/a.bin")


def test_a_model_without_weights_is_left_out_and_taken_away(root: Path) -> None:
    a, b = placed(root)
    (root / "tiny" / "weights" / "a.bin").unlink()
    assert placed(root) == [b]
    assert not a.exists() and b.read_text() == "second"
    (root / "tiny" / "weights" / "b.bin").unlink()
    assert placed(root) == [] and not b.exists()


def test_what_was_half_written_is_never_placed(root: Path) -> None:
    expander = root / "tiny" / "expand.py"
    expander.write_text(EXPAND + "raise SystemExit(3)")
    with pytest.raises(SetupError, match="exit 3"):
        placed(root)
    assert not (root / "one").exists()
    expander.write_text(EXPAND)
    assert [path.read_text() for path in placed(root)] == ["first", "second"]
    assert len(folders(root)) == 1


def test_a_file_of_an_earlier_version_is_replaced(root: Path) -> None:
    target = root / "one" / "models" / "vae" / "b.safetensors"
    target.parent.mkdir(parents=True)
    target.write_text("older")
    assert placed(root)[1].read_text() == "second"
    assert sorted(target.parent.iterdir()) == [target]


def test_the_files_of_both_worlds_are_known() -> None:
    assert model.PICTURES.files == tuple(FILES.values())
    for world in (model.DRAWN, model.PICTURES):
        assert (model.ROOT / world.folder / "expand.py").is_file()
