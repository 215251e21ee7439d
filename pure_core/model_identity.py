"""Which model something was captured or fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .sketch import SAME, difference


@dataclass(frozen=True)
class ModelIdentity:
    """A model with everything that was patched into it, as far as it can be told apart."""

    name: str
    """For people: the file where ComfyUI remembers it, and ComfyUI's name of the architecture."""

    family: str = ""
    """Name of its family in `families`, for example 'unet'."""

    fingerprint: str = ""
    """Digest of its weights, its patches and its text encoder, in its own precision."""

    precision: str = ""
    """Type of its weights, for example 'float16'."""

    sketch: dict[str, float] = field(default_factory=dict)
    """Site -> sketch of the weights of the model's file, without patches: see `sketch.py`."""

    patched: bool = False
    """Whether a LoRA, a merge or an eraser was patched into its weights: then no file holds them as
    they were."""

    def is_same(self, other: ModelIdentity) -> bool:
        """Whether both are one model, patches included. Its name does not matter."""
        return self.fingerprint == other.fingerprint

    def difference(self, other: ModelIdentity) -> str:
        """In words, why the two are not the same model; empty if they are."""
        if self.is_same(other):
            return ""
        if self.sketch and other.sketch and not difference(self.sketch, other.sketch) <= SAME:
            return f"model: {self.name} / {other.name}, whose weights differ"
        if self.precision != other.precision:
            return f"the model's precision: {self.precision} / {other.precision}"
        return (
            f"what was patched into {self.name} (LoRA, merge, attention patch, sampling) or into "
            "its text encoder"
        )

    def record(self) -> dict[str, Any]:
        """As plain data for files."""
        return asdict(self)

    def without_sketch(self) -> dict[str, Any]:
        """The same without the sketch, which is long and of use in the plugin's own files only."""
        return {name: value for name, value in self.record().items() if name != "sketch"}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ModelIdentity:
        """The identity of a `record`.

        Raises:
            ValueError: an entry is missing, unknown or of another type.
        """
        texts = ("name", "family", "fingerprint", "precision")
        names = [*texts, "sketch", "patched"]
        if record.keys() != set(names):
            raise ValueError(f"expected {names}, got {sorted(record)}")
        if not isinstance(record["patched"], bool):
            raise ValueError(f"patched: expected true or false, got {record['patched']!r}")
        sketch = record["sketch"]
        numbers = isinstance(sketch, dict) and all(
            isinstance(name, str)
            and isinstance(value, (int, float))
            and not isinstance(value, bool)
            for name, value in sketch.items()
        )
        if not numbers or not all(isinstance(record[name], str) for name in texts):
            raise ValueError(f"expected texts in {list(texts)} and numbers in 'sketch'")
        return cls(
            **{name: record[name] for name in texts}, sketch=dict(sketch), patched=record["patched"]
        )
