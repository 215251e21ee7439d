"""What the project's own safetensors formats share: a named kind, checked tensors, JSON metadata.

Every file says its kind and version in its metadata and is written complete or not at all.
Nothing in it is ever run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import PureError
from .atomic import atomic_file, why_not_written
from .plain_json import parsed


class Kind(NamedTuple):
    """One of our file formats."""

    name: str
    """For people, with its article: 'an eraser'."""

    format: str
    version: str
    """That is written."""

    readable: tuple[str, ...]
    """Versions that can be read."""

    error: type[PureError]
    """Raised for files of this kind."""


def save_tensors(
    kind: Kind,
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write a file of a kind; metadata that is not text is written as JSON.

    It is written under a temporary name in the same folder and renamed.

    Raises:
        kind.error: the name does not end in .safetensors, the file exists and `overwrite` is
            off, a tensor holds NaN or infinity, or the folder cannot be written to.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise kind.error(f"Expected a file name ending in .safetensors, got '{path.name}'.")
    if os.path.lexists(path) and not overwrite:
        raise kind.error(f"'{path}' exists already: choose another name.")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise kind.error(f"Not written: '{path}' would hold NaN or infinity in {name}.")
    texts = {"format": kind.format, "format_version": kind.version}
    texts |= {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in metadata.items()
    }
    content = save(_apart(tensors), metadata=texts)
    try:
        with atomic_file(path, overwrite) as file:
            file.write(content)
    except FileExistsError as error:
        raise kind.error(f"'{path}' exists already: choose another name.") from error
    except (OSError, ValueError) as error:
        raise kind.error(f"'{path}' was not written: {why_not_written(path, error)}") from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each with memory of its own, which the file format asks for."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, each in tensors.items():
        found[name] = each.contiguous()
        place = found[name].untyped_storage().data_ptr()
        if place in seen:
            found[name] = found[name].clone(memory_format=torch.contiguous_format)
        seen.add(place)
    return found


def load_tensors(
    kind: Kind, path: str | os.PathLike[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file of a kind, on the CPU.

    Raises:
        kind.error: the file is missing, not safetensors, damaged, of another kind, or of a
            version this plugin does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise kind.error(f"Expected {kind.name} file at '{path}', found none.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            _require_format(kind, path, metadata, file.keys())
            # Copies, so that the file is not held open by a memory map.
            return {key: file.get_tensor(key).clone() for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise kind.error(
            f"Expected a safetensors file, but '{path}' ({path.stat().st_size} bytes) cannot be "
            f"read as one: {error}. It is damaged, incompletely downloaded or of another kind: "
            "fetch or save it again."
        ) from error


def decoded(
    name: str,
    container: type,
    item: type | tuple[type, ...],
    metadata: Mapping[str, str],
    error: type[PureError],
) -> Any:
    """A metadata entry that is a JSON list or object whose items all have the expected type."""
    try:
        value = parsed(metadata[name])
    except ValueError:
        value = None
    items = value.values() if isinstance(value, dict) else value
    if not isinstance(value, container) or not all(
        isinstance(each, item) and (item is object or not isinstance(each, bool)) for each in items
    ):
        raise error(
            f"expected a JSON {'list' if container is list else 'object'} in the metadata entry "
            f"'{name}', got {metadata[name][:80]!r}."
        )
    return value


def require_entries(
    names: Sequence[str], metadata: Mapping[str, str], error: type[PureError]
) -> None:
    """Raise an error that lists the metadata entries that are missing."""
    missing = [name for name in names if name not in metadata]
    if missing:
        raise error(f"expected the metadata entries {missing}, which are missing.")


def require_tensors(
    tensors: Mapping[str, Tensor], expected: set[str], layers: int, error: type[PureError]
) -> None:
    """Raise an error unless there are just these tensors, finite and float32."""
    if tensors.keys() != expected:
        odd = sorted(tensors.keys() ^ expected)
        raise error(
            f"expected the {len(expected)} tensors of its {layers} layers, got {len(tensors)}; "
            f"missing or foreign: {odd[:4]}."
        )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise error(f"{name}: expected float32, got {tensor.dtype}.")
        if not bool(torch.isfinite(tensor).all()):
            raise error(f"{name} holds NaN or infinity.")


def _require_format(
    kind: Kind, path: Path, metadata: Mapping[str, str], keys: Sequence[str]
) -> None:
    """Look at the header alone: a foreign file may be many gigabytes."""
    if metadata.get("format") != kind.format:
        raise kind.error(
            f"Expected {kind.name} (format '{kind.format}' in the metadata), but '{path}' has "
            f"format '{metadata.get('format', 'none')}' and {len(keys)} tensors such as "
            f"{sorted(keys)[:2]}. Every kind of file belongs in its own folder."
        )
    version = metadata.get("format_version", "none")
    if version not in kind.readable:
        raise kind.error(
            f"Expected {kind.name} of format version {' or '.join(kind.readable)}, but '{path}' "
            f"has version {version}. Update the plugin, or save it again with this one."
        )
