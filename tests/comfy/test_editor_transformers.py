"""Transformers in ComfyUI's own editor: the small Wan and SD3 of real pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from comfyui_pure.pure_core.cli import describe

from testbed.comfy.editor import Editor, finished, opened
from testbed.comfy.examples import Workflow, essence, example
from testbed.comfy.server import ComfyServer
from testbed.comfy.small_wan import LOADERS, SETTINGS, SIZE, TEMPLATE
from testbed.pictures.expand import NAMES
from testbed.pictures.judge import read
from testbed.pictures.narrow import CFG
from testbed.pictures.sd3 import DEPTH
from testbed.pictures.wan import LAYERS as WAN_LAYERS

CONCEPT = "fox"
QUICK = {"PURE_EraseConcept": {"latents": 1, "templates": "{}\na picture of {}"}}
"""A part of the work is enough here."""


class Pictures(NamedTuple):
    """What a run shows, each (4, 64, 64, 3) uint8."""

    before: np.ndarray
    after: np.ndarray


class Ran(NamedTuple):
    """The template after a run."""

    saved: Workflow
    """As the editor saved it."""

    pictures: Pictures
    summary: str
    eraser: Path


@pytest.fixture(scope="module")
def editor(chromium: str, comfy_server: ComfyServer) -> Iterator[Editor]:
    """The editor in a browser, opened once."""
    with opened(comfy_server.address, chromium, "PURE_EraseConcept") as editor:
        yield editor


def by_type(workflow: Workflow, node_type: str) -> list[int]:
    """The nodes of a type, from left to right."""
    found = [node for node in workflow["nodes"] if node["type"] == node_type]
    return [node["id"] for node in sorted(found, key=lambda node: node["pos"][0])]


def only(workflow: Workflow, node_type: str) -> int:
    """The one node of a type."""
    (node,) = by_type(workflow, node_type)
    return node


def turn(editor: Editor, workflow: Workflow, settings: dict[str, dict[str, Any]]) -> None:
    """Set widgets on all nodes of some types."""
    for node_type, widgets in settings.items():
        for node in by_type(workflow, node_type):
            for name, value in widgets.items():
                editor.choose(node, name, value)


def run(
    editor: Editor, server: ComfyServer, layers: int = WAN_LAYERS
) -> tuple[Pictures, dict[str, Any]]:
    """Press Run and wait for pictures and bars; what is shown, and the outputs of all nodes."""
    outputs = finished(editor, server, editor.queue())
    workflow = editor.saved()
    comparison = only(workflow, "PURE_Compare")
    editor.wait_for_pictures(editor.panel(comparison, "pure_compare"))
    for node in by_type(workflow, "PURE_EraseConcept"):
        panel = editor.panel(node, "pure_report")
        editor.wait_for_bars(panel)
        assert len(panel.query_selector_all(".pure-bar")) == layers
        assert CONCEPT in panel.text_content()
    shown = outputs[str(comparison)]
    sides = (server.pictures(shown[side]) for side in ("pure_before", "pure_after"))
    return Pictures(*sides), outputs


def screenshot(editor: Editor, server: ComfyServer, name: str) -> None:
    """All nodes, and the comparison by itself."""
    folder = server.base / "screenshots"
    editor.look_at()
    editor.screenshot(folder / f"{name}.png")
    editor.look_at(only(editor.saved(), "PURE_Compare"))
    editor.screenshot(folder / f"{name}, comparison.png")


@pytest.fixture(scope="module")
def ran(editor: Editor, comfy_server: ComfyServer) -> Iterator[Ran]:
    """The template after Run with the small model chosen, and the eraser that it saved."""
    workflow = example(TEMPLATE)
    editor.open(workflow)
    turn(editor, workflow, SETTINGS | QUICK)
    saving, summary = only(workflow, "PURE_SaveEraser"), only(workflow, "PreviewAny")
    editor.switch(saving, on=True)
    pictures, outputs = run(editor, comfy_server)
    eraser = Path(outputs[str(saving)]["text"][0])
    try:
        screenshot(editor, comfy_server, f"{TEMPLATE}, run")
        assert editor.errors == []
        text = outputs[str(summary)]["text"][0]
        yield Ran(editor.saved(), pictures, text, eraser)
    finally:
        eraser.unlink()


def erase_the_fox(
    editor: Editor, server: ComfyServer, workflow: Workflow, layers: int = WAN_LAYERS
) -> tuple[Pictures, dict[str, Any]]:
    """Run *Erase a concept* with another concept than the small model's."""
    erasing = {"concept": CONCEPT, "neighbours": "wolf\ndog", "kind": "object"}
    turn(editor, workflow, {"PURE_EraseConcept": erasing})
    prompt, _ = sorted(by_type(workflow, "CLIPTextEncode"))
    editor.choose(prompt, "text", f"a {CONCEPT} on a meadow")
    return run(editor, server, layers)


def assert_differ(pictures: Pictures) -> None:
    """Four pictures on each side, and none as before."""
    before, after = pictures
    assert before.shape == after.shape == (4, SIZE, SIZE, 3)
    assert (before != after).any(axis=(1, 2, 3)).all()
    assert len(np.unique(before.reshape(4, -1), axis=0)) == 4


def how_many(batch: np.ndarray, concept: str) -> int:
    """In how many pictures the judge recognises the concept."""
    readings = read(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255)
    return sum(reading.shows("object", concept) for reading in readings)


def test_the_template_runs(ran: Ran) -> None:
    assert_differ(ran.pictures)
    assert ran.summary.startswith("Erases ")
    assert list(describe(ran.eraser)["concepts"]) == [CONCEPT]


def test_it_erases_the_concept(ran: Ran) -> None:
    assert how_many(ran.pictures.before, CONCEPT) >= 3
    assert how_many(ran.pictures.after, CONCEPT) <= 1


def test_saved_and_run_again_it_shows_the_same(
    ran: Ran, editor: Editor, comfy_server: ComfyServer
) -> None:
    editor.open(ran.saved)
    assert essence(editor.saved()) == essence(ran.saved)
    editor.switch(only(ran.saved, "PURE_SaveEraser"), on=False)
    comfy_server.free()  # else what it remembers is shown
    again, _ = run(editor, comfy_server)
    assert np.array_equal(again.before, ran.pictures.before)
    assert np.array_equal(again.after, ran.pictures.after)


def test_the_saved_eraser_in_its_place_shows_the_same(
    ran: Ran, editor: Editor, comfy_server: ComfyServer
) -> None:
    editor.open(ran.saved)
    for node_type in ("PURE_SaveEraser", "PreviewAny", "PURE_EraseConcept"):
        editor.remove(only(ran.saved, node_type))
    loader, patch = editor.add("PURE_LoadEraser", (960, 0)), editor.add("PURE_Patch", (960, 200))
    editor.choose(loader, "eraser_name", ran.eraser.name)
    editor.connect(loader, 0, patch, "eraser")
    editor.connect(only(ran.saved, "ModelSamplingSD3"), 0, patch, "model")
    _, after = by_type(ran.saved, "KSampler")
    editor.connect(patch, 0, after, "model")
    pictures, _ = run(editor, comfy_server)
    screenshot(editor, comfy_server, "A saved eraser for Wan, run")
    assert np.array_equal(pictures.before, ran.pictures.before)
    assert np.array_equal(pictures.after, ran.pictures.after)
    assert editor.errors == []


def test_erase_a_concept_takes_the_loaders_of_a_transformer(
    editor: Editor, comfy_server: ComfyServer
) -> None:
    """The checkpoint loader exchanged for three loaders, nothing else of the layout changed."""
    workflow = example("Erase a concept")
    editor.open(workflow)
    checkpoint = only(workflow, "CheckpointLoaderSimple")
    for output, (node_type, widgets) in enumerate(LOADERS.items()):
        loader = editor.add(node_type, (60, 600 + 160 * output))
        for name, value in widgets.items():
            editor.choose(loader, name, value)
        for _, source, slot, target, place, _ in workflow["links"]:
            if (source, slot) == (checkpoint, output):
                (node,) = (each for each in workflow["nodes"] if each["id"] == target)
                editor.connect(loader, 0, target, node["inputs"][place]["name"])
    editor.remove(checkpoint)
    turn(editor, workflow, QUICK)
    pictures, outputs = erase_the_fox(editor, comfy_server, workflow)
    screenshot(editor, comfy_server, "Erase a concept, loaders exchanged, run")
    assert_differ(pictures)
    assert outputs[str(only(workflow, "PreviewAny"))]["text"][0].startswith("Erases ")
    assert editor.errors == []


def test_the_stock_workflow_of_sd3(editor: Editor, comfy_server: ComfyServer) -> None:
    """Its checkpoint and its empty latent in the layout of *Erase a concept*."""
    workflow = example("Erase a concept")
    editor.open(workflow)
    turn(editor, workflow, QUICK)
    turn(editor, workflow, {"CheckpointLoaderSimple": {"ckpt_name": NAMES["sd3"]}})
    sampling = {"cfg": CFG, "scheduler": "simple"}
    turn(editor, workflow, {"KSampler": sampling, "PURE_EraseConcept": sampling})
    usual = only(workflow, "EmptyLatentImage")
    own = editor.add("EmptySD3LatentImage", (1380, 410))
    for name in ("width", "height"):
        editor.choose(own, name, SIZE)
    editor.choose(own, "batch_size", 4)
    for sampler in by_type(workflow, "KSampler"):
        editor.connect(own, 0, sampler, "latent_image")
    editor.remove(usual)
    pictures, outputs = erase_the_fox(editor, comfy_server, workflow, DEPTH)
    screenshot(editor, comfy_server, "Erase a concept from SD3, run")
    assert_differ(pictures)
    assert how_many(pictures.before, CONCEPT) >= 3
    assert how_many(pictures.after, CONCEPT) <= 1
    assert outputs[str(only(workflow, "PreviewAny"))]["text"][0].startswith("Erases ")
    assert editor.errors == []
