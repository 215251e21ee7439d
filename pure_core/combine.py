"""Several erasers as one: all at once, or one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, get_args

import torch
from einops import rearrange

from . import __version__
from .activations import Activations
from .anchors import Anchor, AnchorSet
from .dates import today
from .eraser import (
    Eraser,
    LayerEraser,
    Provenance,
    contribution,
    product,
    require_same_widths,
)
from .errors import EraserError, FitError, require_one_of
from .hidden import hidden_anchors
from .low_rank import thin_product
from .methods import METHODS
from .methods.method import JoinTask, Method
from .methods.rows import mixed_rows
from .progress import Progress, no_progress
from .sketch import SAME, difference
from .trajectory import Trajectory

Mode = Literal["joint", "in sequence"]
"""joint: what fitting all concepts at once gives, whatever their order. in sequence: the product,
the first eraser first."""

MODES: tuple[Mode, ...] = get_args(Mode)

CHANGES = ("max_rank", "layers", "contribution")
"""Settings that say an eraser is no more as its method fitted it."""

REPLACED = (
    " What a concept becomes is kept like a neighbour: fit all concepts with the same replacement, "
    "or list the others' replacements among each one's neighbours, and give the activations of "
    "neighbours and replacement together (PURE Concatenate Activations)."
)
"""What to do where erasers have replacements."""

IN_SEQUENCE = ", in sequence"
"""Ends the name of the method of a product."""


def why_not_joinable(eraser: Eraser) -> str:
    """What keeps it from being joined with others, as the end of a sentence; empty if nothing."""
    made = eraser.provenance
    if not _has_joint_form(made):
        return f"the method {made.method} has no joint form for fitted erasers"
    changed = [name for name in CHANGES if name in made.settings]
    if changed:
        return f"{changed[0]} was applied to it"
    return "" if eraser.joinable else "it does not hold the rows it was fitted on"


def require_joinable(eraser: Eraser) -> None:
    """Raise EraserError, with the reason and what to do, unless it can be joined with others."""
    made, why = eraser.provenance, why_not_joinable(eraser)
    if not why:
        return
    remedy = (
        "Join erasers as PURE Fit gives them, with max_rank 0, saved with 'joinable' on, and "
        "choose layers and rank afterwards"
        if _has_joint_form(made)
        else "Fit all concepts at once instead"
    )
    raise EraserError(
        f"The eraser of {made.title} cannot be joined with others, because {why}. {remedy}; or "
        "combine in sequence."
    )


def _has_joint_form(made: Provenance) -> bool:
    return made.method in METHODS and METHODS[made.method].join is not None


def chosen_mode(mode: str) -> Mode:
    """A mode by its name. Raises EraserError for one that there is not."""
    require_one_of("mode", mode, MODES, EraserError)
    return next(each for each in MODES if each == mode)


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
    for other in erasers[1:]:
        if erasers[0].space == other.space:
            require_same_widths(erasers[0].widths, other.widths)
    if chosen_mode(mode) == "joint":
        # Sums are rounded in their order: sorted, so that not even a bit depends on it.
        ordered = sorted(
            erasers, key=lambda each: (each.provenance.forget.prompts, each.fingerprint)
        )
        combined = _joint(ordered, retain, progress)
    else:
        combined = _in_sequence(erasers, progress)
    return combined.limited(max_rank) if max_rank else combined


def _joint(erasers: Sequence[Eraser], retain: Activations | None, progress: Progress) -> Eraser:
    made = [each.provenance for each in erasers]
    first, method = made[0], METHODS.get(made[0].method)
    for each in erasers:
        require_joinable(each)
        _require_same_making(erasers[0], each)
    assert method is not None and method.join is not None  # or it were not joinable
    if retain is not None:
        retain = retain.pooled() if method.cells == 1 else retain  # as every fit of the method
        _require_comparable(first, erasers[0].widths, retain)
        if not (first.retain or first.replacement):
            raise EraserError(
                "The erasers were fitted without neighbours, so nothing says how to protect "
                "these. Disconnect 'retain', or fit the concepts again with it."
            )
    if method.joins_own_retain or retain is None:
        _require_same_retain(made, retain)
    settings = _method_settings(method, first)
    shares, concepts = _shares(made), [len(each.concepts) for each in made]
    together = _record(made)
    count = len(together.concepts)
    layers = {}
    for done, name in enumerate(erasers[0].layers, start=1):
        rows = None if retain is None else retain.rows[name]
        parts = [each.layers[name] for each in erasers]
        layers[name] = _joined(
            method.join, JoinTask(parts, shares, concepts, count, rows, settings)
        )
        progress(done, len(erasers[0].layers))
    kept = AnchorSet() if retain is None else retain.anchors
    neighbours, replacement = _parted(kept, together.replacement)
    record = replace(
        together,
        retain=neighbours,
        replacement=replacement,
        contribution=contribution(layers),
    )
    return replace(erasers[0], layers=layers, provenance=record)


def _joined(join: Callable[[JoinTask], LayerEraser], task: JoinTask) -> LayerEraser:
    """One layer of several erasers, joined as it was fitted: whole, or head by head."""
    heads = task.layers[0].heads
    if not task.layers[0].by_head:
        return join(task._replace(concepts=[1] * len(task.layers), all_concepts=1))
    retain = (
        None
        if task.retain is None
        else rearrange(task.retain, "n (head d) -> head n d", head=heads)
    )
    blocks = [
        join(
            task._replace(
                layers=[layer.head(number) for layer in task.layers],
                retain=None if retain is None else retain[number],
            )
        )
        for number in range(heads)
    ]
    return LayerEraser.of_heads(blocks, mixed_rows(task.layers, task.shares).float())


def _in_sequence(erasers: Sequence[Eraser], progress: Progress) -> Eraser:
    made = [each.provenance for each in erasers]
    for what in ({each.edited for each in erasers}, {each.space for each in erasers}):
        if len(what) > 1:
            raise EraserError(
                f"Some of the erasers edit {' and others '.join(sorted(what))}: they are not one "
                "eraser. Patch the model with one after the other instead."
            )
    shares, strengths = _shares(made), [each.strength for each in erasers]
    layers = {}
    shared: dict[tuple[int, ...], LayerEraser] = {}
    for done, name in enumerate(erasers[0].layers, start=1):
        parts = [each.layers[name] for each in erasers]
        key = tuple(map(id, parts))
        if key not in shared:
            shared[key] = _product(parts, strengths, shares)
        layers[name] = shared[key]
        progress(done, len(erasers[0].layers))
    methods = list(dict.fromkeys(each.method.removesuffix(IN_SEQUENCE) for each in made))
    settings = [
        each.provenance.settings | ({} if each.strength == 1 else {"strength": each.strength})
        for each in erasers
    ]
    record = replace(
        _record(made),
        method=" then ".join(methods) + IN_SEQUENCE,
        settings=_side_by_side(settings),
        edit=erasers[0].edited,
        contribution=contribution(layers),
    )
    return Eraser(layers, record)


def _product(
    layers: Sequence[LayerEraser], strengths: Sequence[float], shares: Sequence[float]
) -> LayerEraser:
    """One layer of every eraser, each at its strength, as one at its numerical rank."""
    parts = [layer.to("cpu", torch.float64) for layer in layers]
    whole = product([part.scaled(own) for part, own in zip(parts, strengths, strict=True)])
    known = all(part.rows is not None for part in parts)
    rows = mixed_rows(parts, shares).float() if known else None
    if whole.by_head:
        return LayerEraser.of_heads([_thin(whole.head(k)) for k in range(whole.heads)], rows)
    return replace(_thin(whole), rows=rows)


def _thin(layer: LayerEraser) -> LayerEraser:
    """The same at its numerical rank, float32."""
    left, right = thin_product(layer.proj_left, layer.proj_right)
    return LayerEraser(left.float(), right.float(), space=layer.space)


def _shares(made: Sequence[Provenance]) -> list[float]:
    """Each eraser's share of all forget rows; captured in one way, every anchor has as many."""
    total = sum(len(each.forget) for each in made)
    return [len(each.forget) / max(1, total) for each in made]


def _record(made: Sequence[Provenance]) -> Provenance:
    """Where the concepts of several erasers came from; what they disagree about is left out."""
    last = made[-1]
    sketch = last.model.sketch
    same_model = all(difference(sketch, each.model.sketch) <= SAME for each in made)
    retained, replacing = (
        AnchorSet(tuple(dict.fromkeys(chain.from_iterable(each))))
        for each in ([each.retain for each in made], [each.replacement for each in made])
    )
    return replace(
        last,
        forget=sum((each.forget for each in made), AnchorSet()),
        retain=retained,
        replacement=replacing,
        model=replace(
            last.model,
            sketch=last.model.sketch if same_model else {},
            patched=any(each.model.patched for each in made),
        ),
        trajectory=(
            last.trajectory if all(each.trajectory == last.trajectory for each in made) else None
        ),
        created=today(),
        plugin_version=__version__,
    )


def _side_by_side(settings: Sequence[dict[str, float | str]]) -> dict[str, float | str]:
    """The settings if all are the same; else those of the second eraser as 'keep 2' and so on."""
    changed = any(name in each for each in settings for name in (*CHANGES, "strength"))
    if all(each == settings[0] for each in settings) and not changed:
        return settings[0]
    return {
        f"{name} {number}": value
        for number, each in enumerate(settings, start=1)
        for name, value in each.items()
    }


def _method_settings(method: Method, made: Provenance) -> dict[str, Any]:
    """The settings that a method's eraser was fitted with.

    Raises:
        EraserError: one is missing or out of its range, as in a file that somebody changed.
    """
    missing = [each.name for each in method.settings if each.name not in made.settings]
    try:
        if missing:
            raise FitError(f"{', '.join(missing)}: missing.")
        return {**made.settings, **method.values(made.settings)}
    except ValueError as error:
        raise EraserError(
            f"The eraser of {made.title} cannot be joined with others, because its settings are "
            f"not those of the method {made.method}. {error} Fit the concepts again, or combine in "
            "sequence."
        ) from error


def _require_same_making(one: Eraser, other: Eraser) -> None:
    """Raise EraserError unless both come from one method, in one way, from one model."""
    first, second = one.provenance, other.provenance
    pairs = {
        "method": (first.method, second.method),
        "edit": (one.edited, other.edited),
        "strength": (one.strength, other.strength),
        **_pairs(first.settings, second.settings),
        **_trajectories(first.trajectory, second.trajectory),
    }
    _require_equal(
        f"The erasers of {first.title} and {second.title} cannot be joined",
        pairs,
        first.model.difference(second.model),
    )


def _require_comparable(made: Provenance, widths: dict[str, int], retain: Activations) -> None:
    """Raise EraserError unless the retain rows were captured as the erasers' were."""
    require_same_widths(widths, retain.widths)
    _require_equal(
        "The erasers and 'retain' were captured in different ways",
        _trajectories(made.trajectory, retain.trajectory),
        made.model.difference(retain.model),
    )


def _trajectories(one: Trajectory | None, other: Trajectory | None) -> dict[str, Any]:
    return _pairs(one._asdict() if one else {}, other._asdict() if other else {})


def _pairs(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {name: (one.get(name), other.get(name)) for name in {**one, **other}}


def _require_equal(what: str, pairs: dict[str, tuple[Any, Any]], model: str) -> None:
    different = [f"{name} {one} / {other}" for name, (one, other) in pairs.items() if one != other]
    if model:
        different.append(model)
    if different:
        raise EraserError(
            f"{what}. They differ in: {'; '.join(different)}. Use the same model and settings for "
            "all, or combine in sequence."
        )


def _parted(kept: AnchorSet, replacement: AnchorSet) -> tuple[AnchorSet, AnchorSet]:
    """All anchors that were kept as neighbours and replacement.

    Args:
        replacement: As the erasers have it: compared as digests, since theirs may be some.
    """
    missing = set(hidden_anchors(replacement).prompts)
    neighbours: list[Anchor] = []
    replacing: list[Anchor] = []
    for anchor, digest in zip(kept, hidden_anchors(kept).prompts, strict=True):
        # Once each: a replacement may be among the neighbours, too.
        (replacing if digest in missing else neighbours).append(anchor)
        missing.discard(digest)
    return AnchorSet(tuple(neighbours)), AnchorSet(tuple(replacing))


def _require_same_retain(made: Sequence[Provenance], retain: Activations | None) -> None:
    """Raise EraserError unless all concepts were fitted to keep these: neighbours, replacement."""
    expected = AnchorSet() if retain is None else retain.anchors
    replaced = any(each.replacement for each in made)
    for each in made:
        kept = each.retain + each.replacement
        if retain is None and kept:
            more = (
                ", with those of what the concepts become behind them (PURE Concatenate "
                "Activations)"
                if replaced
                else ""
            )
            raise EraserError(
                "Erasers are joined against the activations of the neighbours that they were "
                f"fitted with{more}: connect them to 'retain', or combine in sequence."
            )
        # Compared as digests: an eraser may come from a file without readable prompts.
        if sorted(hidden_anchors(kept).prompts) != sorted(hidden_anchors(expected).prompts):
            own, given = Counter(kept.prompts), Counter(expected.prompts)
            odd = sorted((own - given) + (given - own))
            raise EraserError(
                f"The eraser of {each.title} was fitted with other neighbours (only one side "
                f"has {odd[:3]}), so what all have to keep together is not known. Fit every "
                "concept with the same retain activations, saved once with PURE Save Activations; "
                "or combine in sequence." + (REPLACED if replaced else "")
            )
