"""What is written into every exported file: which erasers, how strong, on which source."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from .. import __version__
from ..eraser import PROJECTIONS, Edit, Eraser
from ..errors import EraserError, ModelFileError, require_one_of

KEY = "pure_erasure"
"""The entry in a file's metadata. Its value is JSON."""

VERSION = 1


@dataclass(frozen=True)
class Step:
    """One eraser as it is applied."""

    eraser: Eraser
    strength: float = 1.0
    """1 erases as fitted, 0 changes nothing, below 0 amplifies."""

    edit: Edit | None = None
    """Which projections, or None for those that the eraser's method edits."""

    def __post_init__(self) -> None:
        if self.edit is not None:
            require_one_of("edit", self.edit, PROJECTIONS, EraserError)
        if not math.isfinite(self.strength):
            raise EraserError(f"strength: expected a number, got {self.strength}.")

    @property
    def concept(self) -> str:
        """What it erases, for messages."""
        names = self.eraser.provenance.names
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"'{names[0]}'{more}"

    @property
    def edited(self) -> Edit:
        """Which projections are edited."""
        return self.edit or self.eraser.provenance.edit

    @property
    def projections(self) -> tuple[str, ...]:
        """The same as module names."""
        return PROJECTIONS[self.edited]

    def record(self) -> dict[str, Any]:
        """What a file keeps of this step."""
        made = asdict(self.eraser.provenance)
        for name in ("source_sketch", "contribution"):  # long, of use in the eraser's own file
            del made[name]
        return {
            **made,
            "side": self.eraser.side,
            "fingerprint": self.eraser.fingerprint,
            "strength": self.strength,
            "edit": self.edited,
        }


def export_metadata(
    steps: Sequence[Step],
    source_name: str,
    source_fingerprint: str,
    before: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Metadata for an exported file; erasures that the source itself records come first."""
    record = {
        "version": VERSION,
        "erasers": [*read_history(before or {}), *(step.record() for step in steps)],
        "source": {"name": source_name, "fingerprint": source_fingerprint},
        "created": datetime.now(timezone.utc).date().isoformat(),
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
