"""The fit report as plain data, for a panel that draws it."""

from __future__ import annotations

import math
from typing import Any

from .numbers import FitReport, LayerReport, Spectrum, named
from .picture import short_name

MOST_POINTS = 32
"""Points of a spectrum's curve: enough for a panel, few enough to send at every run."""


def panel(report: FitReport) -> dict[str, Any]:
    """The report in lists, numbers and strings, as JSON can hold them.

    Shares are of 1. A curve is a list of [directions, cumulative share of the energy].
    """
    made = report.provenance
    return {
        "concept": named(made),
        "method": made.method,
        "settings": dict(made.settings),
        "edit": report.eraser.edited,
        "source": made.model.name,
        "created": made.created,
        "forget_prompts": len(made.forget),
        "retain_prompts": len(made.retain),
        "warnings": list(report.warnings),
        "layers": [_layer(layer, made.model.family) for layer in report.layers],
    }


def _layer(layer: LayerReport, family: str) -> dict[str, Any]:
    return {
        "name": layer.name,
        "short_name": short_name(layer.name, family),
        "width": layer.width,
        "rank": layer.rank,
        "forget_rank": layer.forget_rank,
        "retain_rank": layer.retain_rank,
        "removed": _rounded(layer.forget_removed),
        "shift": _rounded(layer.shift),
        "kept": _rounded(layer.retain_kept),
        "forget_curve": _curve(layer.forget_spectrum),
        "retain_curve": _curve(layer.retain_spectrum),
    }


def _rounded(share: float | None) -> float | None:
    """JSON cannot hold what is not finite; four digits are enough."""
    return None if share is None or not math.isfinite(share) else round(share, 4)


def _curve(spectrum: Spectrum | None) -> list[tuple[int, float]] | None:
    """The spectrum at counts of directions that lie evenly on a logarithmic axis."""
    if spectrum is None:
        return None
    last = len(spectrum.cumulative)
    grid = (last ** (step / (MOST_POINTS - 1)) for step in range(MOST_POINTS))
    counts = sorted({round(count) for count in grid}) if last else []
    return [(count, round(spectrum.cumulative[count - 1], 4)) for count in counts]
