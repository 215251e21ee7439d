"""The trajectory: how a capture samples, and which rows come of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import PureError


class TrajectoryError(PureError):
    """Settings of a trajectory that cannot be sampled."""


class Trajectory(NamedTuple):
    """How a capture samples. The field defaults are the nodes' defaults.

    Rows are comparable only if all fields agree.
    """

    steps: int = 16
    """Length of the sampling schedule."""

    run_steps: int = 5
    """How many of these steps are run and captured, from the noisy end."""

    latents: int = 3
    """Starting latents per prompt."""

    cfg: float = 4.0
    """Guidance scale. 1 runs without the empty prompt, at half the cost."""

    seed: int = 0
    """Of the starting latents. The same for every prompt."""

    width: int = 0
    """Pixels; 0 for the model's usual size, which `resolved` fills in."""

    height: int = 0
    """Pixels; 0 for the model's usual size."""

    sampler_name: str = "euler"
    scheduler: str = "normal"

    cells: int = 1
    """Rows are averages over the parts of a grid of cells x cells; 1 is over the whole picture."""

    length: int = 1
    """Frames of the clip that is sampled, over which rows are averages, too; 1 is a picture."""

    @property
    def rows_per_anchor(self) -> int:
        """How many rows every anchor has."""
        return self.latents * self.run_steps * self.cells**2

    def resolved(self, usual_size: int) -> Trajectory:
        """The same with the model's usual size where none was given."""
        return self._replace(width=self.width or usual_size, height=self.height or usual_size)

    def check(self) -> None:
        """Raise TrajectoryError unless every number is in its range."""
        for name in ("steps", "latents", "cells", "length"):
            if getattr(self, name) < 1:
                raise TrajectoryError(f"{name}: expected 1 or more, got {getattr(self, name)}.")
        if not 1 <= self.run_steps <= self.steps:
            raise TrajectoryError(
                f"run_steps: expected 1 to steps ({self.steps}), got {self.run_steps}. Lower "
                "run_steps or raise steps."
            )
        for name in ("seed", "width", "height"):
            if getattr(self, name) < 0:
                raise TrajectoryError(f"{name}: expected 0 or more, got {getattr(self, name)}.")

    def differences(self, other: Trajectory) -> list[str]:
        """The fields in which two trajectories differ, as 'width 512 / 768'."""
        pairs = zip(self._fields, self, other, strict=True)
        return [f"{name} {mine} / {theirs}" for name, mine, theirs in pairs if mine != theirs]

    def record(self) -> dict[str, Any]:
        """For a file. Of a picture the length is left out, as it was before there were clips."""
        record = self._asdict()
        if self.length == 1:
            del record["length"]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Trajectory:
        """The trajectory of a record with an entry for every field, but that of a picture's length.

        Raises:
            ValueError: an entry is missing, unknown or of another type.
            TrajectoryError: a number out of its range.
        """
        record = {"length": 1, **record}
        if record.keys() != set(cls._fields):
            raise ValueError(f"expected {list(cls._fields)}, got {sorted(record)}")
        for name, default in cls._field_defaults.items():
            value = record[name]
            kinds = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"{name}: expected {type(default).__name__}, got {value!r}")
        found = cls(**record)
        found.check()
        return found
