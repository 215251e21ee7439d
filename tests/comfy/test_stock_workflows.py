"""The usual workflows of Z-Image Turbo, Krea 2 and Flux with PURE in them, over the API.

They are the example workflows; the models have these architectures, tokenizers and text encoders,
but few channels and random weights, so what is asked is that all runs and fits together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from comfyui_pure.nodes.host.patch import SHARED_CHOICES
from safetensors.torch import load_file

from testbed.comfy.examples import FOLDER, load, upstream
from testbed.comfy.loaders import folder_of_nodes
from testbed.comfy.server import ROOT, ComfyServer, Run
from testbed.comfy.transformers import no_such

Graph = dict[str, dict[str, Any]]


class Stock(NamedTuple):
    """A model's usual workflow."""

    template: str
    shared: str
    """How many of the layers share weights, as the patch says."""


STOCK = {
    "Z-Image": Stock("Erase a concept from Z-Image", "2 of 2"),
    "Krea 2": Stock("Erase a concept from Z-Image", "2 of 2"),
    "Flux.1": Stock("Erase a concept from Flux", "2 of 4"),
}
SMALL: dict[str, dict[str, Any]] = {
    "EmptySD3LatentImage": {"width": 64, "height": 64, "batch_size": 1},
    "PURE_EraseConcept": {
        "width": 64,
        "height": 64,
        "latents": 1,
        "run_steps": 2,
        "neighbours": "wolf\ncat",
        "templates": "{}\na picture of {}",
    },
    "KSampler": {"steps": 4},
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def only(graph: Graph, class_type: str) -> str:
    (found,) = (key for key, each in graph.items() if each["class_type"] == class_type)
    return found


def workflow(name: str, shared: str = "usual") -> Graph:
    """The template up to its samplers, with small models, and PURE Patch behind its eraser.

    The latents are saved as "before" and "after".
    """
    graph = load(FOLDER / "api" / f"{STOCK[name].template}.json")
    samplers = [key for key, each in graph.items() if each["class_type"] == "KSampler"]
    graph = {key: each for end in samplers for key, each in upstream(graph, end).items()}
    for each in graph.values():
        each["inputs"].update(SMALL.get(each["class_type"], {}))
        if each["class_type"] == "UNETLoader":
            each.update(node("SmallTransformer", name=name))
        if each["class_type"].endswith("CLIPLoader"):
            each.update(node("SmallTextEncoder", name=name))
    erasing = only(graph, "PURE_EraseConcept")
    graph["patch"] = node(
        "PURE_Patch",
        model=graph[erasing]["inputs"]["model"],
        eraser=[erasing, 1],
        strength=1.0,
        edit="as fitted",
        shared=shared,
    )
    for key in samplers:
        after = graph[key]["inputs"]["model"][0] == erasing
        if after:
            graph[key]["inputs"]["model"] = ["patch", 0]
        which = "after" if after else "before"
        graph[which] = node("SaveLatent", samples=[key, 0], filename_prefix=which)
    graph["words"] = node("PreviewAny", source=["patch", 2])
    return graph


def latent(server: ComfyServer, run: Run, which: str) -> torch.Tensor:
    """What SaveLatent wrote."""
    assert run.status == "success", run.error
    (saved,) = run.outputs[which]["latents"]
    file = server.base / "output" / saved["subfolder"] / saved["filename"]
    return load_file(file)["latent_tensor"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """With nodes that load small models."""
    paths = folder_of_nodes(tmp_path_factory.mktemp("loaders"))
    python = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = ("--extra-model-paths-config", str(paths))
    with ComfyServer(*options, env={"PYTHONPATH": python}) as started:
        yield started


each_model = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(bool(no_such(name)), reason=no_such(name)))
        for name in STOCK
    ],
)


@each_model
def test_it_runs_patched_and_erased_while_sampling(server: ComfyServer, name: str) -> None:
    found = {}
    for shared in SHARED_CHOICES:
        run = server.run(workflow(name, shared))
        before, found[shared] = latent(server, run, "before"), latent(server, run, "after")
        (words,) = run.outputs["words"]["text"]
        assert f"In {STOCK[name].shared} layers text and picture share their weights" in words
        unchanged = shared == "left alone" and STOCK[name].shared == "2 of 2"
        assert ("Nothing is changed" in words) == unchanged == torch.equal(found[shared], before)
        assert bool(torch.isfinite(found[shared]).all())
    assert torch.equal(found["usual"], found["while sampling"])
    assert not torch.equal(found["in the weights"], found["while sampling"])


@each_model
def test_a_lora_has_what_weights_can_hold_and_says_so(server: ComfyServer, name: str) -> None:
    words, path = saved_lora(server, name, workflow(name))
    assert "share their weights" in words and "(token ridge) exactly" in words
    wanted, found = with_and_as_lora(server, workflow(name, "in the weights"), path)
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()


@each_model
def test_token_ridge_is_in_files_as_it_is(server: ComfyServer, name: str) -> None:
    """It edits what only the text reads, whatever the layers share."""

    def graph() -> Graph:
        made = workflow(name)
        erasing = made[only(made, "PURE_EraseConcept")]["inputs"]
        made["tokens"] = node(
            "PURE_FitText",
            model=erasing["model"],
            clip=erasing["clip"],
            forget="a fox\na picture of a fox",
            retain="a wolf\na picture of a wolf\na cat\na picture of a cat",
            method="token ridge",
        )
        made["patch"]["inputs"]["eraser"] = ["tokens", 0]
        return made

    words, path = saved_lora(server, name, graph())
    assert "share their weights" not in words
    wanted, found = with_and_as_lora(server, graph(), path)
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()


def saved_lora(server: ComfyServer, name: str, graph: Graph) -> tuple[str, str]:
    """What PURE Save LoRA says of the graph's eraser, and the name of its file."""
    graph["lora"] = node(
        "PURE_SaveLoRA",
        model=graph["patch"]["inputs"]["model"],
        eraser=["patch", 1],
        strength=1.0,
        edit="as fitted",
        dtype="float32",
        filename_prefix=f"loras/{name}",
    )
    graph["path"] = node("PreviewAny", source=["lora", 0])
    run = server.run(graph)
    assert run.status == "success", run.error
    (path,) = run.outputs["path"]["text"]
    return str(run.outputs["lora"]), Path(path).name


def with_and_as_lora(
    server: ComfyServer, graph: Graph, path: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The latent of the patched model, and of the unedited one with the LoRA."""
    graph["lora"] = node(
        "LoraLoaderModelOnly",
        model=graph["patch"]["inputs"]["model"],
        lora_name=path,
        strength_model=1.0,
    )
    sampler = graph["after"]["inputs"]["samples"][0]
    again = {**graph[sampler]["inputs"], "model": ["lora", 0]}
    graph["sampler"] = node("KSampler", **again)
    graph["again"] = node("SaveLatent", samples=["sampler", 0], filename_prefix="again")
    run = server.run(graph)
    before, after = latent(server, run, "before"), latent(server, run, "after")
    assert not torch.equal(before, after)
    return after, latent(server, run, "again")
