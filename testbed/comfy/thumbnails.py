"""Draws thumbnails from a run: python3 dev.py run testbed/comfy/thumbnails.py -- TEMPLATE ...

Before and after, of the first two pictures, or of the first of each comparison if there are two.
Those of large models are drawn with the small HunyuanVideo, which has Flux's blocks, most of them
of one stream as in Z-Image. README as the name draws the README's picture: a concept that everybody
knows, and a neighbour. *Use a saved eraser* needs *Save an eraser* before it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dev.console import ROOT
from pure_core.trajectory import Trajectory
from testbed.comfy.examples import FOLDER, LARGE, OWN_TRAJECTORY, Workflow, load, upstream
from testbed.comfy.server import ComfyServer
from testbed.comfy.small_wan import SETTINGS, TEMPLATE
from testbed.comfy.small_wan import SIZE as SIZE_OF_PICTURES
from testbed.pictures.expand import NAMES
from testbed.pictures.measure import PICTURES
from testbed.pictures.narrow import CFG, SHIFT, STEPS

SIZE, SIDE = (512, 560), 240
LEFT, TOP = (10, 262), (46, 302)
BACKGROUND, WORDS = (24, 24, 26), ("before", "after")


README = "README"
README_PICTURE = ROOT / "docs" / "pictures" / "before_and_after.jpg"
PANDA = PICTURES.trial("object", "panda", 1)
README_PROMPTS = ("a panda on green grass", "a cat on green grass")
README_SETTINGS: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": NAMES["checkpoint"]},
    "PURE_EraseConcept": {
        "concept": PANDA.name,
        "kind": PANDA.kind,
        "neighbours": PANDA.listed_names(),
    },
    "KSampler": {"cfg": CFG},
}

Pairs = list[tuple[np.ndarray, np.ndarray]]


def template(name: str, settings: dict[str, dict[str, Any]]) -> Workflow:
    """A template in API format, with some widgets set by type of node."""
    prompt = load(FOLDER / "api" / f"{name}.json")
    for node in prompt.values():
        node["inputs"].update(settings.get(node["class_type"], {}))
    return prompt


def with_small_model(prompt: Workflow) -> Workflow:
    """A template of a large model with the small HunyuanVideo in it, sampled as that one is."""
    sampling = {"class_type": "ModelSamplingSD3", "inputs": {"shift": SHIFT}}
    for key, node in list(prompt.items()):
        inputs = node["inputs"]
        if node["class_type"] == "UNETLoader":
            inputs["unet_name"] = NAMES["hunyuan"]
            sampling["inputs"]["model"] = [key, 0]
        elif node["class_type"].endswith("CLIPLoader"):
            given = {"clip_name": NAMES["text encoder"], "type": "stable_diffusion"}
            prompt[key] = {"class_type": "CLIPLoader", "inputs": given}
            empty = {"class_type": "CLIPTextEncode", "inputs": {"clip": [key, 0], "text": ""}}
        elif node["class_type"] == "VAELoader":
            inputs["vae_name"] = NAMES["hunyuan autoencoder"]
        elif node["class_type"] == "EmptySD3LatentImage":
            size = {"width": SIZE_OF_PICTURES, "height": SIZE_OF_PICTURES, "length": 1}
            given = {**size, "batch_size": inputs["batch_size"]}
            prompt[key] = {"class_type": "EmptyHunyuanLatentVideo", "inputs": given}
        elif node["class_type"] == "PURE_EraseConcept":
            usual = Trajectory()
            inputs.update({name: getattr(usual, name) for name in OWN_TRAJECTORY})
            inputs["model"] = ["sampling", 0]
        elif node["class_type"] == "KSampler":
            inputs.update(steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="simple")
            inputs["negative"] = ["empty", 0]
            if prompt[inputs["model"][0]]["class_type"] != "PURE_EraseConcept":
                inputs["model"] = ["sampling", 0]
    return prompt | {"sampling": sampling, "empty": empty}


def readme(server: ComfyServer) -> Pairs:
    """*Erase a concept* on the model of real pictures."""
    shown = []
    prompt = template("Erase a concept", README_SETTINGS)
    for text in README_PROMPTS:
        for node in prompt.values():
            if node["inputs"].get("text"):
                node["inputs"]["text"] = text
        shown.append(pairs(server, prompt)[0])
    return shown


def pairs(server: ComfyServer, prompt: Workflow) -> Pairs:
    """Two pictures before and after, from a run of a template."""
    comparisons = [key for key, node in prompt.items() if node["class_type"] == "PURE_Compare"]
    savers = [key for key, node in prompt.items() if node["class_type"] == "PURE_SaveEraser"]
    ends = comparisons + savers
    needed = {key: node for each in ends for key, node in upstream(prompt, each).items()}
    run = server.run(needed)
    assert run.error is None, run.error
    shown = []
    for each in comparisons:
        sides = (run.outputs[each][f"pure_{word}"] for word in WORDS)
        shown.append(list(zip(*map(server.pictures, sides), strict=True)))
    return shown[0][:2] if len(shown) == 1 else [each[0] for each in shown[:2]]


def thumbnail(rows: Pairs) -> Image.Image:
    """Rows of before and after, with these words above."""
    whole = Image.new("RGB", SIZE, BACKGROUND)
    draw = ImageDraw.Draw(whole)
    font = ImageFont.load_default(23)
    for left, word in zip(LEFT, WORDS, strict=True):
        draw.text((left + SIDE / 2, TOP[0] / 2 + 1), word, "white", font, anchor="mm")
    for top, row in zip(TOP, rows, strict=True):
        for left, picture in zip(LEFT, row, strict=True):
            large = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            whole.paste(large, (left, top))
    return whole


def main() -> None:
    with ComfyServer() as server:
        for name in sys.argv[1:]:
            if name == README:
                thumbnail(readme(server)).save(README_PICTURE, quality=90)
                continue
            prompt = template(name, SETTINGS if name == TEMPLATE else {})
            if name in LARGE:
                prompt = with_small_model(prompt)
            thumbnail(pairs(server, prompt)).save(FOLDER / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
