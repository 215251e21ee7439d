"""The safetensors layout, read and rewritten piece by piece, whatever the size of the file.

Layout: eight bytes with the header's length, the header (JSON: tensor name -> dtype, shape and
place, and `__metadata__`), then the tensors' bytes without gaps.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import ModelFileError
from ..progress import Progress, no_progress
from .atomic import atomic_file
from .plain_json import parsed

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""

MAX_NAME = 1000
"""Characters of a tensor's name; those of real models have some hundred."""

NUMBERS = range(2**63)
"""What the format's sizes and places may be."""

CHUNK = 16 * 2**20
"""Bytes that are copied at a time."""

SAMPLE = 64
"""Bytes of a tensor's beginning, middle and end that go into a file's fingerprint."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The types a tensor can be read in; tensors of other types are copied without being read."""

_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8}
_SUFFIX_BITS = {"8": 8, "16": 16, "32": 32, "64": 64}

Edit = Callable[[Tensor], Tensor]
"""From a tensor to one of the same shape; the result is rounded to the tensor's own type."""


class Entry(NamedTuple):
    """One tensor in a file."""

    name: str
    dtype: str
    """As the format calls it, for example F16."""

    shape: tuple[int, ...]
    start: int
    """First byte, counted from the end of the header."""

    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class Piece(NamedTuple):
    """One tensor of a new file: where it comes from, its name there and what is done to it."""

    name: str
    entry: Entry
    edit: Edit | None = None


@dataclass(frozen=True)
class SafetensorsFile:
    """A file whose header was read and found in order. Its tensors stay on the disk."""

    path: Path
    entries: dict[str, Entry]
    """By name, in the header's order."""

    metadata: dict[str, str]
    data_start: int
    """Where the tensors begin in the file."""

    trailing: int = 0
    """Bytes after the last tensor, which belong to none. ComfyUI's loader from 0.30 on takes such
    files, the format's own library does not. They are not read and not copied."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SafetensorsFile:
        """Read and check a header.

        Raises:
            ModelFileError: no such file, not safetensors, cut off, or with tensors that
                overlap or leave gaps.
        """
        path = Path(path)
        if not path.is_file():
            raise ModelFileError(f"Expected a .safetensors file at '{path}', found none.")
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or not 0 < length <= min(MAX_HEADER, size - 8):
                    raise ValueError(f"it has {size} bytes and no header")
                header = parsed(file.read(length).decode())
            return cls._parsed(path, header, 8 + length, size)
        except OSError as error:
            raise ModelFileError(f"'{path}' cannot be read: {error}.") from error
        except ValueError as error:
            raise ModelFileError(
                f"Expected a safetensors file, but '{path}' cannot be read as one: {error}. It is "
                "damaged, incompletely downloaded or of another kind: fetch or save it again."
            ) from error

    @classmethod
    def _parsed(cls, path: Path, header: Any, start: int, size: int) -> SafetensorsFile:
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(
            isinstance(each, str) for each in metadata.values()
        ):
            raise ValueError("its metadata holds something other than text")
        for text in (*header, *metadata, *metadata.values()):
            text.encode()  # a ValueError for half a pair of UTF-16, which no file may hold
        entries = {name: _entry(name, each) for name, each in header.items()}
        end = 0
        for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
            if entry.start != end:
                raise ValueError(f"tensor '{entry.name}' is not where or as large as it should be")
            end = entry.end
        if start + end > size:
            raise ValueError(f"it has {size} bytes, its header promises {start + end}")
        return cls(path, entries, metadata, start, trailing=size - start - end)

    def read(self, name: str) -> Tensor:
        """One tensor, in its own type.

        Raises:
            ModelFileError: the tensor has a type that is not plain floating point, or the file
                cannot be read any more.
        """
        try:
            with self.path.open("rb") as file:
                return self._tensor(file, self.entries[name])
        except OSError as error:
            raise ModelFileError(f"'{self.path}' cannot be read: {error}.") from error

    def fingerprint(self) -> str:
        """Hex digest of names, types, shapes and a few bytes of every tensor.

        It tells models apart without reading whole files; it is no proof of integrity.
        """
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            for entry in sorted(self.entries.values()):
                digest.update(f"{entry.name} {entry.dtype} {entry.shape}\n".encode())
                last = max(entry.start, entry.end - SAMPLE)
                for place in (entry.start, (entry.start + last) // 2, last):
                    file.seek(self.data_start + place)
                    digest.update(file.read(min(SAMPLE, entry.end - place)))
        return digest.hexdigest()[:32]

    def _tensor(self, file: BinaryIO, entry: Entry) -> Tensor:
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise ModelFileError(
                f"'{self.path.name}' holds '{entry.name}' as {entry.dtype}, which cannot be edited "
                "exactly. Take the full-precision model (float32, float16 or bfloat16), and "
                "quantise after erasing."
            )
        file.seek(self.data_start + entry.start)
        content = bytearray(file.read(entry.size))
        if len(content) != entry.size:
            raise ModelFileError(f"'{self.path}' became shorter while it was read.")
        return torch.frombuffer(content, dtype=dtype).reshape(entry.shape)

    def write(
        self,
        target: Path,
        pieces: Sequence[Piece],
        metadata: Mapping[str, str],
        progress: Progress = no_progress,
    ) -> None:
        """Write a new file with these tensors, in this order in the header.

        Progress is told in bytes.

        The bytes keep the source's order. A tensor without an edit is copied byte for byte; one
        with an edit keeps its type. Needs no more memory than the largest edited tensor.

        Raises:
            ModelFileError: an edit gives NaN or infinity, or the source became shorter.
            OSError: the target exists or cannot be written. Nothing is left of it.
        """
        by_place = sorted(pieces, key=lambda piece: (piece.entry.start, piece.entry.end))
        offsets, total = {}, 0
        for piece in by_place:
            offsets[piece.name] = [total, total + piece.entry.size]
            total += piece.entry.size
        header = _header(pieces, offsets, metadata)
        require_space(target.parent, len(header) + total)
        with self.path.open("rb") as source, atomic_file(target) as out:
            out.write(header)
            done = 0
            for piece in by_place:
                for written in self._copy(source, out, piece):
                    done += written
                    progress(done, total)

    def _copy(self, source: BinaryIO, out: BinaryIO, piece: Piece) -> Iterable[int]:
        """Write one tensor; after every part, how many bytes it was."""
        if piece.edit is not None:
            tensor = self._tensor(source, piece.entry)
            edited = piece.edit(tensor).to(tensor.dtype).contiguous()
            if not bool(torch.isfinite(edited).all()):
                raise ModelFileError(
                    f"'{piece.entry.name}' would hold NaN or infinity in {piece.entry.dtype}. "
                    "Lower the strength, or take a source of higher precision."
                )
            yield out.write(edited.view(torch.uint8).numpy().tobytes())
            return
        source.seek(self.data_start + piece.entry.start)
        left = piece.entry.size
        while left:
            content = source.read(min(left, CHUNK))
            if not content:
                raise ModelFileError(f"'{self.path}' became shorter while it was read.")
            out.write(content)
            left -= len(content)
            yield len(content)


def _entry(name: str, record: object) -> Entry:
    """One tensor of a header. Raises ValueError unless its size is that of its shape."""
    if len(name) > MAX_NAME:
        raise ValueError(f"a tensor's name has {len(name)} characters, expected {MAX_NAME} or less")
    if not isinstance(record, dict) or not {"dtype", "shape", "data_offsets"} <= record.keys():
        raise ValueError(f"tensor '{name}' has no dtype, shape or data_offsets")
    dtype, shape, offsets = record["dtype"], record["shape"], record["data_offsets"]
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets):
        raise ValueError(
            f"tensor '{name}' has a type, shape or place that is none: expected a text and whole "
            "numbers from 0"
        )
    size = offsets[1] - offsets[0] if len(offsets) == 2 else -1
    if size not in NUMBERS or size * 8 != _count(name, shape) * _bits(dtype):
        raise ValueError(f"tensor '{name}' is not where or as large as it should be")
    return Entry(name, dtype, tuple(shape), *offsets)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and each in NUMBERS for each in value)


def _count(name: str, shape: Sequence[int]) -> int:
    """The product, which stays small on the way: shapes may have many thousand numbers."""
    count = 1
    for each in shape:
        count *= each
        if count not in NUMBERS:
            raise ValueError(f"tensor '{name}' is larger than any file")
    return count


def require_space(folder: Path, needed: int) -> None:
    """Raise OSError if the folder's disk has fewer free bytes than that."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free")


def _header(
    pieces: Sequence[Piece], offsets: Mapping[str, list[int]], metadata: Mapping[str, str]
) -> bytes:
    """Length and JSON, padded so that the tensors start at a multiple of eight bytes."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for piece in pieces:
        entry = piece.entry
        content[piece.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": offsets[piece.name],
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bits(dtype: str) -> int:
    """Bits of one number; every type the format knows or may come to know by that scheme."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = dtype.partition("_")[0].lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    if digits not in _SUFFIX_BITS:
        raise ValueError(f"it holds numbers of the unknown type '{dtype}'")
    return _SUFFIX_BITS[digits]
