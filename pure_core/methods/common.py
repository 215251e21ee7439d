"""What every method needs around its mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

import torch
from torch import Tensor

from .. import __version__
from ..activations import Activations
from ..eraser import Edit, Eraser, LayerEraser, Provenance, compressed, contribution
from ..errors import EraserError, FitError


def require_comparable(forget: Activations, retain: Activations | None) -> None:
    """Raise FitError unless forget and retain rows were captured in the same way."""
    if retain is None:
        return
    differences = forget.settings.differences(retain.settings)
    if differences:
        raise FitError(
            "forget and retain have to be captured with the same settings from the same model. "
            "They differ in (forget / retain): "
            + "; ".join(differences)
            + ". Use the same values in both capture nodes."
        )
    if forget.widths != retain.widths:
        raise FitError(
            f"forget has {len(forget.rows)} layers and retain {len(retain.rows)}, or their "
            "widths differ: capture both from the same model."
        )


def neighbour_means(forget: Activations, retain: Activations, layer: str) -> Tensor:
    """For each forget row, the mean over the retain prompts at the same latent and step.

    Returns:
        T_F of shape (n_F, d), float64.
    """
    means = retain.grid(layer).double().mean(dim=0)
    return means.expand(len(forget.prompts), *means.shape).flatten(0, 2)


def fitted(
    method: str,
    settings: dict[str, float | str],
    edit: Edit,
    layers: dict[str, LayerEraser],
    *,
    forget: Activations,
    retain: Activations | None,
) -> Eraser:
    """The eraser of freshly fitted layers, with the record that goes with it."""
    made = Provenance(
        method=method,
        settings=settings,
        forget=forget.prompts,
        retain=() if retain is None else retain.prompts,
        edit=edit,
        source_name=forget.settings.source_name,
        source_fingerprint=forget.settings.source_fingerprint,
        source_sketch=forget.settings.source_sketch,
        created=today(),
        plugin_version=__version__,
        concepts=forget.groups,
        capture=forget.settings.trajectory(),
        contribution=contribution(layers),
    )
    return Eraser(layers, made, retain)


def today() -> str:
    """ISO date."""
    return datetime.now(timezone.utc).date().isoformat()


def scaled_rows(rows: Tensor) -> Tensor:
    """X = H / sqrt(n), at most d rows, with X^T X = H^T H / n: what an eraser keeps of its rows.

    Args:
        rows: H of shape (n, d).
    """
    return compressed(rows / len(rows) ** 0.5)


def mixed_rows(layers: Sequence[LayerEraser], weights: Sequence[float]) -> Tensor:
    """The same for the rows of several erasers together, float64.

    Args:
        weights: Each one's share of all rows.

    Raises:
        EraserError: an eraser without the rows it was fitted on.
    """
    parts = []
    for layer, share in zip(layers, weights, strict=True):
        if layer.rows is None:
            raise EraserError("An eraser without the rows it was fitted on cannot be joined.")
        parts.append(layer.rows.double() * share**0.5)
    return compressed(torch.cat(parts))
