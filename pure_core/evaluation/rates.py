"""Rates with intervals, and the mean that several of them share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

Z = 1.959963984540054
"""The normal quantile of 0.975: an interval of 95 %."""


class Rate(NamedTuple):
    """How many of how many."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """hits / total; NaN of nothing."""
        return self.hits / self.total if self.total else math.nan

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, the p with |hits / n - p| <= z sqrt(p (1 - p) / n).

        With p' = hits / n its ends are

            (p' + z^2 / 2n +- z sqrt(p' (1 - p') / n + z^2 / 4n^2)) / (1 + z^2 / n).

        It stays within 0 and 1 and says something at 0 and n hits too (E. B. Wilson, "Probable
        inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22,
        1927, 209-212). Pictures count as drawn independently.
        """
        if not self.total:
            return math.nan, math.nan
        n, p = self.total, self.value
        centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __add__(self, other: object) -> Rate:
        """Both counts together."""
        if not isinstance(other, Rate):
            return NotImplemented
        return Rate(self.hits + other.hits, self.total + other.total)

    def __str__(self) -> str:
        """For tables, for example 0.25 (0.10–0.49, n=16); - of nothing."""
        if not self.total:
            return "-"
        low, high = self.interval()
        return f"{self.value:.2f} ({low:.2f}–{high:.2f}, n={self.total})"


def harmonic_mean(values: Iterable[float]) -> float:
    """k / (1 / x_1 + ... + 1 / x_k), 0 if one of them is.

    The smallest number weighs most, so nothing makes up for what failed: PURE (arXiv 2605.25765)
    and the HUB benchmark sum up an erasure by that of its numbers, each turned so that high is
    good.

    Raises:
        ValueError: no values, or one below 0.
    """
    every = list(values)
    if not every or min(every) < 0:
        raise ValueError(f"expected one or more values of 0 or above, got {every}")
    return len(every) / sum(1 / each for each in every) if min(every) > 0 else 0.0
