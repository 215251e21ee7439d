"""`dev.py test`: style, types, the mathematics once, and everything else in each ComfyUI."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dev.comfyui import DEV
from dev.console import ROOT, link_to_checkout, merged, say
from dev.processes import end_all, started

PURE_TESTS = ("tests/core", "tests/world", "tests/dev")
COMFY_TESTS = "tests/comfy"
NOTHING_COLLECTED = 5  # pytest's exit status


@dataclass(frozen=True)
class Stage:
    """One program of the checks."""

    name: str
    command: Sequence[str | Path]
    env: Mapping[str, str]
    may_be_empty: bool = False
    """Whether pytest may collect nothing, because the person selected tests."""

    label: str = ""
    """Begins every line of its output, where another stage runs beside it."""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    stage: Stage
    passed: bool
    seconds: float
    last_line: str


def run_stage(stage: Stage) -> Outcome:
    """Run one stage, its output passed on line by line."""
    say(f"== {stage.name}")
    began = time.monotonic()
    last_line = ""
    with started(
        stage.command,
        ROOT,
        merged(stage.env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{stage.label}{line}", end="", flush=True)
            last_line = line.strip() or last_line
        process.wait()
    empty = stage.may_be_empty and process.returncode == NOTHING_COLLECTED
    passed = process.returncode == 0 or empty
    return Outcome(stage, passed, time.monotonic() - began, last_line)


def run_beside(stages: Sequence[Stage]) -> list[Outcome]:
    """Run stages at the same time, each with its share of the cores."""
    if len(stages) < 2:
        return [run_stage(stage) for stage in stages]
    share = max(1, (os.cpu_count() or 1) // len(stages))
    threads = os.environ.get("OMP_NUM_THREADS", str(share))
    shared = [
        replace(stage, env={"OMP_NUM_THREADS": threads, **stage.env}, label=f"[{stage.name}] ")
        for stage in stages
    ]
    with ThreadPoolExecutor(len(shared)) as pool:
        try:
            return list(pool.map(run_stage, shared))
        except BaseException:
            end_all()  # or leaving the pool would wait for them
            raise


def link_package() -> None:
    """Let the checkout be found as the package that it is in ComfyUI, whatever its name."""
    (ROOT / ".dev" / "types").mkdir(parents=True, exist_ok=True)
    link_to_checkout(ROOT / ".dev" / "types" / "comfyui_pure")


def lint_stages(python: Path, env: Mapping[str, str]) -> list[Stage]:
    """Style and spelling over everything, types over the plugin, dev and the editor's part."""
    link_package()
    # Its cache stays in the checkout, and it asks no server for a newer version.
    deno = {**env, "DENO_DIR": str(DEV / "deno"), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}
    return [
        Stage("ruff check", [python, "-m", "ruff", "check", "."], env),
        Stage("ruff format", [python, "-m", "ruff", "format", "--check", "."], env),
        Stage("mypy", [python, "-m", "mypy"], env),
        Stage("codespell", [python, "-m", "codespell_lib"], env),
        Stage("deno lint", [python, "-m", "deno", "lint"], deno),
        Stage("deno check", [python, "-m", "deno", "check", "--no-remote", "web"], deno),
    ]


def pytest_stage(name: str, python: Path, env: Mapping[str, str], arguments: list[str]) -> Stage:
    """A run of pytest; `arguments` are folders, files and whatever the person added."""
    chosen = [word for word in arguments if word not in (*PURE_TESTS, COMFY_TESTS)]
    return Stage(name, [python, "-m", "pytest", *arguments], env, may_be_empty=bool(chosen))


def split_selection(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The person's pytest arguments: paths without ComfyUI, paths that need it, other options."""
    pure, comfy, options = [], [], []
    for word in arguments:
        path = (ROOT / word.partition("::")[0]).resolve()
        if word.startswith("-") or not path.exists() or not path.is_relative_to(ROOT / "tests"):
            options.append(word)
        elif path.is_relative_to(ROOT / COMFY_TESTS):
            comfy.append(word)
        else:
            pure.append(word)
    return pure, comfy, options


def report(outcomes: Sequence[Outcome]) -> int:
    """Say how each stage ended, pytest's own summary lines last; the exit status."""
    for outcome in outcomes:
        word = "passed" if outcome.passed else "FAILED"
        say(f"{word} {outcome.stage.name} ({outcome.seconds:.0f} s)")
    for outcome in outcomes:
        if "pytest" in outcome.stage.command:
            print(outcome.last_line, flush=True)
    return 0 if all(outcome.passed for outcome in outcomes) else 1
