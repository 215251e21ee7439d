"""What is written into every exported file: which erasers, how strong, on which source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .. import __version__
from ..dates import today
from ..eraser import Eraser
from ..errors import ModelFileError

KEY = "pure_erasure"
"""The entry in a file's metadata. Its value is JSON."""

VERSION = 1


def applied_record(eraser: Eraser) -> dict[str, Any]:
    """What a file keeps of an eraser that was applied."""
    made = eraser.provenance
    return {
        "concepts": list(made.concepts),
        "method": made.method,
        "settings": made.settings,
        "forget": made.forget.record(),
        "retain": made.retain.record(),
        "edit": eraser.edited,
        "strength": eraser.strength,
        "side": eraser.side,
        "fingerprint": eraser.fingerprint,
        "trajectory": made.trajectory and made.trajectory._asdict(),
        "model": made.model.without_sketch(),
        "created": made.created,
        "plugin_version": made.plugin_version,
    }


def export_metadata(
    erasers: Sequence[Eraser],
    source_name: str,
    source_fingerprint: str,
    before: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Metadata for an exported file; erasures that the source itself records come first."""
    record = {
        "version": VERSION,
        "erasers": [*read_history(before or {}), *map(applied_record, erasers)],
        "source": {"name": source_name, "fingerprint": source_fingerprint},
        "created": today(),
        "plugin_version": __version__,
    }
    return {KEY: json.dumps(record)}


def read_record(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What `export_metadata` wrote, or None if the file holds nothing of the kind.

    Raises:
        ModelFileError: the entry is there and cannot be read.
    """
    if KEY not in metadata:
        return None
    try:
        record = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"The metadata entry '{KEY}' is not JSON: {error}.") from error
    erasers = record.get("erasers") if isinstance(record, dict) else None
    if not isinstance(erasers, list) or not all(isinstance(each, dict) for each in erasers):
        raise ModelFileError(f"The metadata entry '{KEY}' is not of the expected form.")
    return dict(record)


def read_history(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """The erasers that were applied to a file, first to last; none if it records none."""
    record = read_record(metadata)
    return record["erasers"] if record else []
