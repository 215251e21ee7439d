"""ComfyUI's archives: nothing but the pinned file is unpacked, and nothing leaves its folder."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from dev.console import SetupError
from dev.releases import check_archive, unpack


def wheel(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def sdist(path: Path, files: Mapping[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/"
            archive.addfile(member)
    return path


@pytest.mark.parametrize("make, name", [(wheel, "p.whl"), (sdist, "p.tar.gz")])
def test_unpacks_only_the_folder_asked_for(make, name: str, tmp_path: Path) -> None:
    archive = make(tmp_path / name, {"a/b/main.py": b"1", "a/b/c/d.py": b"2", "a/setup.py": b"3"})
    unpack(archive, "a/b", tmp_path / "out")
    written = {
        str(path.relative_to(tmp_path / "out")): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert written == {"main.py": b"1", str(Path("c/d.py")): b"2"}


@pytest.mark.parametrize("make, name", [(wheel, "p.whl"), (sdist, "p.tar.gz")])
def test_refuses_a_name_that_leads_out(make, name: str, tmp_path: Path) -> None:
    archive = make(tmp_path / name, {"a/b/../../../escaped.py": b"1"})
    with pytest.raises(SetupError, match="leads out"):
        unpack(archive, "a/b", tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("escaped.py"))


def test_leaves_links_out(tmp_path: Path) -> None:
    archive = sdist(tmp_path / "p.tar.gz", {"a/b/main.py": b"1"}, link="a/b/root")
    unpack(archive, "a/b", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["main.py"]


def test_an_archive_without_the_folder_is_an_error(tmp_path: Path) -> None:
    archive = wheel(tmp_path / "p.whl", {"other/main.py": b"1"})
    with pytest.raises(SetupError, match="nothing under a/b"):
        unpack(archive, "a/b", tmp_path / "out")


def test_only_the_pinned_file_passes(tmp_path: Path) -> None:
    archive = wheel(tmp_path / "p.whl", {"a": b"1"})
    check_archive(archive, hashlib.sha256(archive.read_bytes()).hexdigest())
    with pytest.raises(SetupError, match="expected 0000"):
        check_archive(archive, "0" * 64)
    with pytest.raises(SetupError, match=r"found \['p.whl'\]"):
        check_archive(tmp_path / "q.whl", "0" * 64)
