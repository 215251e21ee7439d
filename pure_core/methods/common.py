"""What every method needs around its mathematics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from .. import __version__
from ..activations import Activations
from ..eraser import Edit, Eraser, LayerEraser, Provenance, compressed, contribution
from ..errors import EraserError, FitError
from ..text import TextTask
from ..thin import thin_product


class _Named(Protocol):
    """A method in a table."""

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of its settings."""


M = TypeVar("M", bound=_Named)
S = TypeVar("S")


def by_name(
    table: Mapping[str, M], method: str, settings: Mapping[str, S]
) -> tuple[M, dict[str, S]]:
    """A table's method and, of the settings given, its own; those of others are passed over.

    Raises:
        FitError: the table has no such method, or none with such a setting.
    """
    if method not in table:
        raise FitError(f"Unknown method {method!r}: expected one of {', '.join(table)}.")
    known = {name for each in table.values() for name in each.settings}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise FitError(f"Unknown settings {unknown}: expected some of {sorted(known)}.")
    chosen = table[method]
    return chosen, {name: settings[name] for name in chosen.settings if name in settings}


def check_number(
    name: str,
    value: float,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Raise FitError unless a setting is a number in its range; `name` is the input's."""
    if math.isfinite(value) and least <= value <= most and value > above:
        return
    limits = [
        f"above {above:g}" if above > -math.inf else "",
        f"{least:g} or more" if least > -math.inf else "",
        f"at most {most:g}" if most < math.inf else "",
    ]
    raise FitError(f"{name} has to be {' and '.join(filter(None, limits))}, got {value}.")


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


def fitted_text(
    method: str,
    settings: Mapping[str, float | str],
    edit: Edit,
    layers: dict[str, LayerEraser],
    task: TextTask,
) -> Eraser:
    """The same for layers that were fitted on text vectors."""
    made = Provenance(
        method=method,
        settings={**settings, "anchor": ", ".join(dict.fromkeys(task.anchor.prompts))},
        forget=task.forget.prompts,
        retain=() if task.retain is None else task.retain.prompts,
        edit=edit,
        source_name=task.model.source_name,
        source_fingerprint=task.model.source_fingerprint,
        source_sketch=task.model.source_sketch,
        created=today(),
        plugin_version=__version__,
        concepts=task.forget.concepts,
        contribution=_of_activations(layers),
    )
    return Eraser(layers, made)


def _of_activations(layers: Mapping[str, LayerEraser]) -> dict[str, float]:
    """What layers contribute; on the side of the text it would say nothing about a layer."""
    on_text = any(layer.side == "text" for layer in layers.values())
    return {} if on_text else contribution(layers)


def everywhere(
    task: TextTask, left: Tensor, right: Tensor, edited: Tensor
) -> dict[str, LayerEraser]:
    """One edit on the side of the text for every layer of the model, at its numerical rank.

    Args:
        left: L (D, r), float64.
        right: R (r, D).
        edited: The concept's vectors that are edited (n, D).
    """
    left, right = thin_product(left, right)
    rows = scaled_rows(edited).float()
    one = LayerEraser(left.float(), right.float(), rows, "text")
    return dict.fromkeys(task.model.layers, one)


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
