"""The command line, run as a person runs it."""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pure_core
from pure_core.combine import combine
from pure_core.files.activations import save_activations
from pure_core.files.eraser import load_eraser, save_eraser
from pure_core.fitting import fit
from tests.core.models import expected, make_eraser

ROOT = Path(pure_core.__file__).parents[1]


def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pure_core", *map(str, words)]
    return subprocess.run(  # type: ignore[call-overload]
        command, cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


@pytest.fixture
def dog(source, tmp_path) -> Path:
    path = tmp_path / "dog.safetensors"
    save_eraser(make_eraser(source), path)
    return path


def test_apply_lora_diffusers_and_inspect(source, dog, tmp_path):
    erasers = [load_eraser(dog).applied(0.8, "values")]
    options = ("--strength", 0.8, "--edit", "values", "-o")
    erased, lora, folder = tmp_path / "e.safetensors", tmp_path / "l.safetensors", tmp_path / "d"
    for command, target in (("apply", erased), ("lora", lora), ("diffusers", folder)):
        done = run(command, source, dog, *options, target)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"wrote {target} (")
    for name, weight in expected(source, erasers).items():
        assert torch.allclose(load_file(erased)[name].double(), weight, atol=1e-6)
    shown = run("inspect", erased, lora, dog, folder / "diffusion_pytorch_model.safetensors")
    assert shown.returncode == 0
    assert shown.stdout.count("a photo of a dog") == 4
    assert shown.stdout.count("strength: 0.8") == 3
    assert "holds: LoRA" in shown.stdout and "ranks: 2 to 4" in shown.stdout
    lines = run("inspect", "--json", erased, source).stdout.splitlines()
    one, plain = map(json.loads, lines)
    assert one["erasers"][0]["fingerprint"] == load_eraser(dog).fingerprint
    assert plain["erasers"] == []


def test_merge_is_one_after_the_other(source, dog, tmp_path):
    cat, both = tmp_path / "cat.safetensors", tmp_path / "both.safetensors"
    save_eraser(make_eraser(source, seed=5), cat)
    assert run("merge", dog, cat, "-o", both).returncode == 0
    erasers = [load_eraser(dog), load_eraser(cat)]
    in_turn = expected(source, erasers)
    for name, weight in expected(source, [load_eraser(both)]).items():
        assert torch.allclose(weight, in_turn[name], atol=1e-6)


def test_merge_joint_against_saved_activations(make_activations, tmp_path):
    retain, out = tmp_path / "retain.safetensors", tmp_path / "joint.safetensors"
    neighbours = make_activations(prompts=6, seed=9)
    save_activations(neighbours, retain)
    erasers = [fit("ridge", make_activations(seed=seed), neighbours) for seed in (1, 2)]
    files = [tmp_path / f"{number}.safetensors" for number in (1, 2)]
    for eraser, file in zip(erasers, files, strict=True):
        save_eraser(eraser, file)
    alone = run("merge", *files, "--mode", "joint", "-o", out)
    assert (
        alone.returncode == 1 and "give them with --retain, or combine in sequence" in alone.stderr
    )
    joint = ("merge", *files, "--mode", "joint", "--retain", retain)
    assert run(*joint, "-o", out).returncode == 0
    assert load_eraser(out).fingerprint == combine(erasers, "joint", neighbours).fingerprint
    small = tmp_path / "small.safetensors"
    assert run(*joint, "--max-rank", 2, "-o", small).returncode == 0
    assert set(load_eraser(small).ranks.values()) == {2}
    lines = run("inspect", "--json", out, retain).stdout.splitlines()
    eraser, activations = (json.loads(line) for line in lines)
    assert eraser["concepts"] == ["prompt 1 0", "prompt 2 0"]
    assert eraser["trajectory"]["steps"] == activations["trajectory"]["steps"] == 20
    assert (activations["holds"], len(activations["prompts"])) == ("activations", 6)


def test_one_strength_for_each_eraser(source, dog, tmp_path):
    target = tmp_path / "e.safetensors"
    done = run("apply", source, *(3 * [dog]), "--strength", 1, "--strength", 0.5, "-o", target)
    assert done.returncode == 1
    assert (
        "--strength: expected it once, or 3 times (for each eraser), got it 2 times" in done.stderr
    )
    options = ("-o", target, "--strength", 1, "--strength", 0.5)
    assert run("apply", *options, source, dog, dog).returncode == 0


def test_a_user_s_mistake_is_one_line_and_no_traceback(source, dog, tmp_path):
    cases = (
        (("inspect", tmp_path / "none"), "found none"),
        (("apply", dog, dog, "-o", tmp_path / "x.safetensors"), "Expected a model that reads text"),
        (("apply", source, source, "-o", tmp_path / "x.safetensors"), "Expected an eraser"),
        (("apply", source, dog, "-o", source), "exists already"),
        (("lora", source, dog, "--strength", 0, "-o", tmp_path / "x.safetensors"), "no LoRA"),
    )
    for words, message in cases:
        done = run(*words)
        assert done.returncode == 1 and done.stdout == "", words
        assert done.stderr.startswith("error: ") and message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x.safetensors").exists()
    assert run("apply", source).returncode == 2


def test_a_fine_tune_needs_the_option_that_the_message_names(source, dog, tmp_path):
    tuned = {name: each * 1.05 for name, each in load_file(source).items()}
    save_file(tuned, source)
    target = tmp_path / "x.safetensors"
    refused = run("apply", source, dog, "-o", target)
    assert refused.returncode == 1 and "(--any-source)" in refused.stderr
    assert run("apply", source, dog, "--any-source", "-o", target).returncode == 0


def test_help_names_every_command(source):
    text = run("--help").stdout
    for command in ("inspect", "apply", "lora", "diffusers", "merge"):
        assert command in text
        assert run(command, "--help").returncode == 0


@pytest.fixture
def large(source, tmp_path) -> Path:
    """The U-Net beside so much else that writing it takes a while."""
    path = tmp_path / "large.safetensors"
    rest = {f"first_stage_model.{i}": torch.zeros(2**25) for i in range(4)}
    prefixed = {f"model.diffusion_model.{k}": v for k, v in load_file(source).items()}
    save_file({**prefixed, **rest}, path)
    return path


def test_a_full_disk_leaves_nothing_behind(large, dog, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, 50_000_000))

    done = run("apply", large, dog, "-o", tmp_path / "e.safetensors", preexec_fn=fill)
    assert done.returncode == 1 and "was not written" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def without_root_s_privilege() -> None:
    """Let permissions count for this process even if root runs the tests."""
    drop_bounding_capability, dac_override = 24, 1
    ctypes.CDLL(None).prctl(drop_bounding_capability, dac_override, 0, 0, 0)


@pytest.mark.parametrize("command", ["apply", "lora", "diffusers"])
def test_a_read_only_folder_is_named(source, dog, tmp_path, command):
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    target = folder / "e.safetensors"
    done = run(command, source, dog, "-o", target, preexec_fn=without_root_s_privilege)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"'{target}' was not written: the folder '{folder}' cannot be written" in done.stderr
    assert not list(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_end_in_the_middle_leaves_no_target(large, dog, tmp_path, number):
    size, target = large.stat().st_size, tmp_path / "e.safetensors"
    words = ["apply", str(large), str(dog), "-o", str(target)]
    process = subprocess.Popen([sys.executable, "-m", "pure_core", *words], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not (left := list(tmp_path.glob(".e.safetensors.*.tmp"))):
            assert process.poll() is None and time.monotonic() < deadline
        process.send_signal(number)
        status = process.wait(timeout=60)
    finally:
        process.kill()
    assert status == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    assert not target.exists() and large.stat().st_size == size
    assert left[0].exists() == (number == signal.SIGKILL)


def test_an_eraser_in_text_space(source, tmp_path):
    eraser, target = tmp_path / "text.safetensors", tmp_path / "e.safetensors"
    save_eraser(make_eraser(source, space="text"), eraser)
    done = run("apply", source, eraser, "-o", target)
    assert (done.returncode, done.stderr) == (0, "")
    for name, weight in expected(source, [load_eraser(eraser)]).items():
        assert torch.allclose(load_file(target)[name].double(), weight, atol=1e-6)
    shown = run("inspect", "--json", eraser, target).stdout.splitlines()
    one, other = map(json.loads, shown)
    assert one["space"] == other["erasers"][0]["space"] == "text"
    merged = tmp_path / "m.safetensors"
    assert run("merge", eraser, eraser, "-o", merged).returncode == 0
    assert load_eraser(merged).space == "text"
