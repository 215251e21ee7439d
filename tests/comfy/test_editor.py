"""The example workflows in ComfyUI's own editor, and what the editor shows of the plugin."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pytest
import torch
from comfyui_pure.pure_core.cli import describe
from PIL import Image

from dev.console import ROOT
from testbed.comfy.editor import Editor, finished, opened
from testbed.comfy.examples import (
    FILES,
    LARGE,
    OWN_TRAJECTORY,
    computed,
    essence,
    example,
    expected_prompt,
    input_names,
    load,
    options,
    upstream,
    values,
)
from testbed.comfy.server import ComfyServer
from testbed.comfy.small_wan import TEMPLATE
from testbed.world.judge import read


class Example(NamedTuple):
    """What a run of an example shows and writes."""

    pairs: int = 1
    """How many comparisons of before and after it shows."""

    summaries: int = 0
    """How often it shows the same in words."""

    writes: str = ""
    """Pattern of the file that it writes, below the server's folder."""

    shows: str = "Zephyra"
    """Which of the concepts that it erases its pictures are of."""

    spared: int = 0
    """In how many comparisons the concept may remain: methods that erase less."""

    chosen: frozenset[str] = frozenset()
    """Widgets of our nodes that it sets, beside `CHOSEN`."""

    in_one_place: bool = False
    """Whether its second comparison shows the concept elsewhere, where it stays."""

    runs_since: tuple[int, ...] = ()
    """The version from which on it is run, to save time; its nodes run in all elsewhere."""


# In this order the server remembers what one captures for the next.
EXAMPLES = {
    "Export an erased checkpoint": Example(writes="output/checkpoints/erased_*_.safetensors"),
    "Erase a concept": Example(summaries=1),
    "Save an eraser": Example(writes="models/erasers/Zephyra_*_.safetensors"),
    "Compare methods": Example(pairs=3, spared=2, chosen=frozenset({"method"})),
    "Erase a concept, step by step": Example(pairs=2, summaries=1),
    "Erase several concepts": Example(summaries=1, shows="Bramble"),
    "Use a saved eraser": Example(pairs=2, summaries=1),
    "Erase a concept only in one place": Example(
        pairs=2,
        summaries=1,
        chosen=frozenset({"replacement"}),
        in_one_place=True,
        runs_since=(0, 30),
    ),
    "Find the layers to erase in": Example(runs_since=(0, 30)),
}
EVERY = {
    **EXAMPLES,
    TEMPLATE: Example(),
    **dict.fromkeys(LARGE, Example(chosen=OWN_TRAJECTORY)),
}
"""Wan's is run in `test_editor_transformers.py`, large models' in `test_stock_workflows.py`."""

SAVED = "Zephyra_00001_.safetensors"
"""The eraser that one example writes and another reads."""

HELP = sorted((ROOT / "web" / "docs").glob("*.md"))
NODES = (
    "PURE_EraseConcept",
    "PURE_Concept",
    "PURE_Capture",
    "PURE_Fit",
    "PURE_FitText",
    "PURE_Patch",
    "PURE_LayerSweep",
    "PURE_CombineErasers",
    "PURE_ConcatenateActivations",
    "PURE_SaveEraser",
    "PURE_LoadEraser",
    "PURE_SaveActivations",
    "PURE_LoadActivations",
    "PURE_SaveCheckpoint",
    "PURE_SaveLoRA",
    "PURE_SaveDiffusers",
    "PURE_Compare",
)
CHOSEN = {"concept", "neighbours", "kind", "filename_prefix", "ckpt_name", "eraser_name"}
"""Widgets of our nodes that an example sets; all others keep their defaults."""

PHRASINGS = "{}\na picture of {}"
QUICK = {
    "PURE_Concept": {"templates": PHRASINGS},
    "PURE_Capture": {"latents": 1},
    "PURE_EraseConcept": {"templates": PHRASINGS, "latents": 1},
    "PURE_LayerSweep": {"by": "part", "prompts": 1, "steps": 8},
    "KSampler": {"steps": 10},
}
"""Type of node -> widgets: a part of the work is enough here."""

BARE = ("CheckpointLoaderSimple", "UNETLoader", "ModelSamplingSD3", "ModelSamplingAuraFlow")
"""Nodes that give a model that is not erased."""

REPORTING = ("PURE_EraseConcept", "PURE_Fit")
"""Nodes with a panel that shows what was removed and kept."""

each_example = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@pytest.fixture(scope="module")
def saved_eraser(comfy_server: ComfyServer, checkpoint: Path) -> Iterator[Path]:
    """The eraser of one example where another looks for it, for as long as these tests run."""
    prompt = expected_prompt(example("Save an eraser"), comfy_server.get("/object_info"))
    (saving,) = (key for key, node in prompt.items() if node["class_type"] == "PURE_SaveEraser")
    needed = upstream(prompt, saving)
    for node in needed.values():
        node["inputs"].update(QUICK.get(node["class_type"], {}))
    # Not the example's own prefix, so that it writes when it is run.
    prompt[saving]["inputs"]["filename_prefix"] = "of-the-tests"
    eraser = comfy_server.base / "models" / "erasers" / SAVED
    with put_aside(eraser):
        run = comfy_server.run(needed)
        assert run.error is None, run.error
        Path(run.outputs[saving]["text"][0]).rename(eraser)
        yield eraser
        eraser.unlink()


@contextmanager
def put_aside(path: Path) -> Iterator[None]:
    """Give a person's own file another name meanwhile."""
    aside = path.with_name(f"{path.name}.aside")
    assert not aside.exists(), f"left by a run that was killed, name it {path.name} again: {aside}"
    there = path.exists()
    if there:
        path.rename(aside)
    try:
        yield
    finally:
        if there:
            aside.rename(path)


@pytest.fixture(scope="module")  # an open playwright keeps others from running an event loop
def editor(chromium: str, comfy_server: ComfyServer, saved_eraser: Path) -> Iterator[Editor]:
    """The editor in a browser, opened once."""
    with opened(comfy_server.address, chromium, NODES[0]) as editor:
        yield editor


@pytest.fixture(scope="session")
def module(comfy_server: ComfyServer) -> str:
    """The plugin's folder name, under which the server offers its files."""
    return comfy_server.node(NODES[0])["python_module"].rpartition(".")[2]


@pytest.fixture(scope="session")
def definitions(comfy_server: ComfyServer) -> dict[str, Any]:
    """Every node's definition, as the editor gets it."""
    return comfy_server.get("/object_info")


def test_the_examples_are_there() -> None:
    assert [file.stem for file in FILES] == sorted(EVERY)


def test_the_server_offers_the_examples(comfy_server: ComfyServer, module: str) -> None:
    offered = comfy_server.get("/workflow_templates")[module]
    assert sorted(offered) == [file.stem for file in FILES]
    for file in FILES:
        address = f"/api/workflow_templates/{module}/{quote(file.stem)}"
        assert comfy_server.get(address + ".json") == load(file)
        with Image.open(io.BytesIO(comfy_server.read(address + ".jpg"))) as thumbnail:
            assert thumbnail.format == "JPEG" and min(thumbnail.size) >= 256


@pytest.mark.parametrize("name", NODES)
def test_help_is_served_and_names_everything(
    comfy_server: ComfyServer, module: str, definitions: dict[str, Any], name: str
) -> None:
    text = comfy_server.read(f"/extensions/{module}/docs/{name}.md").decode()
    definition = definitions[name]
    assert text.startswith(f"# {definition['display_name']}\n")
    for socket in (*input_names(definition), *definition["output_name"]):
        assert f"`{socket}`" in text


def test_the_server_has_no_node_without_help(definitions: dict[str, Any]) -> None:
    ours = sorted(name for name in definitions if name.startswith("PURE_"))
    assert ours == sorted(NODES) == [file.stem for file in HELP]


def test_one_example_writes_the_eraser_that_another_reads(definitions: dict[str, Any]) -> None:
    def value(name: str, node_type: str, widget: str) -> Any:
        (node,) = (node for node in example(name)["nodes"] if node["type"] == node_type)
        return values(node, definitions[node_type])[widget]

    written = value("Save an eraser", "PURE_SaveEraser", "filename_prefix")
    assert f"{written}_00001_.safetensors" == SAVED
    assert value("Use a saved eraser", "PURE_LoadEraser", "eraser_name") == SAVED


@each_example
def test_an_example_keeps_the_defaults(
    comfy_server: ComfyServer, saved_eraser: Path, file: Path
) -> None:
    for node in load(file)["nodes"]:
        if node["type"] in NODES:
            definition = comfy_server.node(node["type"])
            linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
            for name, value in values(node, definition).items():
                kind, extra = options(definition, name)
                if name not in CHOSEN | EVERY[file.stem].chosen | linked:
                    assert value == extra["default"], (node["type"], name)
                if kind == "COMBO":
                    assert value in extra["options"], (node["type"], name)


@each_example
def test_before_and_after_differ_in_the_model_alone(
    file: Path, definitions: dict[str, Any]
) -> None:
    prompt = expected_prompt(load(file), definitions)

    def sampled(comparison: dict[str, Any], side: str) -> dict[str, Any]:
        decoded = prompt[comparison["inputs"][side][0]]
        return dict(prompt[decoded["inputs"]["samples"][0]]["inputs"])

    comparisons = [node for node in prompt.values() if node["class_type"] == "PURE_Compare"]
    assert len(comparisons) == EVERY[file.stem].pairs
    for comparison in comparisons:
        before, after = sampled(comparison, "before"), sampled(comparison, "after")
        loaded = prompt[before.pop("model")[0]]["class_type"]
        assert loaded in BARE
        assert prompt[after.pop("model")[0]]["class_type"] in ("PURE_Patch", "PURE_EraseConcept")
        assert before == after
        assert isinstance(before["seed"], list)  # one widget for both


@each_example
def test_an_example_opens_whole(
    editor: Editor, comfy_server: ComfyServer, module: str, definitions: dict[str, Any], file: Path
) -> None:
    workflow = comfy_server.get(f"/api/workflow_templates/{module}/{quote(file.name)}")
    editor.open(workflow)
    editor.screenshot(comfy_server.base / "screenshots" / f"{file.stem}.png")
    assert editor.unknown_nodes() == []
    saved = editor.saved()
    assert essence(saved) == essence(workflow)

    prompt = editor.prompt()
    expected = expected_prompt(workflow, definitions)
    assert prompt.keys() == expected.keys()
    for node, content in expected.items():
        assert prompt[node]["class_type"] == content["class_type"]
        # Stock nodes may add what only the editor reads.
        assert prompt[node]["inputs"].items() >= content["inputs"].items()

    editor.open(saved)
    assert essence(editor.saved()) == essence(saved)
    assert editor.prompt() == prompt
    assert editor.errors == []


@pytest.mark.parametrize("name", ["Erase a concept", "Erase a concept, step by step"])
def test_a_workflow_from_before_the_replacement_opens_and_queues_as_then(
    editor: Editor, definitions: dict[str, Any], name: str
) -> None:
    """Widgets are saved by place: those that came later take their defaults."""
    workflow = example(name)
    prompt = expected_prompt(workflow, definitions)
    for node in workflow["nodes"]:
        if "replacement" in {slot["name"] for slot in node["inputs"]}:
            node["inputs"] = [each for each in node["inputs"] if each["name"] != "replacement"]
            node["outputs"] = [each for each in node["outputs"] if each["name"] != "replacement"]
            if node["type"] != "PURE_Fit":  # there it is a socket, not a widget
                assert node["widgets_values"].pop() == ""
    assert workflow != example(name)
    editor.open(workflow)
    found = editor.prompt()
    assert found.keys() == prompt.keys()
    for node, content in prompt.items():
        given = {key: value for key, value in content["inputs"].items() if key != "replacement"}
        assert found[node]["inputs"].items() >= given.items()
        assert found[node]["inputs"].get("replacement", "") == ""
    assert editor.errors == []


@each_example
def test_an_example_is_laid_out_without_overlap(editor: Editor, file: Path) -> None:
    workflow = load(file)
    editor.open(workflow)
    nodes = list(editor.bounds().values())
    for one, other in itertools.combinations(nodes, 2):
        assert not overlap(one, other), (one, other)
    for group in (group["bounding"] for group in workflow["groups"]):
        for node in nodes:
            assert inside(node, group) or not overlap(node, group), (node, group)


def overlap(one: list[float], other: list[float]) -> bool:
    """Whether two rectangles (left, top, width, height) share any area."""
    return all(
        one[axis] < other[axis] + other[axis + 2] and other[axis] < one[axis] + one[axis + 2]
        for axis in (0, 1)
    )


def inside(one: list[float], other: list[float]) -> bool:
    """Whether the first rectangle lies in the second."""
    return all(
        other[axis] <= one[axis] and one[axis] + one[axis + 2] <= other[axis] + other[axis + 2]
        for axis in (0, 1)
    )


class Ran(NamedTuple):
    """What came of a run of an example."""

    example: Example
    before: list[np.ndarray]
    """Of every comparison, the pictures of the loaded model (b, height, width, 3) uint8."""

    after: list[np.ndarray]
    texts: list[str]
    """What is shown in words."""

    files: list[Path]
    """What was written."""


@pytest.fixture(scope="module", params=EXAMPLES)
def ran(
    request: pytest.FixtureRequest,
    editor: Editor,
    comfy_server: ComfyServer,
    checkpoint: Path,
    comfy_version: tuple[int, ...],
) -> Iterator[Ran]:
    """An example after Run, saved and run again, its picture dropped on the page.

    What it has written is removed in the end.
    """
    if comfy_version < EXAMPLES[request.param].runs_since:
        pytest.skip("run in newer versions alone")
    workflow = example(request.param)
    editor.open(workflow)
    for node in workflow["nodes"]:
        for name, value in QUICK.get(node["type"], {}).items():
            editor.set_widget(node["id"], name, value)
        if node.get("title", "").startswith("Seed"):
            # Else the server takes another example's pictures, with that one's workflow in them.
            editor.set_widget(node["id"], "value", list(EXAMPLES).index(request.param))
    outputs = finished(editor, comfy_server, editor.queue())

    def found(key: str) -> list[Any]:
        nodes = (outputs.get(str(node["id"]), {}) for node in computed(workflow))
        return [output[key] for output in nodes if key in output]

    def texts(node_type: str) -> list[str]:
        shown = (node for node in computed(workflow) if node["type"].startswith(node_type))
        return [outputs[str(node["id"])]["text"][0] for node in shown]

    files = [Path(path) for path in texts("PURE_Save")]
    try:
        assert_panels(editor, workflow)
        editor.screenshot(comfy_server.base / "screenshots" / f"{request.param}-run.png")
        assert_comes_back(editor, comfy_server, found("pure_after")[0][0])
        assert editor.errors == []
        yield Ran(
            EXAMPLES[request.param],
            [comfy_server.pictures(pictures) for pictures in found("pure_before")],
            [comfy_server.pictures(pictures) for pictures in found("pure_after")],
            texts("PreviewAny"),
            files,
        )
    finally:
        for file in files:
            file.unlink()


def assert_panels(editor: Editor, workflow: dict[str, Any]) -> None:
    """Every comparison shows its pictures, every fit the concept and its layers."""
    for node in computed(workflow):
        if node["type"] == "PURE_Compare":
            editor.wait_for_pictures(editor.panel(node["id"], "pure_compare"))
        if node["type"] in REPORTING:
            panel = editor.panel(node["id"], "pure_report")
            editor.wait_for_bars(panel)
            assert len(panel.query_selector_all(".pure-bar")) == 7
            assert "Zephyra" in panel.text_content()


def assert_comes_back(editor: Editor, server: ComfyServer, picture: dict[str, str]) -> None:
    """What was saved, loaded and run again is the same; so is what a picture brings along."""
    saved = editor.saved()
    editor.open(saved)
    finished(editor, server, editor.queue())
    assert_panels(editor, saved)

    editor.open(example("Use a saved eraser"))
    editor.drop(picture["filename"], server.image(picture))
    editor.wait_for_nodes(len(saved["nodes"]))
    assert essence(editor.saved()) == essence(saved)


def test_running_an_example_shows_pictures_and_report(ran: Ran) -> None:
    summaries = [text for text in ran.texts if text.startswith("Erases ")]
    assert len(summaries) == ran.example.summaries
    assert len(ran.before) == len(ran.after) == ran.example.pairs
    for one, other in zip(ran.before, ran.after, strict=True):
        assert one.shape == other.shape == (4, 64, 64, 3)
        assert (one != other).any(axis=(1, 2, 3)).all()
        assert len(np.unique(one.reshape(4, -1), axis=0)) == 4


def test_an_example_writes_its_file_and_shows_the_path(ran: Ran, comfy_server: ComfyServer) -> None:
    assert len(ran.files) == bool(ran.example.writes)
    for file in ran.files:
        assert file.relative_to(comfy_server.base.resolve()).match(ran.example.writes)
        assert ran.texts == [str(file)]
        described = describe(file)
        (eraser,) = described.get("erasers", [described])
        assert list(eraser["concepts"]) == ["Zephyra"]


def test_an_example_erases_its_concept_and_keeps_the_neighbour(ran: Ran) -> None:
    if ran.example.in_one_place:
        assert all(how_many(before, ran.example.shows) >= 3 for before in ran.before)
        here, elsewhere = (how_many(after, ran.example.shows) for after in ran.after)
        assert here <= 1 and elsewhere >= 3
        return
    gone = 0
    for before, after in zip(ran.before, ran.after, strict=True):
        if how_many(before, "Waffle") >= 3:
            assert how_many(after, "Waffle") >= 3
        else:
            assert how_many(before, ran.example.shows) >= 3
            gone += how_many(after, ran.example.shows) <= 1
    neighbours = sum(how_many(before, "Waffle") >= 3 for before in ran.before)
    assert neighbours == (ran.example.pairs == 2)
    assert gone >= ran.example.pairs - neighbours - ran.example.spared


def how_many(batch: np.ndarray, character: str) -> int:
    """In how many pictures the judge recognises the character."""
    readings = read(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255)
    return sum(reading.shows("character", character) for reading in readings)
