"""Erases concepts of the shipped model in ComfyUI by every method and lets the judge count.

    python3 dev.py run benchmarks/erasure.py               # full: two hours on two cores
    python3 dev.py run benchmarks/erasure.py -- --quick    # ten minutes

Every concept is captured once for each seed, from that seed's own latents, and erased by every
method with the nodes' default settings; with `--as-authors` those of others run as their authors
run them on that kind of concept. Each number is counted on its own prompts, the same for every
method, and the unedited model is the first row. Results are kept as they come (`erasure.jsonl`), so
an interrupted run goes on. `--model narrow` measures on the model's narrow form, which computes the
same function ten times faster; `pictures` and `wan` are the models of real pictures. `--unedited N`
measures how well the unedited model draws what N prompts ask for.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.errors import FitError
from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.fitting import BY_HEAD
from comfyui_pure.pure_core.methods import METHODS, TEXT_METHODS

from benchmarks.chart import draw_table
from benchmarks.common import MOST_CELLS, RESULTS, fit_method, markdown
from benchmarks.models import MODELS, Tested
from benchmarks.rows import COSTS, Result, Row
from testbed.comfy.erasable import TRAJECTORY, Captured
from testbed.pictures.measure import PICTURES, any_concept
from testbed.world.measure import DRAWN, Scores, Trial

PURE_BY_HEAD = "pure by head"
METHODS_TRIED = ("unedited", "pure", PURE_BY_HEAD, *(m for m in METHODS if m != "pure"))
METHODS_TRIED += tuple(TEXT_METHODS)
FIELDS = ("model", "settings", "split", "kind", "concept", "method", "seed", "capture")
"""`seed` is that of the pictures and their prompts, `capture` that of the captured latents."""

COMMON, AUTHORS = "common", "as authors"
HEADS = ("by name", "by description", "neighbours", "unlisted neighbours", "everything else")


class Run(NamedTuple):
    """Which of the ledger's results belong together."""

    model: str
    settings: str
    split: str

    def results(self, ledger: Ledger, kind: str, method: str) -> dict[int, list[Result]]:
        """Seed -> results of a kind's concepts, those with the capture of that seed."""
        found: dict[int, list[Result]] = {}
        for key, entry in ledger.items():
            *own, where, _, by, seed, capture = key
            if tuple(own) == self and (where, by) == (kind, method) and seed == capture:
                found.setdefault(int(seed), []).append(Result.of(entry))
        return found

    def rows(self, ledger: Ledger) -> Iterator[Row]:
        """The rows of the table, those over all kinds first."""
        every = {}
        kinds = MODELS[self.model].world.splits[self.split]
        for kind, method in itertools.product(kinds, METHODS_TRIED):
            if found := self.results(ledger, kind, method):
                every[kind, method] = found
        for method in METHODS_TRIED:
            own = [found for (_, by), found in every.items() if by == method]
            if own:
                seeds = sorted(set(itertools.chain(*own)))
                together = {seed: [r for f in own for r in f.get(seed, [])] for seed in seeds}
                means = [_row("", method, found).mean_of_kinds for found in own]
                mean = statistics.fmean(means)
                yield _row("all", method, together)._replace(mean_of_kinds=mean)
        for (kind, method), found in every.items():
            yield _row(kind, method, found)

    def text(self, ledger: Ledger) -> str:
        """The table: rates with intervals, what is kept of the unedited model's, both harmonic
        means, their spread, costs.
        """
        heads = ("kind", "model", *HEADS, "kept of unedited")
        means = ("harmonic mean", "by capture", "mean of kinds")
        costs = ("capture s", "fit and apply s", "rank")
        rows, unedited = [], {}
        for row in self.rows(ledger):
            result = row.total
            if row.method == "unedited":
                unedited[row.kind] = result.scores
            spread = "–".join(f"{each:.2f}" for each in _ends(row.by_capture))
            rows.append(
                [
                    row.kind,
                    row.method,
                    *(rate if rate.total else "" for rate in result.scores),
                    _kept(result.scores, unedited.get(row.kind)),
                    f"{result.scores.harmonic_mean:.3f}",
                    spread,
                    f"{row.mean_of_kinds:.3f}",
                    f"{result.capture_s:.1f}",
                    f"{result.fit_s:.2f}",
                    f"{result.rank:.0f}",
                ]
            )
        return markdown((*heads, *means, *costs), rows)


def _kept(scores: Scores, unedited: Scores | None) -> str:
    """The last three rates as shares of the unedited model's."""
    if unedited is None:
        return ""
    pairs = zip(scores[2:], unedited[2:], strict=True)
    return " / ".join(f"{a.value / b.value:.2f}" for a, b in pairs if b.hits)


def _row(kind: str, method: str, found: Mapping[int, list[Result]]) -> Row:
    every = [result for results in found.values() for result in results]
    total = _sum(every)
    means = [_sum(found[seed]).harmonic_mean for seed in sorted(found)]
    costs = (statistics.fmean(getattr(each, name) for each in every) for name in COSTS)
    return Row(kind, method, Result(total, *costs), means, total.harmonic_mean)


def _ends(values: list[float]) -> list[float]:
    return sorted({min(values), max(values)})


def _sum(results: Iterable[Result]) -> Scores:
    return functools.reduce(Scores.__add__, (result.scores for result in results))


def settings_of(method: str, kind: str, authors: bool) -> Mapping[str, Any] | None:
    """What a method is run with; None if its authors say nothing for that kind."""
    known = {**METHODS, **TEXT_METHODS}.get(method)
    if not authors:
        return {"heads": BY_HEAD} if method == PURE_BY_HEAD else {}
    preset = None if known is None else known.preset_for_kind.get(kind)
    return None if known is None or preset is None else known.presets[preset]


def measure(
    model: Any, ledger: Ledger, run: Run, trial: Trial, seed: int, methods: Iterable[str]
) -> None:
    """Add what the ledger does not have yet of one concept and seed."""
    captured: list[Captured] = []
    took = 0.0

    def capture() -> Captured:
        nonlocal took
        if not captured:
            started = time.monotonic()
            captured.append(model.capture(trial, MOST_CELLS, TRAJECTORY._replace(seed=seed)))
            took = time.monotonic() - started
        return captured[0]

    for method in methods:
        key = (*run, trial.kind, trial.concept, method, seed, seed)
        settings = settings_of(method, trial.kind, run.settings == AUTHORS)
        if key in ledger or settings is None:
            continue
        eraser, fit_s = None, 0.0
        if method != "unedited":
            name = "pure" if method == PURE_BY_HEAD else method
            if name in METHODS:
                capture()
            started = time.monotonic()
            task = functools.partial(model.text_task, trial)
            try:
                eraser = fit_method(name, capture, task, settings)
            except FitError as refused:
                if name not in TEXT_METHODS:
                    raise
                # one that a model refuses into which text enters by one map
                print(*key[3:-1], refused, flush=True)
                continue
        with model.erased(eraser) as sampler:
            if eraser is not None:
                fit_s = time.monotonic() - started
            scores = trial.score(functools.partial(sampler, seed=seed))
        rank = 0.0 if eraser is None else statistics.fmean(eraser.ranks.values())
        cost = 0.0 if method in ("unedited", *TEXT_METHODS) else took
        ledger.add(key, Result(scores, cost, fit_s, rank).entry())
        print(*key[3:-1], *scores, f"{scores.harmonic_mean:.3f}", flush=True)


def unedited(tested: Tested, count: int) -> str:
    """How often the unedited model draws what it is asked for."""
    pictures, rows = tested.load().pictures, []
    for words, by_name in (("by name", True), ("name-free", False)):
        rates = tested.world.rates(pictures, count, by_name)
        if tested.world is PICTURES:
            rates["any concept"] = any_concept(rates)
        rows += [(words, attribute, rate) for attribute, rate in sorted(rates.items())]
    return markdown(("prompts", "asked for", "shown"), rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="comfyui")
    parser.add_argument("--concepts", choices=("development", "held-out"), default="held-out")
    parser.add_argument("--kind", action="append", help="only this one")
    parser.add_argument("--method", action="append", choices=METHODS_TRIED, help="only this one")
    parser.add_argument("--limit", type=int, default=2, help="concepts of each kind")
    parser.add_argument("--count", type=int, default=8, help="prompts for each number and seed")
    parser.add_argument("--seeds", type=int, default=3, help="each with a capture of its own")
    parser.add_argument(
        "--as-authors", action="store_true", help="peers by their authors' settings"
    )
    parser.add_argument("--quick", action="store_true", help="one concept of 3 kinds, one seed")
    parser.add_argument("--unedited", type=int, help="measure the unedited model on N prompts")
    parser.add_argument(
        "--table", action="store_true", help="only write the table of what there is"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tested = MODELS[args.model]
    split = tested.world.splits[args.concepts]
    kinds = args.kind or list(split)
    if args.quick:
        kinds, args.limit, args.count, args.seeds = kinds[:3], 1, 5, 1
    marks = [args.model] * (args.model != "comfyui")
    if args.unedited:
        text = unedited(tested, args.unedited)
        (args.out / f"{'-'.join(['unedited', *marks])}.md").write_text(text, encoding="utf-8")
        print(text)
        return
    run = Run(args.model, AUTHORS if args.as_authors else COMMON, args.concepts)
    ledger = Ledger(args.out / "erasure.jsonl", FIELDS)
    if not args.table:
        model = tested.load()
        for seed, number in itertools.product(range(args.seeds), range(args.limit)):
            for kind in kinds:
                for concept in split[kind][number : number + 1]:
                    trial = tested.world.trial(kind, concept, args.count, seed)
                    if tested.world is DRAWN:  # as its results were begun
                        trial = trial._replace(unlisted_neighbours=[])
                    measure(model, ledger, run, trial, seed, args.method or METHODS_TRIED)
    marks += ["as-authors"] * args.as_authors
    stem = "-".join([args.concepts, *marks])
    text = run.text(ledger)
    (args.out / f"{stem}.md").write_text(text, encoding="utf-8")
    draw_table(args.out / f"{stem}.png", list(run.rows(ledger)))
    print(text)


if __name__ == "__main__":
    main()
