"""The example workflows in API format, and the script that queues one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from testbed.comfy.examples import FILES, FOLDER, expected_prompt, load
from testbed.comfy.server import ComfyServer

API = FOLDER / "api"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_what_the_editor_queues(comfy_server: ComfyServer, file: Path) -> None:
    assert load(API / file.name) == expected_prompt(load(file), comfy_server.get("/object_info"))


def test_there_are_no_others() -> None:
    assert {file.name for file in API.glob("*.json")} == {file.name for file in FILES}


def script(folder: Path, workflow: dict[str, Any], server: str) -> subprocess.CompletedProcess[str]:
    """Run the script on a workflow, in a folder."""
    (folder / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    command = [sys.executable, API / "run.py", "workflow.json", server]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def workflow(checkpoint: Path) -> dict[str, Any]:
    """An example, with little work to do."""
    quick = {"latents": 1, "run_steps": 2, "neighbours": "Waffle\nFennel", "batch_size": 2}
    nodes = load(API / "Erase a concept.json")
    for node in nodes.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
        node["inputs"].update({k: v for k, v in quick.items() if k in node["inputs"]})
    return nodes


def erasing(workflow: dict[str, Any]) -> dict[str, Any]:
    """The inputs of its PURE Erase Concept."""
    (node,) = (each for each in workflow.values() if each["class_type"] == "PURE_EraseConcept")
    return node["inputs"]


def test_the_script_queues_one_and_fetches_its_pictures(
    comfy_server: ComfyServer, workflow: dict[str, Any], tmp_path: Path
) -> None:
    done = script(tmp_path, workflow, comfy_server.address)
    assert done.returncode == 0, done.stderr
    pictures = done.stdout.splitlines()
    assert len(pictures) == 4 == len(list(tmp_path.glob("*.png")))
    for name in pictures:
        assert Image.open(tmp_path / name).size == (64, 64)


def test_the_script_says_why_a_workflow_is_refused(
    comfy_server: ComfyServer, workflow: dict[str, Any], tmp_path: Path
) -> None:
    del erasing(workflow)["strength"]
    done = script(tmp_path, workflow, comfy_server.address)
    assert done.returncode == 1
    assert "refused the workflow" in done.stderr and "strength" in done.stderr


def test_the_script_says_why_a_run_failed(
    comfy_server: ComfyServer, workflow: dict[str, Any], tmp_path: Path
) -> None:
    erasing(workflow)["concept"] = " "
    done = script(tmp_path, workflow, comfy_server.address)
    assert done.returncode == 1
    assert "concept" in done.stderr and "Traceback" not in done.stderr
