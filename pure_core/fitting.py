"""Fitting an eraser by a method's name: everything around the method's own formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from . import __version__
from .activations import Activations
from .anchors import NO_ANCHORS, AnchorSet
from .dates import today
from .eraser import Edit, Eraser, LayerEraser, Provenance, contribution
from .errors import FitError, require_one_of
from .families import family_named
from .low_rank import thin_product
from .methods import METHODS, TEXT_METHODS, ActivationMethod, Method, TextMethod
from .methods.method import LayerRows, TextEdit, Value
from .methods.rows import scaled_rows
from .model_identity import ModelIdentity
from .progress import Progress, no_progress
from .text import TextTask
from .trajectory import Trajectory

M = TypeVar("M", bound=Method)

AS_METHOD, BY_HEAD, TOGETHER = "method's default", "each by itself", "all together"

HEADS = (AS_METHOD, BY_HEAD, TOGETHER)
"""How the heads of a layer may be fitted. Of a layer fitted head by head, all of the change
arrives in the model, see `LayerEraser`; together, E may use what one head says about another."""


@torch.no_grad()
def fit(
    method: str,
    forget: Activations,
    retain: Activations | None,
    progress: Progress = no_progress,
    heads: str = AS_METHOD,
    replacement: Activations | None = None,
    **settings: Value,
) -> Eraser:
    """Fit an eraser on activations; progress is reported in layers.

    Args:
        method: A name in `METHODS`.
        heads: One of `HEADS`.
        replacement: What the concept becomes, for a method that has a target; it is kept as
            neighbours are. Without one the concept becomes its neighbours.
        settings: By name; those of other methods are ignored, so that a form that shows all of
            them can pass all.

    Raises:
        FitError: unknown method or setting, a setting out of its range, activations captured in
            different ways, no neighbours for a method that needs them, a replacement for one
            without a target, or heads that were not recorded.
    """
    chosen, values = _chosen(METHODS, method, settings)
    by_head = _by_head(chosen, heads, forget)
    if chosen.cells == 1:
        forget, retain = forget.pooled(), retain and retain.pooled()
        replacement = replacement and replacement.pooled()
    require_comparable(forget, retain)
    require_comparable(forget, replacement, "replacement")
    require_target(chosen, replacement is not None)
    if chosen.needs_retain and replacement is None:
        _require_neighbours(chosen, retain)
    layers = {}
    for done, name in enumerate(forget.rows, start=1):
        rows = LayerRows(name, forget, retain, replacement, by_head)
        layers[name] = _fitted(chosen, rows, values)
        progress(done, len(forget.rows))
    return Eraser(
        layers,
        _provenance(
            chosen,
            values | ({"heads": BY_HEAD} if by_head else {}),
            forget.anchors,
            NO_ANCHORS if retain is None else retain.anchors,
            forget.model,
            trajectory=forget.trajectory,
            contribution=contribution(layers),
            replacement=NO_ANCHORS if replacement is None else replacement.anchors,
        ),
    )


def _by_head(method: ActivationMethod, heads: str, forget: Activations) -> bool:
    """Whether each head is fitted by itself."""
    require_one_of("heads", heads, HEADS, FitError)
    many = len(forget.anchors.concepts) > method.by_head_up_to
    if heads == TOGETHER or (heads == AS_METHOD and many):
        return False
    missing = [name for name in forget.rows if name not in forget.heads]
    if missing and heads == AS_METHOD:  # captured before heads were recorded
        return False
    if missing:
        raise FitError(
            f"heads: the activations do not say how many heads layer {missing[0]} has. Capture "
            f"them again, or choose '{TOGETHER}'."
        )
    return True


def _fitted(method: ActivationMethod, layer: LayerRows, values: Mapping[str, Any]) -> LayerEraser:
    """One layer, with the second moment of its forget rows."""

    def solved(part: LayerRows) -> LayerEraser:
        rows = part.forget_rows
        if layer.by_head and not bool(rows.any()):  # a head that does nothing
            return LayerEraser(rows.new_zeros(rows.shape[1], 0), rows.new_zeros(0, rows.shape[1]))
        left, right = method.solve(part, **values)
        return LayerEraser(left.float(), right.float())

    rows = scaled_rows(layer.forget_rows)
    if not layer.by_head:
        return replace(solved(layer), rows=rows)
    heads = range(layer.forget.heads[layer.layer])
    return LayerEraser.of_heads([solved(layer.head(head)) for head in heads], rows)


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
    itself: Mapping[str, float] = {}
    if chosen.solve is not None:
        found = chosen.solve(task, progress, **values)
        itself = found.found
        left, right = thin_product(found.left, found.right)
        same = _layer(found._replace(left=left, right=right), chosen)
        layers = dict.fromkeys(task.model.layers, same)
    elif chosen.solve_layer is not None:
        for done, name in enumerate(task.model.layers, start=1):
            edit = chosen.solve_layer(task, name, **values)
            on_outputs = chosen.space == "activations" and task.model.at_entry
            layers[name] = _before_entry(edit, task) if on_outputs else _layer(edit, chosen)
            progress(done, len(task.model.layers))
    anchor = ", ".join(dict.fromkeys(task.anchor.prompts))
    # What a layer contributes says something about activations only.
    on_text = any(layer.space == "text" for layer in layers.values())
    return Eraser(
        layers,
        _provenance(
            chosen,
            {**values, **itself, "anchor": anchor},
            task.forget.anchors,
            NO_ANCHORS if task.retain is None else task.retain.anchors,
            task.model.identity,
            contribution={} if on_text else contribution(layers),
            at_entry=task.model.at_entry,
        ),
    )


def _layer(found: TextEdit, method: TextMethod) -> LayerEraser:
    rows = scaled_rows(found.edited).float()
    return LayerEraser(found.left.float(), found.right.float(), rows, method.space)


def _before_entry(found: TextEdit, task: TextTask) -> LayerEraser:
    """The edit of what the entry puts out as one of what it takes.

    L lies in the span of what the entry's W can put out, so (I - L R) W = W (I - (W^+ L) (R W)).
    """
    (entry,) = task.model.layers
    weight = task.model.weight_of(entry, "values").double()
    left = torch.linalg.lstsq(weight, found.left, driver="gelsd").solution
    left, right = thin_product(left, found.right @ weight)
    return LayerEraser(left.float(), right.float(), scaled_rows(task.forget.last).float(), "text")


def _provenance(
    method: Method,
    settings: dict[str, float | str],
    forget: AnchorSet,
    retain: AnchorSet,
    model: ModelIdentity,
    trajectory: Trajectory | None = None,
    contribution: Mapping[str, float] | None = None,
    at_entry: bool = False,
    replacement: AnchorSet = NO_ANCHORS,
) -> Provenance:
    return Provenance(
        method=method.name,
        settings=settings,
        forget=forget,
        retain=retain,
        edit="keys and values" if at_entry else _edit(method, model),
        model=model,
        created=today(),
        plugin_version=__version__,
        trajectory=trajectory,
        contribution=dict(contribution or {}),
        replacement=replacement,
    )


def _edit(method: Method, model: ModelIdentity) -> Edit:
    """What a method edits; on outputs, keys only where E W_K gives E k."""
    family = family_named(model.family)
    on_outputs = not isinstance(method, TextMethod) or method.space == "activations"
    if family is None or family.keys_are_linear or not on_outputs:
        return method.edit
    return "values"


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


def require_comparable(
    forget: Activations, other: Activations | None, name: str = "retain"
) -> None:
    """Raise FitError unless forget rows and others were captured in the same way.

    Args:
        name: Of the others, for the message.
    """
    if other is None:
        return
    differences = forget.differences(other)
    if differences:
        raise FitError(
            f"forget and {name} have to be captured with the same settings from the same model. "
            f"They differ in (forget / {name}): "
            + "; ".join(differences)
            + ". Use the same model and values in both capture nodes."
        )
    if forget.widths != other.widths or forget.heads != other.heads:
        raise FitError(
            f"forget has {len(forget.rows)} layers and {name} {len(other.rows)}, or their "
            "widths or heads differ: capture both from the same model."
        )


def require_target(method: ActivationMethod, replaced: bool) -> None:
    """Raise FitError if there is a replacement, and the method cannot send a concept to one."""
    if replaced and not method.has_target:
        able = " or ".join(each.name for each in METHODS.values() if each.has_target)
        raise FitError(
            f"replacement: the method {method.name} removes the concept and sends it nowhere, so "
            f"nothing can replace it. Use the method {able}, or leave the replacement out."
        )


def _require_neighbours(method: ActivationMethod, retain: Activations | None) -> None:
    """Raise FitError unless there are neighbours that a concept can be sent to."""
    if retain is None:
        instead = " or a replacement" if method.has_target else ""
        raise FitError(
            f"retain: the method {method.name} needs the activations of the concept's neighbours, "
            f"got none. Connect them{instead}, or use the method pure."
        )
