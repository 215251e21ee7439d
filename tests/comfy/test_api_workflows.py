"""The example workflows in API format, and the script that queues one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dev.server import ComfyServer
from tests.comfy.examples import FILES, FOLDER, expected_prompt, load

API = FOLDER / "api"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_what_the_editor_queues(comfy_server: ComfyServer, file: Path) -> None:
    assert load(API / file.name) == expected_prompt(load(file), comfy_server.get("/object_info"))


def test_there_are_no_others() -> None:
    assert {file.name for file in API.glob("*.json")} == {file.name for file in FILES}


def test_the_script_queues_one_and_fetches_its_pictures(
    comfy_server: ComfyServer, checkpoint: Path, tmp_path: Path
) -> None:
    workflow = load(API / "Erase a concept.json")
    for node in workflow.values():
        quick = {"latents": 1, "run_steps": 2, "batch_size": 2}
        if node["class_type"] == "KSampler":
            quick["steps"] = 2
        node["inputs"].update({k: v for k, v in quick.items() if k in node["inputs"]})
    (tmp_path / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    command = [sys.executable, API / "run.py", "workflow.json", comfy_server.address]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    status, *pictures = done.stdout.splitlines()
    assert status == "success"
    assert len(pictures) == 4 == len(list(tmp_path.glob("*.png")))
    for name in pictures:
        assert Image.open(tmp_path / name).size == (64, 64)
