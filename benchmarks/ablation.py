"""What each setting does, one at a time, on the development concepts: numbers and a picture.

    python3 dev.py run benchmarks/ablation.py

On the small model's narrow form. Every point erases the same development concepts of all kinds by
the defaults but for one setting; results are kept as they come (`ablation.jsonl`), so an
interrupted run goes on.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.nodes.defaults import METHOD
from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.concepts import TEMPLATES
from comfyui_pure.pure_core.eraser import EDITS, Edit, Eraser
from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.fitting import fit
from comfyui_pure.pure_core.methods import METHODS
from comfyui_pure.pure_core.report.canvas import Canvas
from comfyui_pure.pure_core.report.picture import FAINT, FORGET, GAP, INK, MUTED, RETAIN
from comfyui_pure.pure_core.trajectory import Trajectory

from benchmarks.common import RESULTS, ROOT, scored
from benchmarks.narrow import NarrowUNet
from testbed.comfy.erasable import TRAJECTORY
from testbed.world.measure import DRAWN, Rate, Scores, Trial
from testbed.world.prompts import name_of, others
from testbed.world.vocabulary import DEVELOPMENT

MORE = (
    "a nice photo of {}",
    "a good picture of {}",
    "a close-up of {}",
    "an image showing {}",
    "look at {}",
    "imagine {}",
)
"""Phrasings beyond the six that the nodes write."""

FIELDS = ("axis", "value", "method")
COLOURS = {"by name": FORGET, "by description": GAP, "neighbours": RETAIN, "everything else": INK}


OWN: dict[str, dict[str, tuple[float, ...]]] = {
    "ridge": {
        "overshoot": (1.0, 1.4, 1.8, 2.2),
        "keep": (1.0, 10.0, 100.0),
        "damping": (0.03, 0.3, 3.0),
    },
    "mosaic": {"reach": (1.0, 1.3, 1.6, 2.0)},
    "pure": {
        "forget_energy": (0.99, 0.999, 0.9999, 0.99999),
        "retain_energy": (0.3, 0.5, 0.7, 0.9, 0.99),
    },
}
"""Every method's own settings."""

BOTH = ("phrasings", "neighbours", "what is edited", "steps run, of 16")
"""What is tried with PURE as well as with the default method."""


class Point(NamedTuple):
    """One setting that is not at its default."""

    axis: str
    value: str
    method: str = METHOD
    trajectory: Trajectory = TRAJECTORY
    settings: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    steps: tuple[int, int] | None = None
    """Of the captured steps, the first and the one behind the last that are used."""

    cells: int = 0
    """0 for the method's own."""

    phrasings: int = 6
    neighbours: int = 9
    edit: Edit | None = None
    strength: float = 1.0


def points() -> Iterator[Point]:
    """Every setting that is tried, those of methods first."""
    for method, settings in OWN.items():
        for name, values in settings.items():
            for value in values:
                change = {name: value}
                yield Point(name.replace("_", " "), f"{value:g}", method, settings=change)
    for cells in (1, 2, 4):
        yield Point("cells", str(cells), "mosaic", cells=cells)
    for axis, shown, given in _shared():
        for method in (METHOD, "pure"):
            if method == METHOD or axis in BOTH:
                yield Point(axis, shown, method, **given)
    yield Point("neighbours", "0", "pure", neighbours=0)


def _shared() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Axis, value and what changes, for what every method has; what captures much comes last."""
    for edit in EDITS:
        yield "what is edited", edit, {"edit": edit}
    for strength in (0.5, 0.75, 1.0, 1.25, 1.5):
        yield "strength", f"{strength:g}", {"strength": strength}
    for number in (1, 3, 6, 9, 15):
        yield "neighbours", str(number), {"neighbours": number}
    for number in (1, 3, 6, 12):
        yield "phrasings", str(number), {"phrasings": number}
    for scale in (1.0, 2.0, 4.0, 7.5):
        yield "guidance of the capture", f"{scale:g}", {"trajectory": _trajectory(cfg=scale)}
    for number in (1, 2, 3, 6):
        yield "latents", str(number), {"trajectory": _trajectory(latents=number)}
    for number in (1, 2, 3, 5, 8, 16):
        yield "steps run, of 16", str(number), {"trajectory": _trajectory(run_steps=number)}
    for start in (0, 4, 8, 12):
        part = {"trajectory": _trajectory(run_steps=16), "steps": (start, start + 4)}
        yield "part of the trajectory", f"{start + 1}-{start + 4}", part


def _trajectory(**change: Any) -> Trajectory:
    return TRAJECTORY._replace(**change)


def chosen(captured: Activations, steps: tuple[int, int] | None) -> Activations:
    """The rows of some of the steps only."""
    if steps is None:
        return captured
    trajectory = captured.trajectory

    def part(rows: Tensor) -> Tensor:
        grid = rows.unflatten(0, (-1, trajectory.run_steps, len(rows) // count))
        return grid[:, slice(*steps)].flatten(0, 2).contiguous()

    count = len(captured.anchors) * trajectory.latents * trajectory.run_steps
    rows = {name: part(each) for name, each in captured.rows.items()}
    means = captured.means and {name: part(each) for name, each in captured.means.items()}
    shorter = trajectory._replace(run_steps=steps[1] - steps[0])
    return replace(captured, rows=rows, means=means, trajectory=shorter)


def captured_for(
    model: NarrowUNet, trial: Trial, point: Point
) -> tuple[Activations, Activations | None]:
    """Forget and retain rows as the point asks for them."""
    trajectory = point.trajectory._replace(cells=point.cells or METHODS[point.method].cells)
    templates = (*TEMPLATES[trial.kind], *MORE)[: point.phrasings]
    names = [name_of(trial.kind, each) for each in others(trial.kind, trial.concept)]
    forget = AnchorSet.phrased([name_of(trial.kind, trial.concept)], templates)
    retain = AnchorSet.phrased(names[: point.neighbours], templates)
    rows = chosen(model.captured(forget, trajectory), point.steps)
    if not retain:
        return rows, None
    return rows, chosen(model.captured(retain, trajectory), point.steps)


def erased(model: NarrowUNet, trial: Trial, point: Point) -> Eraser:
    """The eraser of a trial's concept at a point."""
    forget, retain = captured_for(model, trial, point)
    eraser = fit(point.method, forget, retain, **point.settings)
    return eraser.applied(point.strength, point.edit)


def measure(model: NarrowUNet, trials: list[Trial], point: Point) -> Scores:
    """Scores at a point, summed over the trials."""
    total = None
    for trial in trials:
        scores = scored(model, trial, erased(model, trial, point))
        total = scores if total is None else total + scores
    assert total is not None
    return total


def results(ledger: Ledger) -> dict[tuple[str, ...], Scores]:
    """Results by axis, value and method."""
    return {
        key: Scores(*(Rate(*entry[name]) for name in Scores._fields))
        for key, entry in ledger.items()
    }


def draw(file: Path, results: dict[tuple[str, ...], Scores], method: str) -> None:
    """A small plot for every axis of one method."""
    axes = list(dict.fromkeys(axis for axis, _, by in results if by == method))
    columns, width, height = 3, 320, 230
    rows = -(-len(axes) // columns)
    canvas = Canvas(columns * width + 20, rows * height + 60)
    canvas.text((20, 24), f"{method}: development concepts, one setting at a time", 16, INK)
    for index, (name, colour) in enumerate(COLOURS.items()):
        canvas.box((520 + index * 115, 18), (532 + index * 115, 30), colour, 3)
        canvas.text((537 + index * 115, 24), name, 11, MUTED)
    for index, axis in enumerate(axes):
        left, top = 50 + index % columns * width, 70 + index // columns * height
        found = [(value, s) for (a, value, by), s in results.items() if (a, by) == (axis, method)]
        canvas.text((left, top - 12), axis, 13, INK)
        for level in (0.0, 0.5, 1.0):
            y = top + 10 + (1 - level) * 140
            canvas.line([(left, y), (left + 240, y)], FAINT)
            canvas.text((left - 6, y), f"{level:g}", 10, MUTED, "rm")
        places = [left + 240 * (i + 0.5) / len(found) for i in range(len(found))]
        for x, (value, _) in zip(places, found, strict=True):
            canvas.text((x, top + 166), value.replace("keys and values", "both"), 10, MUTED, "mm")
        for number, colour in enumerate(COLOURS.values()):
            line = []
            for x, (_, scores) in zip(places, found, strict=True):
                value = scores.four()[number].value
                line.append((x, top + 10 + (1 - value) * 140))
                canvas.dot(line[-1], 3, colour)
            canvas.line(line, colour, 1.5)
    Image.fromarray(canvas.pixels()).save(file)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, default=1, help="concepts of each kind")
    parser.add_argument("--count", type=int, default=8, help="prompts for each number")
    parser.add_argument("--axis", action="append", help="only this one, as the pictures name it")
    parser.add_argument("--draw", action="store_true", help="only draw what there is")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "pictures")
    args = parser.parse_args()
    for folder in (args.out, args.pictures):
        folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(args.out / "ablation.jsonl", FIELDS)
    if not args.draw:
        wanted = [point for point in points() if not args.axis or point.axis in args.axis]
        fill(ledger, wanted, args.limit, args.count)
    for method in OWN:
        draw(args.pictures / f"ablation_{method}.png", results(ledger), method)


def fill(ledger: Ledger, wanted: list[Point], limit: int, count: int) -> None:
    """Measure the points that the ledger does not have yet."""
    model = NarrowUNet()
    trials = [
        DRAWN.trial(kind, concept, count)._replace(unlisted_neighbours=[])
        for kind, concepts in DEVELOPMENT.items()
        for concept in concepts[:limit]
    ]
    measured = functools.partial(measure, model, trials)
    for point in wanted:
        key = (point.axis, point.value, point.method)
        if key in ledger:
            continue
        scores = measured(point)
        ledger.add(key, scores._asdict())
        print(*key, *(f"{rate.value:.2f}" for rate in scores), flush=True)


if __name__ == "__main__":
    main()
