"""`dev.py test`: which tests run where, and what counts as a pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dev.checks import Stage, lint_stages, report, run_beside, run_stage, split_selection
from dev.console import ROOT, link_to_checkout, merged

MISTAKES = {
    "ruff check": ("pure_core/module.py", "import os\n", "F401"),
    "ruff format": ("pure_core/module.py", "ONE  =  1\n", "would be reformatted"),
    "mypy": ("pure_core/module.py", "def same(x):\n    return x\n", "no-untyped-def"),
    "codespell": ("README.md", "It erases teh concept.\n", "teh ==> the"),  # codespell:ignore teh
    "deno lint": ("web/module.js", "let one = 1\nexport const two = 2 * one\n", "prefer-const"),
    "deno check": ("web/module.js", 'import { mak } from "./dom.js"\nmak("p")\n', "mak"),
}
"""What each check of the sources is for: a file, a mistake in it, and a word of the report."""


def test_paths_go_to_the_run_that_can_hold_them() -> None:
    words = ["tests/dev/test_checks.py::test_x", "tests/comfy", "-k", "name", "-x"]
    assert split_selection(words) == (words[:1], words[1:2], words[2:])


@pytest.mark.parametrize(
    "status, may_be_empty, passed",
    [(0, False, True), (1, False, False), (1, True, False), (5, False, False), (5, True, True)],
)
def test_a_stage_passes_by_its_exit_status(status: int, may_be_empty: bool, passed: bool) -> None:
    code = f"print('== 1 done =='); print(); raise SystemExit({status})"
    outcome = run_stage(Stage("a", [sys.executable, "-c", code], {}, may_be_empty))
    assert outcome.passed is passed
    assert outcome.last_line == "== 1 done =="
    assert report([outcome]) == (0 if passed else 1)


def test_every_check_of_the_sources_has_a_mistake_to_find() -> None:
    assert {stage.name for stage in lint_stages(Path(sys.executable), {})} == MISTAKES.keys()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_check_of_the_sources_finds_its_mistake(name: str, tmp_path: Path) -> None:
    file, mistake, word = MISTAKES[name]
    for part in ("pure_core", "nodes", "dev", "web", ".dev/types"):
        (tmp_path / part).mkdir(parents=True)
    link_to_checkout(tmp_path / ".dev" / "types" / "comfyui_pure", tmp_path)
    for settings in ("pyproject.toml", "deno.jsonc", "web/dom.js"):
        shutil.copyfile(ROOT / settings, tmp_path / settings)
    (tmp_path / file).write_text(mistake, encoding="utf-8")
    (stage,) = (each for each in lint_stages(Path(sys.executable), {}) if each.name == name)
    command = [str(each) for each in stage.command]
    env = merged(stage.env)
    result = subprocess.run(
        command, cwd=tmp_path, env=env, check=False, capture_output=True, text=True
    )
    said = result.stdout + result.stderr
    assert result.returncode != 0 and word in said, said


def test_one_failure_fails_the_whole_and_pytest_has_the_last_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stage(line: str) -> Stage:
        code = f"print({line!r}); raise SystemExit({int('failed' in line)})"
        pytest_or_not = ["pytest"] if "in 0." in line else []
        return Stage("a", [sys.executable, "-c", code, *pytest_or_not], {})

    lines = ["=== 2 passed in 0.1s ===", "All checks passed!", "1 failed in 0.2s"]
    outcomes = [run_stage(stage(line)) for line in lines]
    capsys.readouterr()
    assert report(outcomes) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [lines[0], lines[2]]


def test_stages_beside_each_other_share_the_cores_and_are_told_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = "import os; print(os.environ['OMP_NUM_THREADS'], 'threads')"
    stages = [Stage(name, [sys.executable, "-c", code], {}) for name in ("one", "other")]
    outcomes = run_beside(stages)
    assert [(each.stage.name, each.passed) for each in outcomes] == [("one", True), ("other", True)]
    threads = max(1, (os.cpu_count() or 1) // 2)
    assert {each.last_line for each in outcomes} == {f"{threads} threads"}
    printed = capsys.readouterr().out
    assert f"[one] {threads} threads" in printed and f"[other] {threads} threads" in printed
