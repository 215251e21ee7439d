"""Z-Image-Turbo's and Krea 2's usual workflows with PURE in them, over the API.

Graphs as ComfyUI's own templates wire them; the models have their architectures, tokenizers and
text encoders, few channels and random weights, so what is asked is that all runs and fits together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_pure.nodes.host.patch import SHARED_CHOICES
from safetensors.torch import load_file

from testbed.comfy.loaders import folder_of_nodes
from testbed.comfy.server import ROOT, ComfyServer, Run
from testbed.comfy.transformers import no_such

SHARED = "In 2 of 2 layers text and picture share their weights"

WORKFLOWS = {
    "Z-Image": {
        "sampling": {"class_type": "ModelSamplingAuraFlow", "inputs": {"shift": 3.0}},
        "sampler_name": "res_multistep",
    },
    "Krea 2": {
        "sampling": {"class_type": "ModelSamplingAuraFlow", "inputs": {"shift": 1.15}},
        "sampler_name": "euler",
    },
}

Prompt = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def workflow(name: str) -> Prompt:
    """The stock graph of a few-step model: eight steps, cfg 1, an empty negative."""
    own = WORKFLOWS[name]
    shift = own["sampling"]["inputs"]["shift"]
    return {
        "model": node("SmallTransformer", name=name),
        "clip": node("SmallTextEncoder", name=name),
        "sampling": node(own["sampling"]["class_type"], model=["model", 0], shift=shift),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text="a fox in the snow"),
        "negative": node("ConditioningZeroOut", conditioning=["positive", 0]),
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "sampler": sampler(["sampling", 0], own["sampler_name"]),
        "save": node("SaveLatent", samples=["sampler", 0], filename_prefix="stock"),
    }


def sampler(model: list[Any], name: str) -> dict[str, Any]:
    return node(
        "KSampler",
        model=model,
        positive=["positive", 0],
        negative=["negative", 0],
        latent_image=["latent", 0],
        seed=0,
        steps=8,
        cfg=1.0,
        sampler_name=name,
        scheduler="simple",
        denoise=1.0,
    )


def erasing(name: str, shared: str) -> Prompt:
    """The same with PURE Erase Concept behind the model, and PURE Patch behind its eraser."""
    graph = workflow(name)
    graph["erase"] = node(
        "PURE_EraseConcept",
        model=["sampling", 0],
        clip=["clip", 0],
        concept="a fox",
        neighbours="a wolf\na cat",
        kind="object",
        method="ridge",
        strength=1.0,
        steps=8,
        run_steps=3,
        latents=1,
        cfg=1.0,
        width=64,
        height=64,
        scheduler="simple",
    )
    graph["patch"] = node(
        "PURE_Patch",
        model=["sampling", 0],
        eraser=["erase", 1],
        strength=1.0,
        edit="as fitted",
        shared=shared,
    )
    graph["sampler"]["inputs"]["model"] = ["patch", 0]
    graph["words"] = node("PreviewAny", source=["patch", 2])
    return graph


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    paths = folder_of_nodes(tmp_path_factory.mktemp("loaders"))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": path}
    options = ("--extra-model-paths-config", str(paths))
    with ComfyServer(*options, env=environment) as started:
        yield started


def latent(server: ComfyServer, run: Run) -> torch.Tensor:
    """What SaveLatent wrote."""
    assert run.status == "success", (run.error or {}).get("exception_message")
    (saved,) = run.outputs["save"]["latents"]
    file = server.base / "output" / saved["subfolder"] / saved["filename"]
    return load_file(file)["latent_tensor"]


each_model = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(bool(no_such(name)), reason=no_such(name)))
        for name in WORKFLOWS
    ],
)


@each_model
def test_it_runs_patched_and_erased_while_sampling(server: ComfyServer, name: str) -> None:
    before = latent(server, server.run(workflow(name)))
    found = {}
    for shared in SHARED_CHOICES:
        run = server.run(erasing(name, shared))
        found[shared] = latent(server, run)
        assert SHARED in run.outputs["words"]["text"][0]
    assert torch.equal(found["left alone"], before)
    for shared in ("in the weights", "while sampling"):
        assert (found[shared] - before).abs().max() > 1e-3
    assert not torch.equal(found["in the weights"], found["while sampling"])


@each_model
def test_a_lora_has_what_weights_can_hold_and_says_so(server: ComfyServer, name: str) -> None:
    graph = erasing(name, "usual")
    graph["lora"] = node(
        "PURE_SaveLoRA",
        model=["sampling", 0],
        eraser=["patch", 1],
        strength=1.0,
        edit="as fitted",
        dtype="float32",
        filename_prefix=f"loras/{name}",
    )
    graph["note"] = node("PreviewAny", source=["lora", 0])
    run = server.run(graph)
    assert run.status == "success", run.error
    (path,) = run.outputs["note"]["text"]
    assert SHARED in str(run.outputs["lora"]), run.outputs

    wanted = latent(server, server.run(erasing(name, "in the weights")))
    graph = workflow(name)
    graph["loader"] = node(
        "LoraLoaderModelOnly",
        model=["sampling", 0],
        lora_name=Path(path).name,
        strength_model=1.0,
    )
    graph["sampler"]["inputs"]["model"] = ["loader", 0]
    found = latent(server, server.run(graph))
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
