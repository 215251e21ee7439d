"""Results by key in a file that grows line by line: a long measurement goes on where it stopped.

The file is JSON Lines, so that people and other programs can read it. The first line says what it
is and which fields make up a key; every further line is one finished entry, its key and what was
measured:

    {"format": "pure results", "version": 1, "key": ["method", "seed"]}
    {"method": "pure", "seed": 0, "by name": [3, 24], "fit_s": 0.05}

Nothing is ever changed in place. An entry that is added again counts instead of the earlier one.
A line without its line break was cut off by the end of a process: it is not finished, and is cut
away when the next entry is added.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import PureError

FORMAT, VERSION = "pure results", 1

Key = tuple[str | int, ...]

Entry = dict[str, Any]
"""Name -> number, text or list, whatever JSON holds."""


class LedgerError(PureError):
    """A file holds no results that can be read or continued here."""


class Ledger(Mapping[Key, Entry]):
    """Finished entries by key, in the order in which they were added first."""

    def __init__(self, file: Path, fields: Sequence[str]) -> None:
        """Open a ledger, or begin one, which makes no file before the first entry.

        Args:
            file: Of the results, in a folder that exists.
            fields: The names of the parts of a key.

        Raises:
            LedgerError: the file is no ledger, one of another version, or has other keys.
            OSError: it cannot be read.
        """
        self.file, self.fields = file, tuple(fields)
        self._entries: dict[Key, Entry] = {}
        if file.exists():
            self._read()

    def __getitem__(self, key: Key) -> Entry:
        return self._entries[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: Key, entry: Mapping[str, Any]) -> None:
        """Keep one more finished entry: when this returns, the file has it.

        Raises:
            ValueError: a key of other parts, an entry that names one of them, or a number that is
                not finite.
            OSError: the file cannot be written to.
        """
        if len(key) != len(self.fields) or entry.keys() & set(self.fields):
            raise ValueError(
                f"expected a key of {self.fields} and an entry without them, got {key} and "
                f"{sorted(entry)}"
            )
        line = _line(dict(zip(self.fields, key, strict=True)) | dict(entry))
        with self.file.open("a+b") as file:
            end = _whole(file.seek(0, os.SEEK_END), file)
            file.truncate(end)
            file.write(line if end else self._head() + line)
        # As it will be read: a tuple is a list then.
        self._entries[key] = {n: v for n, v in json.loads(line).items() if n not in self.fields}

    def _head(self) -> bytes:
        return _line({"format": FORMAT, "version": VERSION, "key": list(self.fields)})

    def _read(self) -> None:
        found = self.file.read_bytes()
        whole = found[: found.rfind(b"\n") + 1]
        if not whole and self._head().startswith(found):
            return  # empty, or cut off in its first line
        head, *lines = whole.split(b"\n")[:-1] or [found]
        self._check(_object(head))
        for number, line in enumerate(lines, start=2):
            entry = _object(line)
            if entry is None or not entry.keys() >= set(self.fields):
                raise LedgerError(
                    f"'{self.file.name}', line {number}: expected an entry with "
                    f"{', '.join(self.fields)}, got {line[:80]!r}. Remove that line to measure "
                    "its entry again."
                )
            key = tuple(entry.pop(name) for name in self.fields)
            self._entries[key] = entry

    def _check(self, head: Entry | None) -> None:
        """Raise LedgerError unless this is the first line of a ledger with these keys."""
        if head is None or head.get("format") != FORMAT:
            raise LedgerError(
                f"'{self.file.name}' holds no results of this kind: expected a first line with "
                f'"format": "{FORMAT}". Choose another file, or move this one away.'
            )
        if head.get("version") != VERSION:
            raise LedgerError(
                f"'{self.file.name}' has version {head.get('version')} of its format, this "
                f"program reads {VERSION}. Use the version that wrote it, or move it away."
            )
        if head.get("key") != list(self.fields):
            raise LedgerError(
                f"'{self.file.name}' holds other results: expected entries by "
                f"{', '.join(self.fields)}, got by {head.get('key')}. Choose another file, or "
                "move this one away."
            )


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _object(line: bytes) -> Entry | None:
    """What a line holds, None if that is no JSON object."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _whole(size: int, file: Any) -> int:
    """How many bytes of an open file are whole lines."""
    place = size
    while place:
        step = min(4096, place)
        file.seek(place - step)
        part: bytes = file.read(step)
        if b"\n" in part:
            return place - step + part.rfind(b"\n") + 1
        place -= step
    return 0
