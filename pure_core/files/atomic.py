"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

STALE = 24 * 3600
"""Seconds after which what a killed writer left beside its target is removed."""


@contextmanager
def atomic_file(path: Path, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` when the block ends well, and vanishes otherwise.

    It is written under a temporary name in the same folder, flushed to the disk and renamed.

    Raises:
        FileExistsError: the name is taken by then and `overwrite` is off.
        OSError: the folder cannot be written to.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            _rename_to_free(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder, to be filled, that takes the name `path` when the block ends well."""
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def why_not_written(path: Path, error: OSError | ValueError) -> str:
    """In sentences, why a file could not be written, with its folder and what to do."""
    folder = path.parent
    said = getattr(error, "strerror", None) or str(error)
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return (
            f"the folder '{folder}' cannot be written to ({said}). Allow writing there, or choose "
            "another folder."
        )
    if number == errno.ENAMETOOLONG:
        return f"the name is too long ({said}). Choose a shorter one."
    if os.path.lexists(folder) and not folder.is_dir():
        return f"'{folder}' is not a folder. Choose another one."
    if not folder.exists():
        return f"there is no folder '{folder}'. Create it, or choose another one."
    return f"{said}."


def require_usable(path: Path) -> None:
    """Raise OSError or ValueError if no file of this name can be written on its disk."""
    with suppress(FileNotFoundError):
        _temporary_name(path).lstat()


def _rename_to_free(temporary: Path, path: Path) -> None:
    """Rename unless the name is taken. A hard link refuses that in one step, a rename does not."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(f"'{path}' exists already") from None
        temporary.rename(path)


def _temporary(path: Path) -> Path:
    """A fresh name beside `path`; what a killed writer of that name left long ago is removed."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.tmp")
    for left in path.parent.iterdir():
        with suppress(OSError):
            if ours.fullmatch(left.name) and time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return _temporary_name(path)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
