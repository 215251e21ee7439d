"""Fitting an eraser by a method's name: everything around the method's own formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from . import __version__
from .activations import Activations
from .anchors import AnchorSet
from .dates import today
from .eraser import Eraser, LayerEraser, Provenance, contribution
from .errors import FitError
from .low_rank import thin_product
from .methods import METHODS, TEXT_METHODS, ActivationMethod, Method, TextMethod
from .methods.method import LayerRows, TextEdit, Value
from .methods.rows import scaled_rows
from .model_identity import ModelIdentity
from .progress import Progress, no_progress
from .text import TextTask
from .trajectory import Trajectory

M = TypeVar("M", bound=Method)


@torch.no_grad()
def fit(
    method: str,
    forget: Activations,
    retain: Activations | None,
    progress: Progress = no_progress,
    **settings: Value,
) -> Eraser:
    """Fit an eraser on activations; progress is reported in layers.

    Args:
        method: A name in `METHODS`.
        settings: By name; those of other methods are ignored, so that a form that shows all of
            them can pass all.

    Raises:
        FitError: unknown method or setting, a setting out of its range, forget and retain captured
            in different ways, or no neighbours for a method that needs them.
    """
    chosen, values = _chosen(METHODS, method, settings)
    if chosen.cells == 1:
        forget, retain = forget.pooled(), retain and retain.pooled()
    require_comparable(forget, retain)
    if chosen.needs_retain:
        _require_neighbours(chosen, retain)
    layers = {}
    for done, (name, rows) in enumerate(forget.rows.items(), start=1):
        left, right = chosen.solve(LayerRows(name, forget, retain), **values)
        layers[name] = LayerEraser(left.float(), right.float(), scaled_rows(rows))
        progress(done, len(forget.rows))
    return Eraser(
        layers,
        _provenance(
            chosen,
            values,
            forget.anchors,
            AnchorSet() if retain is None else retain.anchors,
            forget.model,
            trajectory=forget.trajectory,
            contribution=contribution(layers),
        ),
    )


@torch.no_grad()
def fit_text(
    method: str, task: TextTask, progress: Progress = no_progress, **settings: Value
) -> Eraser:
    """Fit an eraser on encoded prompts; progress is reported in layers, prompts or rounds.

    Args:
        method: A name in `TEXT_METHODS`.
        settings: As for `fit`.

    Raises:
        FitError: unknown method or setting, a setting out of its range, or prompts that the method
            cannot do without.
    """
    chosen, values = _chosen(TEXT_METHODS, method, settings)
    if chosen.needs_retain and task.retain is None:
        raise FitError(
            f"retain: the method {method} keeps what is given there, expected prompts, got none."
        )
    layers: dict[str, LayerEraser] = {}
    if chosen.solve is not None:
        found = chosen.solve(task, progress, **values)
        left, right = thin_product(found.left, found.right)
        same = _layer(found._replace(left=left, right=right), chosen)
        layers = dict.fromkeys(task.model.layers, same)
    elif chosen.solve_layer is not None:
        for done, name in enumerate(task.model.layers, start=1):
            layers[name] = _layer(chosen.solve_layer(task, name, **values), chosen)
            progress(done, len(task.model.layers))
    anchor = ", ".join(dict.fromkeys(task.anchor.prompts))
    # What a layer contributes says something about activations only.
    on_text = any(layer.space == "text" for layer in layers.values())
    return Eraser(
        layers,
        _provenance(
            chosen,
            {**values, "anchor": anchor},
            task.forget.anchors,
            AnchorSet() if task.retain is None else task.retain.anchors,
            task.model.identity,
            contribution={} if on_text else contribution(layers),
        ),
    )


def _layer(found: TextEdit, method: TextMethod) -> LayerEraser:
    rows = scaled_rows(found.edited).float()
    return LayerEraser(found.left.float(), found.right.float(), rows, method.space)


def _provenance(
    method: Method,
    settings: dict[str, float | str],
    forget: AnchorSet,
    retain: AnchorSet,
    model: ModelIdentity,
    trajectory: Trajectory | None = None,
    contribution: Mapping[str, float] | None = None,
) -> Provenance:
    return Provenance(
        method=method.name,
        settings=settings,
        forget=forget,
        retain=retain,
        edit=method.edit,
        model=model,
        created=today(),
        plugin_version=__version__,
        trajectory=trajectory,
        contribution=dict(contribution or {}),
    )


def _chosen(
    table: Mapping[str, M], method: str, settings: Mapping[str, Value]
) -> tuple[M, dict[str, Value]]:
    """A table's method, and its settings out of those given."""
    if method not in table:
        raise FitError(f"method: expected one of {', '.join(table)}, got {method!r}.")
    known: Sequence[str] = [each.name for other in table.values() for each in other.settings]
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise FitError(f"Unknown settings {unknown}: expected some of {sorted(set(known))}.")
    return table[method], table[method].values(settings)


def require_comparable(forget: Activations, retain: Activations | None) -> None:
    """Raise FitError unless forget and retain rows were captured in the same way."""
    if retain is None:
        return
    differences = forget.differences(retain)
    if differences:
        raise FitError(
            "forget and retain have to be captured with the same settings from the same model. "
            "They differ in (forget / retain): "
            + "; ".join(differences)
            + ". Use the same model and values in both capture nodes."
        )
    if forget.widths != retain.widths:
        raise FitError(
            f"forget has {len(forget.rows)} layers and retain {len(retain.rows)}, or their "
            "widths differ: capture both from the same model."
        )


def _require_neighbours(method: ActivationMethod, retain: Activations | None) -> None:
    """Raise FitError unless there are neighbours that a concept can be sent to."""
    if retain is None:
        raise FitError(
            f"retain: the method {method.name} needs the activations of the concept's neighbours, "
            "got none. Connect them, or use the method pure."
        )
