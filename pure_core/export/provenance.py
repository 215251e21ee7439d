"""What is written into every exported file: which erasers, how strong, on which source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .. import __version__
from ..dates import today
from ..eraser import Eraser
from ..errors import ModelFileError
from ..files.plain_json import parsed
from ..hidden import hidden_settings

KEY = "pure_erasure"
"""The entry in a file's metadata. Its value is JSON."""

VERSION = 1


FORM: dict[str, type] = {
    "version": int,
    "erasers": list,
    "source": dict,
    "ema_weights": str,
    "created": str,
    "plugin_version": str,
}
"""What the entry may hold."""

WORDS = ("concepts", "forget", "retain", "replacement")
"""What a record of an eraser says in a person's own words."""


def applied_record(eraser: Eraser) -> dict[str, Any]:
    """What a file keeps of an eraser that was applied."""
    made = eraser.provenance
    return {
        "concepts": list(made.concepts),
        "method": made.method,
        "settings": made.settings,
        "forget": made.forget.record(),
        "retain": made.retain.record(),
        **({"replacement": made.replacement.record()} if made.replacement else {}),
        "edit": eraser.edited,
        "strength": eraser.strength,
        "space": eraser.space,
        "fingerprint": eraser.fingerprint,
        "trajectory": made.trajectory and made.trajectory.record(),
        "model": made.model.without_sketch(),
        "created": made.created,
        "plugin_version": made.plugin_version,
    }


def without_words(record: dict[str, Any]) -> dict[str, Any]:
    """An eraser's record without its concepts and prompts. Nothing that reads files needs them."""
    kept = {name: value for name, value in record.items() if name not in WORDS}
    if isinstance(settings := kept.get("settings"), dict):
        kept["settings"] = hidden_settings(settings)
    return kept


def export_metadata(
    erasers: Sequence[Eraser],
    source_name: str,
    source_fingerprint: str,
    before: Mapping[str, str] | None = None,
    prompts: bool = True,
    averages: str = "",
) -> dict[str, str]:
    """Metadata for an exported file; erasures that the source itself records come first.

    Args:
        before: The source's metadata.
        prompts: Whether it names concepts and prompts, the source's own included.
        averages: What became of averaged weights; empty if there were none.
    """
    applied = [*read_history(before or {}), *map(applied_record, erasers)]
    record = {
        "version": VERSION,
        "erasers": applied if prompts else [without_words(each) for each in applied],
        "source": {"name": source_name, "fingerprint": source_fingerprint},
        **({"ema_weights": averages} if averages else {}),
        "created": today(),
        "plugin_version": __version__,
    }
    return {KEY: json.dumps(record)}


def read_record(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What `export_metadata` wrote, or None if the file holds nothing of the kind.

    Entries that it does not write are left out.

    Raises:
        ModelFileError: the entry is there and cannot be read, or is of another form.
    """
    if KEY not in metadata:
        return None
    try:
        record = parsed(metadata[KEY])
    except ValueError as error:
        raise ModelFileError(f"The metadata entry '{KEY}' is not JSON: {error}.") from error
    found = (
        {name: each for name, each in record.items() if name in FORM}
        if isinstance(record, dict)
        else {}
    )
    wrong = [name for name, each in found.items() if not isinstance(each, FORM[name])]
    if wrong or not all(isinstance(each, dict) for each in found.get("erasers", [None])):
        raise ModelFileError(
            f"The metadata entry '{KEY}' is not of the expected form: expected an object with the "
            f"erasers as a list of objects{_also(wrong)}. The file was changed by something else."
        )
    return found


def _also(wrong: Sequence[str]) -> str:
    return "".join(f", and '{name}' as {FORM[name].__name__}" for name in wrong)


def read_history(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """The erasers that were applied to a file, first to last; none if it records none."""
    record = read_record(metadata)
    return record["erasers"] if record else []
