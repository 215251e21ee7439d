"""Several erasers as one: all at once, or one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, NoReturn, get_args

import torch

from . import __version__
from .activations import Activations
from .eraser import (
    Eraser,
    LayerEraser,
    Provenance,
    contribution,
    product,
    require_same_widths,
)
from .errors import EraserError, require_one_of
from .methods import METHODS
from .methods.common import mixed_rows, today
from .progress import Progress, no_progress
from .sketch import SAME, difference
from .thin import thin_product

Mode = Literal["joint", "in sequence"]
"""joint: what fitting all concepts at once gives, whatever their order. in sequence: the product,
the first eraser first."""

MODES: tuple[Mode, ...] = get_args(Mode)

CHANGES = ("strength", "max_rank", "layers", "contribution")
"""Settings that say an eraser is no more as its method fitted it."""

IN_SEQUENCE = ", in sequence"
"""Ends the name of the method of a product."""


@torch.no_grad()
def combine(
    erasers: Sequence[Eraser],
    mode: Mode = "joint",
    retain: Activations | None = None,
    max_rank: int = 0,
    progress: Progress = no_progress,
) -> Eraser:
    """One eraser that does what several do.

    Args:
        erasers: Two or more, of one architecture.
        mode: One of `MODES`.
        retain: For joint: activations of what is to be kept.
        max_rank: At most so many directions a layer; 0 for all.

    Raises:
        EraserError: erasers that do not belong together, or lack what joining needs.
    """
    if len(erasers) < 2:
        raise EraserError(f"Expected two or more erasers to combine, got {len(erasers)}.")
    require_one_of("mode", mode, MODES, EraserError)
    for other in erasers[1:]:
        if erasers[0].side == other.side:
            require_same_widths(erasers[0].widths, other.widths)
    if mode == "joint":
        # Sums are rounded in their order: sorted, so that not even a bit depends on it.
        ordered = sorted(erasers, key=lambda each: (each.provenance.forget, each.fingerprint))
        combined = _joint(ordered, retain, progress)
    else:
        combined = _in_sequence(erasers, progress)
    return combined.limited(max_rank) if max_rank else combined


def _joint(erasers: Sequence[Eraser], retain: Activations | None, progress: Progress) -> Eraser:
    made = [each.provenance for each in erasers]
    first, method = made[0], METHODS.get(made[0].method)
    for each in erasers:
        if any(layer.rows is None for layer in each.layers.values()):
            _refuse(each.provenance, "it does not hold the rows it was fitted on")
    for other in made:
        _require_joinable(first, other)
    assert method is not None and method.join is not None  # or it were not joinable
    if retain is not None and method.cells == 1:
        retain = retain.pooled()  # as every fit of the method has it
    own = retain or next((each.retain for each in erasers if each.retain is not None), None)
    if own is not None:
        _require_comparable(erasers[0], own)
    if method.own_retain or retain is None:
        _require_same_retain(made, own)
    weights, concepts = _weights(made), [len(each.groups) for each in made]
    layers = {}
    for done, name in enumerate(erasers[0].layers, start=1):
        rows = None if own is None else own.rows[name]
        parts = [each.layers[name] for each in erasers]
        layers[name] = method.join(parts, weights, rows, first.settings, concepts)
        progress(done, len(erasers[0].layers))
    record = replace(
        _record(made),
        retain=() if own is None else own.prompts,
        contribution=contribution(layers),
    )
    return Eraser(layers, record, own)


def _in_sequence(erasers: Sequence[Eraser], progress: Progress) -> Eraser:
    made = [each.provenance for each in erasers]
    for what in ({each.edit for each in made}, {each.side for each in erasers}):
        if len(what) > 1:
            raise EraserError(
                f"Some of the erasers edit {' and others '.join(sorted(what))}: they are not one "
                "eraser. Patch the model with one after the other instead."
            )
    weights = _weights(made)
    layers = {}
    shared: dict[tuple[int, ...], LayerEraser] = {}
    for done, name in enumerate(erasers[0].layers, start=1):
        parts = [each.layers[name] for each in erasers]
        key = tuple(map(id, parts))
        if key not in shared:
            shared[key] = _product(parts, weights)
        layers[name] = shared[key]
        progress(done, len(erasers[0].layers))
    methods = list(dict.fromkeys(each.method.removesuffix(IN_SEQUENCE) for each in made))
    record = replace(
        _record(made),
        method=" then ".join(methods) + IN_SEQUENCE,
        settings=_side_by_side([each.settings for each in made]),
        contribution=contribution(layers),
    )
    return Eraser(layers, record)


def _product(layers: Sequence[LayerEraser], weights: Sequence[float]) -> LayerEraser:
    """One layer of every eraser as one, at its numerical rank."""
    parts = [layer.to("cpu", torch.float64) for layer in layers]
    whole = product(parts)
    left, right = thin_product(whole.proj_left, whole.proj_right)
    known = all(part.rows is not None for part in parts)
    rows = mixed_rows(parts, weights).float() if known else None
    return LayerEraser(left.float(), right.float(), rows, whole.side)


def _weights(made: Sequence[Provenance]) -> list[float]:
    """Each eraser's share of all forget rows; captured in one way, every prompt has as many."""
    total = sum(len(each.forget) for each in made)
    return [len(each.forget) / max(1, total) for each in made]


def _record(made: Sequence[Provenance]) -> Provenance:
    """Where the concepts of several erasers came from; what they disagree about is left out."""
    last = made[-1]
    same_model = all(difference(last.source_sketch, each.source_sketch) <= SAME for each in made)
    return replace(
        last,
        forget=tuple(chain.from_iterable(each.forget for each in made)),
        retain=tuple(dict.fromkeys(chain.from_iterable(each.retain for each in made))),
        concepts=tuple(chain.from_iterable(each.groups for each in made)),
        source_sketch=last.source_sketch if same_model else {},
        capture=last.capture if all(each.capture == last.capture for each in made) else {},
        created=today(),
        plugin_version=__version__,
    )


def _side_by_side(settings: Sequence[dict[str, float | str]]) -> dict[str, float | str]:
    """The settings if all are the same; else those of the second eraser as 'keep 2' and so on."""
    changed = any(name in each for each in settings for name in CHANGES)
    if all(each == settings[0] for each in settings) and not changed:
        return settings[0]
    return {
        f"{name} {number}": value
        for number, each in enumerate(settings, start=1)
        for name, value in each.items()
    }


def _require_joinable(one: Provenance, other: Provenance) -> None:
    """Raise EraserError unless both come from one method, in one way, from one model."""
    for made in (one, other):
        joinable = made.method in METHODS and METHODS[made.method].join is not None
        if not joinable:
            raise EraserError(
                f"The eraser of '{made.names[0]}' cannot be joined with others: the method "
                f"{made.method} has no joint form for fitted erasers. Fit all concepts at once "
                "instead, or combine in sequence."
            )
        if any(name in made.settings for name in CHANGES):
            _refuse(made, "")
    pairs = {
        "method": (one.method, other.method),
        "edit": (one.edit, other.edit),
        "model": (one.source_fingerprint, other.source_fingerprint),
        **_pairs(one.settings, other.settings),
        **_pairs(one.capture, other.capture),
    }
    _require_equal(
        f"The erasers of '{one.names[0]}' and '{other.names[0]}' cannot be joined", pairs
    )


def _refuse(made: Provenance, why: str) -> NoReturn:
    """Raise EraserError: this one cannot be joined."""
    changed = [name for name in CHANGES if name in made.settings]
    why = f"{changed[0]} was applied to it" if changed else why
    raise EraserError(
        f"The eraser of '{made.names[0]}' cannot be joined with others, because {why}. Join "
        "erasers as PURE Fit gives them, saved by this version and with their rows, and set "
        "strength, layers and rank afterwards; or combine in sequence."
    )


def _require_comparable(eraser: Eraser, retain: Activations) -> None:
    """Raise EraserError unless the retain rows were captured as the eraser's were."""
    made = eraser.provenance
    require_same_widths(eraser.widths, retain.widths)
    pairs = {
        "model": (made.source_fingerprint, retain.settings.source_fingerprint),
        **_pairs(made.capture, retain.settings.trajectory()),
    }
    _require_equal("The erasers and 'retain' were captured in different ways", pairs)


def _pairs(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: (one.get(name), other.get(name)) for name in {**one, **other}}


def _require_equal(what: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    different = [f"{name} {one} / {other}" for name, (one, other) in pairs.items() if one != other]
    if different:
        raise EraserError(
            f"{what}. They differ in: {'; '.join(different)}. Use the same model and settings for "
            "all, or combine in sequence."
        )


def _require_same_retain(made: Sequence[Provenance], retain: Activations | None) -> None:
    """Raise EraserError unless all concepts were fitted with these neighbours."""
    expected = () if retain is None else retain.prompts
    for each in made:
        if retain is None and each.retain:
            raise EraserError(
                "Erasers are joined against the activations they were fitted with, and a file "
                "does not hold those: connect them to 'retain', or combine in sequence."
            )
        if sorted(each.retain) != sorted(expected):
            odd = sorted(set(each.retain) ^ set(expected))
            raise EraserError(
                f"The eraser of '{each.names[0]}' was fitted with other neighbours (only one side "
                f"has {odd[:3]}), so what all have to keep together is not known. Fit every "
                "concept with the same retain activations, saved once with PURE Save Activations; "
                "or combine in sequence."
            )
