"""Chooses settings on the development concepts with the narrow form of the small model.

    python3 dev.py run benchmarks/sweep.py -- --kind character

What is reported is measured in ComfyUI (`benchmarks/erasure.py`). Prints one row per setting: by
name, name-free, captured neighbours kept, unseen neighbours kept, everything else right, and the
harmonic mean.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from typing import Any

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.methods import METHODS
from comfyui_pure.pure_core.trajectory import Trajectory

from benchmarks.common import fit_method, scored
from benchmarks.narrow import NarrowUNet
from testbed.comfy.erasable import TRAJECTORY
from testbed.world.measure import DRAWN, Scores, Trial
from testbed.world.vocabulary import DEVELOPMENT

Setting = tuple[str, dict[str, Any]]

GRID: tuple[Setting, ...] = (
    *(
        ("pure", {"forget_energy": forget, "retain_energy": retain})
        for forget in (0.999, 0.9999, 0.99999)
        for retain in (0.3, 0.5, 0.7)
    ),
    *(
        ("ridge", {"keep": keep, "damping": damping, "overshoot": overshoot})
        for keep, damping in ((1.0, 0.03), (1.0, 0.1), (1.0, 0.3), (10.0, 0.1), (10.0, 0.3))
        for overshoot in (1.0, 1.4, 1.6, 1.8)
    ),
    *(
        ("mosaic", {"keep": keep, "damping": 0.3, "reach": reach})
        for keep in (10.0, 30.0)
        for reach in (1.0, 1.2, 1.4, 1.6, 1.8)
    ),
    *(("leace", {"shrinkage": shrinkage}) for shrinkage in (0.001, 0.01, 0.1)),
    *(
        (method, {"tokens": tokens, "erase": erase})
        for method in ("uce", "rece")
        for tokens in ("last", "last and after")
        for erase in (1.0, 10.0)
    ),
    *(("cure", {"alpha": alpha}) for alpha in (2.0, 5.0, 50.0, 1000.0)),
    *(("speed", {"threshold": threshold}) for threshold in (0.01, 0.1, 1.0)),
    *(("oce", {"rotation": rotation}) for rotation in (20.0, 200.0, 2000.0)),
    ("double projections", {}),
)


def sweep(
    model: NarrowUNet,
    trials: list[Trial],
    grid: tuple[Setting, ...],
    trajectory: Trajectory = TRAJECTORY,
) -> Iterator[tuple[str, Scores]]:
    """Scores of the unedited model and of every setting, summed over the trials."""
    yield "unedited", _summed(model, trials, None, trajectory)
    for setting in grid:
        method, settings = setting
        name = f"{method} {' '.join(f'{key}={value}' for key, value in settings.items())}"
        yield name, _summed(model, trials, setting, trajectory)


def _summed(
    model: NarrowUNet, trials: list[Trial], setting: Setting | None, trajectory: Trajectory
) -> Scores:
    scores = []
    for trial in trials:
        eraser = None
        if setting is not None:
            cells = METHODS[setting[0]].cells if setting[0] in METHODS else 1
            captured = functools.partial(model.capture, trial, cells, trajectory)
            eraser = fit_method(
                setting[0], captured, functools.partial(model.text_task, trial), setting[1]
            )
        scores.append(scored(model, trial, eraser))
    return functools.reduce(Scores.__add__, scores)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", choices=DEVELOPMENT, action="append")
    parser.add_argument("--method", help="only this method")
    parser.add_argument("--limit", type=int, default=4, help="concepts of each kind")
    parser.add_argument("--count", type=int, default=16, help="prompts for each number")
    for field, default in TRAJECTORY._asdict().items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(default), default=default)
    args = parser.parse_args()
    model = NarrowUNet()
    trajectory = Trajectory(**{name: getattr(args, name) for name in Trajectory._fields})
    grid = tuple(entry for entry in GRID if args.method in (None, entry[0]))
    for kind in args.kind or DEVELOPMENT:
        trials = [
            DRAWN.trial(kind, concept, args.count) for concept in DEVELOPMENT[kind][: args.limit]
        ]
        for name, scores in sweep(model, trials, grid, trajectory):
            rates = " ".join(f"{rate.value:.2f}" for rate in scores)
            print(f"{kind:15} {name:45} {rates} {scores.harmonic_mean:.3f}", flush=True)


if __name__ == "__main__":
    main()
