"""The published methods with settings chosen here, beside those of their authors.

    python3 dev.py run benchmarks/peers.py                  # chooses, on the drawn world
    python3 dev.py run benchmarks/peers.py -- --report wan  # held-out concepts by the choice

A few settings of every method are tried on development concepts of the drawn world's narrow form,
one of each kind. The one with the highest mean of the kinds' harmonic means is chosen, one for all
kinds and models. `--report` measures it on held-out concepts of a model, beside the authors'
settings: their preset for the kind of concept, and the method's defaults where they have none.
Results are kept as they come (`peers.jsonl`), so an interrupted run goes on. Prompts and pictures
are those of `erasure.py` with one seed, so its results of the same settings count as well.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.fitting import fit_text
from comfyui_pure.pure_core.methods import TEXT_METHODS
from comfyui_pure.pure_core.methods.method import Value, number

from benchmarks.common import COUNTED, RESULTS, markdown, scored, summed
from benchmarks.erasure import AUTHORS, COMMON, settings_of
from benchmarks.erasure import FIELDS as ERASURE
from benchmarks.models import MODELS
from testbed.world.measure import DRAWN, Concepts, Scores, Trial

FIELDS = ("model", "split", "count", "kind", "concept", "method", "settings")
DEVELOPMENT, HELD_OUT = "development", "held-out"
CHOSEN_ON = "narrow"
REPORTED = ("narrow", "pictures", "wan")

Settings = Mapping[str, Value]

AND_AFTER: Settings = {"tokens": "last and after"}
EVERYWHERE: Settings = {"start_weight": 1.0, "padding_weight": 1.0, "name_weight": 1.0}

TRIED: dict[str, tuple[Settings, ...]] = {
    "uce": (
        {},
        {"preserve": 0.1},
        {**AND_AFTER},
        {**AND_AFTER, "preserve": 0.1},
        {**AND_AFTER, "ridge": 10.0},
        {**AND_AFTER, "ridge": 100.0},
        {**AND_AFTER, "ridge": 400.0},
    ),
    "cure": tuple({"alpha": alpha} for alpha in (2.0, 5.0, 50.0, 1000.0)),
    "rece": (
        {"rounds": 1},
        {},
        {**AND_AFTER, "rounds": 1},
        {**AND_AFTER, "rounds": 1, "round_preserve": 1.0, "round_ridge": 10.0},
        {
            **AND_AFTER,
            "rounds": 1,
            "ridge": 100.0,
            "round_preserve": 1.0,
            "round_ridge": 100.0,
        },
    ),
    "speed": (
        {},
        {"regularisation": 0.05},
        {"threshold": 1.0},
        {"threshold": 1.0, "regularisation": 0.05},
    ),
    "oce": (
        *(TEXT_METHODS["oce"].presets[name] for name in ("objects", "styles", "nudity")),
        TEXT_METHODS["oce"].presets["ten people"],
        {"rotation": 200.0, "general": 1.0, "preserve_values": 1.0},
    ),
    "double projections": ({},),
    "trce": (
        {},
        {"caption_weight": 0.1},
        {"padding_weight": 1.0},
        {**EVERYWHERE},
        {**EVERYWHERE, "caption_weight": 0.1},
    ),
}
"""Method -> settings that are not at their defaults. Double Projections has none."""

UNEDITED = ("unedited", "-")
"""Method and settings of the model as it is."""

AS_AUTHORS = "authors'"
FOUR = tuple(head for head in COUNTED if head != "unlisted")
"""Heads of the numbers that the harmonic mean is of."""


def authors_settings(method: str, kind: str) -> Settings:
    """What the authors use for concepts of a kind; defaults where they say nothing."""
    known = TEXT_METHODS[method]
    preset = known.preset_for_kind.get(kind)
    return {} if preset is None else known.presets[preset]


def named(method: str, settings: Settings) -> str:
    """Settings as one text, which says the same however many of them are at their defaults."""
    usual = {each.name: each.default for each in TEXT_METHODS[method].settings}
    other = {name: value for name, value in settings.items() if value != usual[name]}
    return (
        ", ".join(f"{name} {number(other[name])}" for name in usual if name in other) or "defaults"
    )


class Peers:
    """One model under the published methods."""

    def __init__(self, model: str, split: str, count: int, ledger: Ledger) -> None:
        """`count` prompts for each number and concept."""
        self.name, self.split, self.count, self.ledger = model, split, count, ledger
        self.world = MODELS[model].world
        self.kinds: Concepts = self.world.splits[split]
        self.trial = functools.cache(self._trial)
        self.task = functools.cache(lambda *of: self.model.text_task(self.trial(*of)))

    @functools.cached_property
    def model(self) -> Any:
        """Loaded when something has to be measured."""
        return MODELS[self.name].load()

    def _trial(self, kind: str, concept: str) -> Trial:
        """As `erasure.py` has it."""
        trial = self.world.trial(kind, concept, self.count)
        return trial._replace(unlisted_neighbours=[]) if self.world is DRAWN else trial

    def key(self, kind: str, concept: str, method: str, settings: str) -> tuple[str | int, ...]:
        """Of the ledger."""
        return self.name, self.split, self.count, kind, concept, method, settings

    def concepts(self, most: int) -> Iterator[tuple[str, str]]:
        """Kinds with their first concepts."""
        for kind, names in self.kinds.items():
            for concept in names[:most]:
                yield kind, concept

    def measure(self, kind: str, concept: str, method: str, settings: Settings | None) -> None:
        """Add what the ledger does not have yet. Without settings, of the model as it is."""
        words = UNEDITED[1] if settings is None else named(method, settings)
        key = self.key(kind, concept, method, words)
        if key in self.ledger:
            return
        trial: Trial = self.trial(kind, concept)
        eraser = None
        if settings is not None:
            eraser = fit_text(method, self.task(kind, concept), **settings)
        scores = scored(self.model, trial, eraser)
        self.ledger.add(key, scores._asdict())
        print(*key, *scores, f"{scores.harmonic_mean:.3f}", flush=True)

    def take(self, erasure: Mapping[Any, Any]) -> None:
        """Add what `erasure.py` measured of the same settings, prompts and pictures."""
        for (model, settings, split, kind, concept, method, *seeds), entry in erasure.items():
            of_this = (model, split) == (self.name, self.split) and seeds == [0, 0]
            if not of_this or entry["by_name"][1] != self.count:
                continue
            if method in TRIED and settings in (AUTHORS, COMMON):
                used = settings_of(method, kind, settings == AUTHORS) or {}
                key = self.key(kind, concept, method, named(method, used))
            elif (method, settings) == (UNEDITED[0], COMMON):
                key = self.key(kind, concept, *UNEDITED)
            else:
                continue
            if key not in self.ledger:
                self.ledger.add(key, {name: entry[name] for name in Scores._fields})

    def found(self, kind: str, method: str, settings: str, most: int) -> list[Any]:
        """The entries of a kind's concepts."""
        keys = (self.key(kind, each, method, settings) for each in self.kinds[kind][:most])
        return [self.ledger[key] for key in keys if key in self.ledger]


def mean_of_kinds(peers: Peers, method: str, settings: Settings, most: int) -> float:
    """The mean of the kinds' harmonic means; -1 if a concept is missing."""
    means = []
    for kind, names in peers.kinds.items():
        entries = peers.found(kind, method, named(method, settings), most)
        if len(entries) < len(names[:most]):
            return -1
        means.append(summed(entries).harmonic_mean)
    return statistics.fmean(means)


def chosen(peers: Peers, most: int) -> dict[str, Settings]:
    """Method -> what did best on the development concepts; of equals what is listed first."""
    best = {}
    for method, tried in TRIED.items():
        means = [mean_of_kinds(peers, method, each, most) for each in tried]
        if max(means) >= 0:
            best[method] = tried[means.index(max(means))]
    return best


def tried_table(peers: Peers, most: int) -> str:
    """Every setting on the development concepts, the chosen ones in bold."""
    rows, best = [], chosen(peers, most)
    for method, tried in TRIED.items():
        for settings in tried:
            words = named(method, settings)
            row = _row(peers, method, words, dict.fromkeys(peers.kinds, words), most)
            if row and settings == best[method]:
                row = (method, f"**{words}**", *row[2:])
            rows.append(row)
    heads = ("method", "settings", "concepts", *FOUR, *peers.kinds, "mean of kinds")
    return markdown(heads, filter(None, rows))


def report_table(peers: Peers, best: Mapping[str, Settings], most: int) -> str:
    """Held-out concepts of a model by the authors' settings and by the chosen ones.

    The rows of a method are of the same concepts, as many of each kind as both have, up to `most`.
    """
    groups = [[(UNEDITED[0], "", dict.fromkeys(peers.kinds, UNEDITED[1]))]]
    for method, settings in best.items():
        own = {kind: named(method, authors_settings(method, kind)) for kind in peers.kinds}
        words = named(method, settings)
        same = dict.fromkeys(peers.kinds, words)
        groups.append([(method, AS_AUTHORS, own), (method, words, same)])
    rows: list[tuple[object, ...]] = []
    for group in groups:
        for count in range(most, 0, -1):
            found = [_row(peers, *each, count) for each in group]
            if all(found):
                rows += found
                break
    heads = ("method", "settings", "concepts", *FOUR, *peers.kinds, "mean of kinds")
    return markdown(heads, rows) if len(rows) > 1 else "Not measured.\n"


def _row(
    peers: Peers, method: str, words: str, settings: Mapping[str, str], most: int
) -> tuple[object, ...]:
    """Nothing if a concept is missing."""
    by_kind = [peers.found(kind, method, settings[kind], most) for kind in peers.kinds]
    if [len(each) for each in by_kind] != [len(each[:most]) for each in peers.kinds.values()]:
        return ()
    sums = [summed(each) for each in by_kind]
    total: Scores = functools.reduce(Scores.__add__, sums)
    shown = [f"{each.harmonic_mean:.2f}" for each in sums]
    mean = f"{statistics.fmean(each.harmonic_mean for each in sums):.3f}"
    return method, words, sum(map(len, by_kind)), *total.four(), *shown, mean


def _of_each(points: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """First one concept of every kind, then the next, so that early rows are whole."""
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for kind, concept in points:
        by_kind.setdefault(kind, []).append((kind, concept))
    longest = max(map(len, by_kind.values()))
    return [
        each[place] for place in range(longest) for each in by_kind.values() if place < len(each)
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", choices=REPORTED, help="held-out concepts of this model")
    parser.add_argument("--method", action="append", choices=TRIED, help="only this one")
    parser.add_argument("--concepts", type=int, default=2, help="held-out ones of each kind")
    parser.add_argument("--tried-on", type=int, default=1, help="development concepts of each kind")
    parser.add_argument("--count", type=int, default=8, help="prompts for each held-out number")
    parser.add_argument("--tried", type=int, default=4, help="prompts for each development number")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(args.out / "peers.jsonl", FIELDS)
    trying = Peers(CHOSEN_ON, DEVELOPMENT, args.tried, ledger)
    reports = {model: Peers(model, HELD_OUT, args.count, ledger) for model in REPORTED}
    methods = args.method or list(TRIED)
    if not args.table and args.report is None:
        for method in methods:
            for settings in TRIED[method]:
                for point in trying.concepts(args.tried_on):
                    trying.measure(*point, method, settings)
    best = chosen(trying, args.tried_on)
    if not args.table and args.report is not None:
        peers = reports[args.report]
        peers.take(Ledger(args.out / "erasure.jsonl", ERASURE))
        for point in _of_each(peers.concepts(args.concepts)):
            peers.measure(*point, UNEDITED[0], None)
            for method in methods:
                if method in best:
                    peers.measure(*point, method, best[method])
                peers.measure(*point, method, authors_settings(method, point[0]))
    parts = [f"## Settings tried on development concepts\n\n{tried_table(trying, args.tried_on)}"]
    for model, peers in reports.items():
        table = report_table(peers, best, args.concepts)
        parts.append(f"## Held-out concepts: {MODELS[model].words}\n\n{table}")
    text = "\n".join(parts)
    (args.out / "peers.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
