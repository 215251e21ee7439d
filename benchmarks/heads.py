"""Erasers head by head against erasers that mix heads, on development concepts.

    python3 dev.py run benchmarks/heads.py
    python3 dev.py run benchmarks/heads.py -- --model pictures

Three concepts of every kind, captured once and erased by every method on activations, with the
heads all together and each by itself, at several settings; and the share of each eraser's change
that arrives in the model (`pure_core/arrival.py`). On the narrow form of the drawn world's model,
or on a model of real pictures. Results are kept as they come (`heads.jsonl`,
`heads-pictures.jsonl`), so an interrupted run goes on; the table has the same name.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.fitting import BY_HEAD, TOGETHER, fit

from benchmarks.common import COUNTED, MOST_CELLS, RESULTS, markdown, scored, summed
from benchmarks.models import MODELS
from testbed.comfy.erasable import Captured
from testbed.world.measure import Concepts, Scores, Trial

FIELDS = ("kind", "concept", "method", "heads", "settings")

Settings = dict[str, float]

TRIED: dict[str, dict[str, tuple[Settings, ...]]] = {
    "ridge": {
        TOGETHER: ({"overshoot": 1.8}, {"overshoot": 1.0}),
        BY_HEAD: (
            {"overshoot": 1.3},
            {"overshoot": 1.8},
            {"overshoot": 1.0},
            {"overshoot": 1.4},
            {"overshoot": 1.5},
            {"keep": 1.0, "damping": 0.03, "overshoot": 1.0},
            {"keep": 1.0, "damping": 0.03, "overshoot": 1.3},
        ),
    },
    "mosaic": {
        TOGETHER: ({"reach": 1.6}, {"reach": 1.0}),
        BY_HEAD: (
            {"reach": 1.3},
            {"reach": 1.6},
            {"reach": 1.0},
            {"reach": 1.4},
            {"keep": 1.0, "damping": 0.03, "reach": 1.0},
            {"keep": 1.0, "damping": 0.03, "reach": 1.3},
        ),
    },
    "leace": {TOGETHER: ({},), BY_HEAD: ({}, {"shrinkage": 0.001})},
    "pure": {
        TOGETHER: ({}, {"forget_energy": 0.999, "retain_energy": 0.7}),
        BY_HEAD: (
            {},
            {"forget_energy": 0.999, "retain_energy": 0.3},
            {"forget_energy": 0.999, "retain_energy": 0.7},
            {"forget_energy": 0.99999, "retain_energy": 0.1},
        ),
    },
}
"""Method -> heads -> settings that are not at their defaults. Those of every method for heads
together are what it was used with before it was fitted head by head."""

UNEDITED = ("unedited", "-", "-")
"""Method, heads and settings of the model as it is."""


def measured(
    model: Any, captured: Captured, trial: Trial, method: str, heads: str, settings: Settings
) -> Any:
    """Rates and the share that arrives, for the ledger."""
    eraser = fit(method, *captured, heads=heads, **settings)
    scores = scored(model, trial, eraser)
    shares = [1.0] if eraser.heads else list(model.arriving(eraser).values())
    return {**scores._asdict(), "arrives": [min(shares), statistics.fmean(shares), max(shares)]}


def points(kinds: Concepts, concepts: int, most: int) -> Iterator[tuple[str, str, str, str, str]]:
    """The ledger's keys, kind by kind within a setting, so that early rows are whole."""
    tried = [
        (method, heads, _named(settings))
        for method, by_heads in TRIED.items()
        for heads, every in by_heads.items()
        for settings in every[:most]
    ]
    for setting in (UNEDITED, *tried):
        for kind, names in kinds.items():
            for concept in names[:concepts]:
                yield kind, concept, *setting


def _named(settings: Settings) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items()) or "defaults"


def table(ledger: Ledger, kinds: Concepts) -> str:
    """One row for each method, setting and kind, and for all kinds."""
    found: dict[tuple[str, str, str], dict[str, list[Any]]] = {}
    for (kind, _, method, heads, settings), entry in ledger.items():
        for group in ("all", kind):
            found.setdefault((method, heads, settings), {}).setdefault(group, []).append(entry)
    rows = []
    for (method, heads, settings), groups in found.items():
        for kind in ("all", *kinds):
            if kind not in groups:
                continue
            entries = groups[kind]
            scores = summed(entries)
            share = _share([each["arrives"] for each in entries if each["arrives"]])
            mean = f"{scores.harmonic_mean:.3f}"
            rows.append((kind, method, heads, settings, share, *scores, mean))
    rows.sort(key=lambda row: (["all", *kinds].index(row[0]), row[1] != UNEDITED[0]))
    return markdown(
        ("kind", "method", "heads", "settings", "arrives (least, mean, most)", *COUNTED, "H"), rows
    )


def _share(arrives: list[list[float]]) -> str:
    """Least, mean and most of all; - of nothing."""
    if not arrives:
        return "-"
    least, means, most = zip(*arrives, strict=True)
    return "–".join(f"{each:.2f}" for each in (min(least), statistics.fmean(means), max(most)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("narrow", "pictures", "wan"), default="narrow")
    parser.add_argument("--concepts", type=int, default=3, help="of each kind")
    parser.add_argument("--most", type=int, default=99, help="settings of each method")
    parser.add_argument("--count", type=int, default=8, help="prompts for each number and concept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stem = "heads" if args.model == "narrow" else f"heads-{args.model}"
    world, load, _ = MODELS[args.model]
    ledger, model, kinds = (
        Ledger(args.out / f"{stem}.jsonl", FIELDS),
        load(),
        world.splits["development"],
    )
    tried = {_named(each): each for by in TRIED.values() for all_ in by.values() for each in all_}
    trials = functools.cache(lambda kind, concept: world.trial(kind, concept, args.count))
    captures = functools.cache(lambda *concept: model.capture(trials(*concept), MOST_CELLS))
    for key in points(kinds, args.concepts, args.most):
        if key in ledger:
            continue
        kind, concept, *setting = key
        trial = trials(kind, concept)
        if tuple(setting) == UNEDITED:
            entry = {**scored(model, trial, None)._asdict(), "arrives": []}
        else:
            method, heads, settings = setting
            captured = captures(kind, concept)
            entry = measured(model, captured, trial, method, heads, tried[settings])
        ledger.add(key, entry)
        print(*key, *(entry[name] for name in Scores._fields), entry["arrives"], flush=True)
    text = table(ledger, kinds)
    (args.out / f"{stem}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
