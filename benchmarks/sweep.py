"""Chooses settings on the development concepts with the narrow form of the small model.

    python3 dev.py run benchmarks/sweep.py -- --kind character --limit 4

The narrow form computes the same function as the checkpoint some ten times faster; what is
reported is measured in ComfyUI (`benchmarks/erasure.py`). Prints one row per setting: target by
name, name-free, captured neighbours kept, unseen neighbours kept, everything else right.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.comfy import inprocess
from tests.world import narrow
from tests.world.expand import INNER
from tests.world.measure import Scores, Trial
from tests.world.networks import WIDE
from tests.world.prompts import name_of
from tests.world.vocabulary import DEVELOPMENT

inprocess.enter()

from comfyui_pure.nodes.defaults import Trajectory
from comfyui_pure.nodes.prompts import anchors
from comfyui_pure.pure_core.activations import Activations, CaptureSettings
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.methods import fit

ROOT = Path(__file__).resolve().parent.parent

GRID: tuple[tuple[str, dict[str, float]], ...] = (
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
)


def capture(
    model: narrow.NarrowModel, prompts: tuple[str, ...], trajectory: Trajectory
) -> Activations:
    """What `PURE_Capture` collects, in the wide layout."""
    generator = torch.Generator().manual_seed(trajectory.seed)
    noise = torch.randn(trajectory.latents, 4, 8, 8, generator=generator)
    texts = [prompt for prompt in prompts for _ in range(trajectory.latents)]
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in model.cross_attention()}
    for start in range(0, len(texts), 60):
        batch = texts[start : start + 60]
        latents = noise[[i % trajectory.latents for i in range(start, start + len(batch))]]
        with narrow.recording(model) as found:
            narrow.sample(
                model,
                batch,
                latents,
                steps=trajectory.steps,
                cfg=trajectory.cfg,
                run_steps=trajectory.run_steps,
            )
        for name, calls in found.items():
            parts[name].append(torch.stack([call[: len(batch)] for call in calls], dim=1))
    rows = {}
    for name, batches in parts.items():
        wide = torch.zeros(len(texts) * trajectory.run_steps, WIDE)
        wide[:, INNER] = torch.cat(batches).flatten(0, 1)
        rows[name] = wide
    settings = {key: value for key, value in trajectory._asdict().items()}
    return Activations(
        rows, prompts, CaptureSettings(**settings, source_name="narrow", source_fingerprint="")
    )


@contextmanager
def erased(model: narrow.NarrowModel, eraser: Eraser) -> Iterator[None]:
    """The model with the eraser applied as fitted, for as long as the block runs."""
    saved = []
    edit = eraser.provenance.edit
    for name, layer in model.cross_attention().items():
        factors = eraser.layers[name]
        left, right = factors.proj_left[INNER], factors.proj_right[:, INNER]
        for linear, part in ((layer.to_k, "keys"), (layer.to_v, "values")):
            if part in edit:
                saved.append((linear, linear.weight))
                edited = linear.weight - left @ (right @ linear.weight)
                linear.weight = torch.nn.Parameter(edited, requires_grad=False)
    try:
        yield
    finally:
        for linear, weight in saved:
            linear.weight = weight


def trial_prompts(trial: Trial) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The anchors that the nodes would write for the trial's concept."""
    neighbours = "\n".join(name_of(trial.kind, each) for each in trial.neighbours())
    prompts = anchors(name_of(trial.kind, trial.concept), trial.kind, neighbours)
    return prompts.forget, prompts.retain


def sweep(
    model: narrow.NarrowModel,
    trials: list[Trial],
    trajectory: Trajectory,
    grid: tuple[tuple[str, dict[str, float]], ...],
) -> Iterator[tuple[str, Scores]]:
    """Scores of the unedited model and of every setting, summed over the trials."""
    sampler = functools.partial(narrow.pictures, model)
    yield "unedited", functools.reduce(Scores.__add__, (t.score(sampler) for t in trials))
    captured = [
        tuple(capture(model, prompts, trajectory) for prompts in trial_prompts(trial))
        for trial in trials
    ]
    for method, settings in grid:
        scores = []
        for trial, (forget, retain) in zip(trials, captured, strict=True):
            with erased(model, fit(method, forget, retain, **settings)):
                scores.append(trial.score(sampler))
        name = f"{method} {' '.join(f'{k}={v:g}' for k, v in settings.items())}"
        yield name, functools.reduce(Scores.__add__, scores)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, default=ROOT / "tests" / "world" / "weights")
    parser.add_argument("--kind", choices=DEVELOPMENT, action="append")
    parser.add_argument("--method", help="only this method")
    parser.add_argument("--limit", type=int, default=4, help="concepts of each kind")
    parser.add_argument("--count", type=int, default=16, help="prompts for each number")
    for field, default in Trajectory(width=64, height=64)._asdict().items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(default), default=default)
    args = parser.parse_args()
    model = narrow.load(args.weights)
    options: dict[str, Any] = {name: getattr(args, name) for name in Trajectory._fields}
    for kind in args.kind or DEVELOPMENT:
        trials = [
            Trial.of(kind, concept, args.count) for concept in DEVELOPMENT[kind][: args.limit]
        ]
        grid = tuple(entry for entry in GRID if args.method in (None, entry[0]))
        for name, scores in sweep(model, trials, Trajectory(**options), grid):
            print(f"{kind:15} {name:45}", *(f"{rate.value:.2f}" for rate in scores), flush=True)


if __name__ == "__main__":
    main()
