"""The command line with files and folders that are not as they should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import pure_core
from pure_core.export import export_checkpoint
from pure_core.export.provenance import KEY
from pure_core.files.activations import save_activations
from pure_core.files.eraser import save_eraser
from pure_core.files.safetensors_file import SafetensorsFile
from tests.core.models import make_eraser
from tests.core.test_cli import run, without_root_s_privilege
from tests.core.test_hostile_files import averaged

ROOT = Path(pure_core.__file__).parents[1]
ESCAPE = "\x1b[2J"


@pytest.fixture
def dog(source, tmp_path) -> Path:
    path = tmp_path / "dog.safetensors"
    save_eraser(make_eraser(source), path)
    return path


def recorded(source: Path, path: Path, record: Any) -> Path:
    """A model whose metadata holds such a record."""
    save_file(load_file(source), path, metadata={KEY: json.dumps(record)})
    return path


@pytest.mark.parametrize("words", [["-I"], []])
def test_one_call_works_in_isolated_mode_from_anywhere(source, dog, tmp_path, words):
    """As in ComfyUI's portable build, whose Python looks for modules in its own folders alone."""
    plugin = tmp_path / "custom nodes" / "comfyui-pure"
    plugin.mkdir(parents=True)
    for name in ("pure.py", "pure_core"):
        (plugin / name).symlink_to(ROOT / name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def call(*more: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words, str(plugin / "pure.py"), *map(str, more)]
        return subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)

    done = call("apply", source, dog, "-o", "erased.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    shown = call("inspect", "erased.safetensors")
    assert shown.returncode == 0 and "a photo of a dog" in shown.stdout
    assert call("--help").stdout.startswith("usage: python pure.py")


def test_a_record_replaces_nothing_of_what_is_said_of_the_file(source, tmp_path):
    record = {
        "erasers": [{"file": "inner", "method": "pure"}],
        "file": "another.safetensors",
        "holds": "nothing",
        "tensors": 0,
        "megabytes": 0,
    }
    path = recorded(source, tmp_path / "m.safetensors", record)
    described = json.loads(run("inspect", "--json", path).stdout)
    assert (described["file"], described["holds"]) == (str(path), "model")
    assert described["tensors"] == len(load_file(source)) and described["megabytes"] > 1
    lines = run("inspect", path).stdout.splitlines()
    assert [line for line in lines if line.startswith("file:")] == [f"file: {path}"]
    assert "    file: inner" in lines


def test_nothing_in_a_file_steers_the_terminal(source, tmp_path):
    eraser = {
        f"key{ESCAPE}": "value",
        "settings": {f"name{ESCAPE}": f"value{ESCAPE}"},
        "forget": [{"prompt": f"dog{ESCAPE}", "concept": f"dog{ESCAPE}\nholds: eraser"}],
        "model": f"\x9b2J\u202e\x7f\U000e0001{ESCAPE}",
        "concepts": [f"dog{ESCAPE}"],
    }
    path = recorded(source, tmp_path / "m.safetensors", {"erasers": [eraser]})
    plain, as_json = run("inspect", path), run("inspect", "--json", path)
    for done in (plain, as_json):
        assert done.returncode == 0
        assert all(each.isprintable() for each in done.stdout.replace("\n", ""))
    assert json.loads(as_json.stdout)["erasers"] == [eraser]
    assert not any(line.startswith("holds: eraser") for line in plain.stdout.splitlines())
    broken = recorded(source, tmp_path / "b.safetensors", 3)
    tensors = {f"{ESCAPE}conv": each for each in load_file(broken).values()}
    save_file(dict([*tensors.items()][:1]), broken)
    failed = run("apply", broken, broken, "-o", tmp_path / "x.safetensors")
    assert failed.returncode == 1 and ESCAPE not in failed.stderr


@pytest.mark.parametrize(
    "record",
    [
        3,
        None,
        [],
        {"erasers": 3},
        {"erasers": [3]},
        {"erasers": {"a": 1}},
        {"erasers": [], "source": 3},
        {"erasers": [], "created": {"a": 1}},
        {"created": "2026-01-01"},
    ],
    ids=str,
)
def test_a_record_of_another_form_is_one_clear_line(source, dog, tmp_path, record):
    path = recorded(source, tmp_path / "m.safetensors", record)
    for words in (("inspect", path), ("apply", path, dog, "-o", tmp_path / "x.safetensors")):
        done = run(*words)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "is not of the expected form" in done.stderr


def test_what_an_eraser_s_record_holds_may_be_of_any_type(source, tmp_path):
    odd = {
        name: value
        for name in ("forget", "concepts", "settings", "model", "erasers")
        for value in ([None, 3, [1], {"prompt": 2}],)
    }
    path = recorded(source, tmp_path / "m.safetensors", {"erasers": [odd, {"forget": 3}]})
    done = run("inspect", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "forget: 4 prompts" in done.stdout and "eraser 2" in done.stdout


def test_prompts_are_shown_with_their_concepts(source, dog, make_activations, tmp_path):
    erased, retain = tmp_path / "e.safetensors", tmp_path / "retain.safetensors"
    export_checkpoint(source, erased, [make_eraser(source)])
    save_activations(make_activations(prompts=3, seed=4), retain)
    for path in (dog, erased):
        lines = [line.strip() for line in run("inspect", path).stdout.splitlines()]
        at = lines.index("forget: 2 prompts of a dog")
        assert lines[at + 1 : at + 3] == ["a dog", "a photo of a dog"]
        assert "retain: 1 prompts of a cat" in lines
    shown = run("inspect", retain).stdout
    assert "concepts: prompt 4 0" in shown and "\n  prompt 4 2\n" in shown


def test_averaged_weights_are_spoken_of(source, tmp_path):
    path = averaged(source, tmp_path / "ema.safetensors")
    save_eraser(make_eraser(path), eraser := tmp_path / "eraser.safetensors")
    target = tmp_path / "e.safetensors"
    done = run("apply", path, eraser, "-o", target)
    assert done.returncode == 0 and "averaged weights (EMA, " in done.stdout
    assert "ema weights: erased, too" in run("inspect", target).stdout


def test_bytes_after_the_last_tensor_are_spoken_of(source):
    with source.open("ab") as file:
        file.write(b"tail")
    assert "bytes after the last tensor: 4" in run("inspect", source).stdout


@pytest.mark.parametrize("command", ["apply", "lora", "diffusers", "merge"])
@pytest.mark.parametrize("folder", ["missing", "read-only", "a file"])
def test_the_folder_is_named(source, dog, tmp_path, command, folder):
    place = tmp_path / folder
    if folder == "read-only":
        place.mkdir(mode=0o500)
    elif folder == "a file":
        place.write_text("")
    before = sorted(tmp_path.rglob("*"))
    given = (dog, dog) if command == "merge" else (source, dog)
    target = place / "e.safetensors"
    done = run(command, *given, "-o", target, preexec_fn=without_root_s_privilege)
    said = {
        "missing": f"there is no folder '{place}'. Create it",
        "read-only": f"the folder '{place}' cannot be written to (Permission denied)",
        "a file": f"'{place}' is not a folder",
    }
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"'{target}' was not written: {said[folder]}" in done.stderr
    assert "Errno" not in done.stderr and sorted(tmp_path.rglob("*")) == before


def test_a_name_that_is_too_long_is_named(source, dog, tmp_path):
    done = run("apply", source, dog, "-o", tmp_path / f"{'n' * 300}.safetensors")
    assert done.returncode == 1 and "the name is too long" in done.stderr
    assert SafetensorsFile.open(source).trailing == 0
