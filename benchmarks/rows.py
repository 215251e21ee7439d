"""What the erasure benchmark keeps and shows of one concept, and of many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from testbed.world.measure import Rate, Scores

COSTS = ("capture_s", "fit_s", "rank")


class Result(NamedTuple):
    """What came of one concept, method and seed."""

    scores: Scores
    capture_s: float = 0.0
    """Seconds for capturing activations; 0 for methods that take none."""

    fit_s: float = 0.0
    """Seconds for fitting and applying."""

    rank: float = 0.0
    """Mean over layers."""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Result:
        """What an entry of the ledger says."""
        scores = Scores(*(Rate(*entry[name]) for name in Scores._fields))
        return cls(scores, *(entry[name] for name in COSTS))

    def entry(self) -> dict[str, Any]:
        """For the ledger."""
        costs = {name: round(getattr(self, name), 2) for name in COSTS}
        return {**self.scores._asdict(), **costs}


class Row(NamedTuple):
    """One method on one kind of concept, or on all."""

    kind: str
    method: str
    total: Result
    """Scores over all pictures, and mean costs."""

    by_capture: list[float]
    """The harmonic mean of every seed."""

    mean_of_kinds: float
    """The mean of the kinds' harmonic means, as the paper's is one of its categories'. Of one kind,
    its own."""
