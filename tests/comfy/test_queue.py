"""Queued in a running ComfyUI server, as a person at the editor does it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from testbed.comfy.server import ComfyServer, Message, Prompt, Run, ServerError
from testbed.comfy.stock import PIXELS, QUICK, QUICK_ERASING

Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def picture(name: str, model: list[Any], seed: int = 5) -> Graph:
    """KSampler, VAEDecode and PreviewImage on a model; the picture is at node `name`."""
    sampler = node(
        "KSampler",
        model=model,
        positive=["prompt", 0],
        negative=["empty", 0],
        latent_image=["latent", 0],
        seed=seed,
        steps=2,
        cfg=4.0,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    )
    return {
        f"{name} sampler": sampler,
        f"{name} pixels": node("VAEDecode", samples=[f"{name} sampler", 0], vae=["loader", 2]),
        name: node("PreviewImage", images=[f"{name} pixels", 0]),
    }


def base(checkpoint: Path) -> Graph:
    return {
        "loader": node("CheckpointLoaderSimple", ckpt_name=checkpoint.name),
        "prompt": node("CLIPTextEncode", clip=["loader", 1], text="a ball"),
        "empty": node("CLIPTextEncode", clip=["loader", 1], text=""),
        "latent": node("EmptyLatentImage", width=PIXELS, height=PIXELS, batch_size=1),
    }


def erase(**change: Any) -> dict[str, Any]:
    given = {
        "model": ["loader", 0],
        "clip": ["loader", 1],
        "concept": "ball",
        "neighbours": "star\nheart",
        "kind": "object",
        "method": "ridge",
        "strength": 1.0,
        "templates": "{}\na photo of {}",
        **QUICK_ERASING,
    }
    return node("PURE_EraseConcept", **{**given, **change})


def open_path() -> Graph:
    def capture(prompts: list[Any]) -> dict[str, Any]:
        return node(
            "PURE_Capture",
            model=["loader", 0],
            clip=["loader", 1],
            prompts=prompts,
            **QUICK._asdict(),
        )

    return {
        "concept": node(
            "PURE_Concept",
            concept="ball",
            kind="object",
            neighbours="star\nheart",
            templates="{}\na photo of {}",
        ),
        "forget": capture(["concept", 0]),
        "retain": capture(["concept", 1]),
        "fit": node(
            "PURE_Fit",
            forget=["forget", 0],
            retain=["retain", 0],
            method="pure",
            forget_energy=0.99,
            retain_energy=0.7,
            keep=1.0,
            damping=0.01,
        ),
        "patch": node(
            "PURE_Patch", model=["loader", 0], eraser=["fit", 0], strength=1.0, edit="as fitted"
        ),
    }


def shown(server: ComfyServer, run: Run, name: str) -> bytes:
    """The pixels of a previewed picture (its file holds the graph as well)."""
    return Image.open(io.BytesIO(server.image(run.images(name)[0]))).tobytes()


def anew(server: ComfyServer, graph: Graph) -> Run:
    """Run a graph with nothing cached."""
    server.free()
    run = server.run(graph)
    assert run.error is None
    assert not run.cached
    return run


@pytest.fixture(scope="module")
def plain(comfy_server: ComfyServer, checkpoint: Path) -> bytes:
    """The picture of the model alone."""
    run = comfy_server.run({**base(checkpoint), **picture("plain", ["loader", 0])})
    return shown(comfy_server, run, "plain")


def resample(graph: Graph, seed: int) -> Graph:
    """The same graph with another sampling seed, so that ComfyUI has to sample again."""
    return {
        name: node(each["class_type"], **{**each["inputs"], "seed": seed})
        if each["class_type"] == "KSampler"
        else each
        for name, each in graph.items()
    }


def test_branches_do_not_affect_each_other_and_a_second_queue_is_cached(
    comfy_server: ComfyServer, checkpoint: Path, plain: bytes
) -> None:
    graph: Graph = {
        **base(checkpoint),
        **picture("before", ["loader", 0], seed=6),
        "erase": erase(),
        **picture("erased", ["erase", 0]),
        **picture("plain", ["loader", 0]),
        "report": node("PreviewImage", images=["erase", 2]),
        "none": erase(strength=0.0),
        **picture("zero", ["none", 0]),
    }
    first = anew(comfy_server, graph)
    erased = shown(comfy_server, first, "erased")
    assert shown(comfy_server, first, "plain") == plain
    assert shown(comfy_server, first, "zero") == plain
    assert erased != plain
    assert first.images("report")

    second = comfy_server.run(graph)
    assert not set(second.executed) & set(graph)
    assert second.cached == set(graph)

    third = comfy_server.run(resample(graph, 9))
    assert "erase" in third.cached and "erased sampler" in third.executed

    again = anew(comfy_server, dict(reversed(graph.items())))  # the other branch first
    assert shown(comfy_server, again, "plain") == plain
    assert shown(comfy_server, again, "erased") == erased


def test_the_open_path_with_a_file_in_between(
    comfy_server: ComfyServer, checkpoint: Path, plain: bytes
) -> None:
    graph: Graph = {
        **base(checkpoint),
        **open_path(),
        "save": node("PURE_SaveEraser", eraser=["fit", 0], filename_prefix="test queue/dog"),
        "report": node("PreviewImage", images=["fit", 1]),
        **picture("erased", ["patch", 0]),
    }
    saved = comfy_server.run(graph)
    assert saved.error is None
    (path,) = (Path(text) for text in saved.outputs["save"]["text"])
    try:
        options = comfy_server.node("PURE_LoadEraser")["input"]["required"]["eraser_name"]
        name = str(path.relative_to(comfy_server.base / "models" / "erasers"))
        assert name in str(options)
        load: Graph = {
            **base(checkpoint),
            "load": node("PURE_LoadEraser", eraser_name=name),
            "patch": node(
                "PURE_Patch",
                model=["loader", 0],
                eraser=["load", 0],
                strength=1.0,
                edit="as fitted",
            ),
            **picture("erased", ["patch", 0]),
        }
        first = comfy_server.run(load)
        assert shown(comfy_server, first, "erased") == shown(comfy_server, saved, "erased")
        assert shown(comfy_server, first, "erased") != plain
        assert "load" in comfy_server.run(load).cached

        path.write_bytes(path.read_bytes()[:-10])
        broken = comfy_server.run(load)
        assert broken.error is not None and broken.error["node_id"] == "load"
        assert "eraser_name: " in broken.error["exception_message"]
    finally:
        path.unlink()
        path.parent.rmdir()


def test_concepts_combined_against_saved_neighbours(
    comfy_server: ComfyServer, checkpoint: Path, plain: bytes
) -> None:
    """Retain rows captured once, saved, and used to fit and join two concepts."""
    fitting = {"method": "ridge", "forget_energy": 0.99, "retain_energy": 0.7}
    fitting |= {"keep": 1.0, "damping": 0.1}

    def capture(prompts: str) -> dict[str, Any]:
        model, clip = ["loader", 0], ["loader", 1]
        return node("PURE_Capture", model=model, clip=clip, prompts=prompts, **QUICK._asdict())

    def both(retain: list[Any], mode: str) -> Graph:
        return {
            **base(checkpoint),
            "ball": capture("a ball\na photo of a ball"),
            "crate": capture("a crate\na photo of a crate"),
            "fit ball": node("PURE_Fit", forget=["ball", 0], retain=retain, **fitting),
            "fit crate": node("PURE_Fit", forget=["crate", 0], retain=retain, **fitting),
            "both": node(
                "PURE_CombineErasers",
                eraser_1=["fit ball", 0],
                eraser_2=["fit crate", 0],
                mode=mode,
                retain=retain,
            ),
            "patch": node(
                "PURE_Patch",
                model=["loader", 0],
                eraser=["both", 0],
                strength=1.0,
                edit="as fitted",
                layers="middle, output",
            ),
            "summary": node("PreviewAny", source=["patch", 2]),
            **picture("erased", ["patch", 0]),
        }

    captured: Graph = {
        **both(["neighbours", 0], "joint"),
        "neighbours": capture("a star\na heart\na tree"),
        "save": node(
            "PURE_SaveActivations", activations=["neighbours", 0], filename_prefix="test queue/few"
        ),
    }
    first = comfy_server.run(captured)
    assert first.error is None
    (path,) = (Path(text) for text in first.outputs["save"]["text"])
    try:
        assert shown(comfy_server, first, "erased") != plain
        assert "in 5 of 7 layers" in str(first.outputs["summary"]["text"])
        name = str(path.relative_to(comfy_server.base / "models" / "activations"))
        load = {"load": node("PURE_LoadActivations", activations_name=name)}
        second = comfy_server.run({**both(["load", 0], "joint"), **load})
        assert shown(comfy_server, second, "erased") == shown(comfy_server, first, "erased")
        in_turn = comfy_server.run({**both(["load", 0], "in sequence"), **load})
        assert shown(comfy_server, in_turn, "erased") not in (
            plain,
            shown(comfy_server, first, "erased"),
        )
        unconnected = {**both(["load", 0], "joint"), **load}
        del unconnected["both"]["inputs"]["retain"]
        third = comfy_server.run(unconnected)
        assert third.error is not None and third.error["node_id"] == "both"
        assert "connect them to 'retain'" in third.error["exception_message"]
    finally:
        path.unlink()
        path.parent.rmdir()


def test_cancelling_a_capture_leaves_the_model_as_it_was(
    comfy_server: ComfyServer, checkpoint: Path, plain: bytes
) -> None:
    seen: list[tuple[int, int]] = []

    def cancel(message: Message) -> None:
        if message.type == "progress" and message.data["node"] == "erase":
            seen.append((message.data["value"], message.data["max"]))
            comfy_server.interrupt()

    graph: Graph = {
        **base(checkpoint),
        "erase": erase(seed=123, run_steps=40, steps=40),
        **picture("erased", ["erase", 0]),
    }
    run = comfy_server.run(graph, on_message=cancel)
    assert run.interrupted
    assert seen and seen[-1][0] < seen[-1][1]
    after = anew(comfy_server, {**base(checkpoint), **picture("plain", ["loader", 0])})
    assert shown(comfy_server, after, "plain") == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concept": ""}, "concept: expected the name"),
        ({"neighbours": ""}, "neighbours: the method ridge"),
        ({"run_steps": 9}, "run_steps: expected 1 to steps"),
    ],
)
def test_bad_input_names_the_input_of_the_node(
    comfy_server: ComfyServer, checkpoint: Path, change: dict[str, Any], message: str
) -> None:
    graph: Prompt = {
        **base(checkpoint),
        "erase": erase(**change),
        "report": node("PreviewImage", images=["erase", 2]),
    }
    run = comfy_server.run(graph)
    assert run.error is not None and run.error["node_id"] == "erase"
    assert message in run.error["exception_message"]


def test_energy_beyond_its_range_is_refused_before_anything_runs(
    comfy_server: ComfyServer, checkpoint: Path
) -> None:
    graph = {**base(checkpoint), **open_path()}
    graph["fit"]["inputs"]["forget_energy"] = 1.5
    graph["report"] = node("PreviewImage", images=["fit", 1])
    with pytest.raises(ServerError, match="forget_energy"):
        comfy_server.run(graph)


def test_the_help_pages_are_served(comfy_server: ComfyServer) -> None:
    for name in ("PURE_EraseConcept", "PURE_Capture"):
        module = comfy_server.node(name)["python_module"].rpartition(".")[2]
        text = comfy_server.read(f"/extensions/{module}/docs/{name}.md").decode()
        assert text.startswith("# ")
