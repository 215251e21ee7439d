"""Erases three concepts of the small models in a headless ComfyUI, over its HTTP API.

For each concept it queues one workflow, as a person would: load the checkpoint, `PURE Erase
Concept`, and the same prompts and seeds sampled with the model before and after. It writes a
before/after sheet and the fit report of each concept, and a table of what the judge sees.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dev.console import ROOT, say
from testbed.comfy.server import ComfyServer, Run
from testbed.pictures.expand import NAMES
from testbed.pictures.measure import PICTURES
from testbed.pictures.narrow import CFG
from testbed.world.measure import DRAWN, Prompt, Rate, Trial, World


class Model(NamedTuple):
    """A small model, and how it is sampled."""

    world: World
    checkpoint: str
    cfg: float


REAL = Model(PICTURES, NAMES["checkpoint"], CFG)
OWN = Model(DRAWN, Path(os.environ["PURE_CHECKPOINT"]).name, 4.0)

CONCEPTS = (
    (REAL, "object", "panda"),
    (REAL, "character", "santa claus"),
    (OWN, "style", "blueprint"),
)
"""Held-out concepts of three kinds."""

PROMPTS = 4
"""Prompts that name the concept, and as many that name its neighbours."""

SEEDS = 4
STEPS, SIZE = 20, 64
ZOOM = 2


class Row(NamedTuple):
    """One prompt and where its pictures come from."""

    prompt: Prompt
    before: str
    after: str


class Graph:
    """A workflow in ComfyUI's API format that grows node by node, from its loader on."""

    def __init__(self, model: Model) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.loader = self.add("CheckpointLoaderSimple", ckpt_name=model.checkpoint)
        self.cfg = model.cfg

    def add(self, class_type: str, **inputs: Any) -> str:
        """Add a node; its id."""
        node = str(len(self.nodes) + 1)
        self.nodes[node] = {"class_type": class_type, "inputs": inputs}
        return node

    def pictures(self, source: str, text: str) -> str:
        """Sample a prompt with a node's model and save the pictures; the id of the saving node."""
        positive = self.add("CLIPTextEncode", clip=[self.loader, 1], text=text)
        negative = self.add("CLIPTextEncode", clip=[self.loader, 1], text="")
        latent = self.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=SEEDS)
        sampled = self.add(
            "KSampler",
            model=[source, 0],
            positive=[positive, 0],
            negative=[negative, 0],
            latent_image=[latent, 0],
            seed=1,
            steps=STEPS,
            cfg=self.cfg,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        )
        decoded = self.add("VAEDecode", samples=[sampled, 0], vae=[self.loader, 2])
        return self.add("SaveImage", images=[decoded, 0], filename_prefix="pure-demo")


def workflow(server: ComfyServer, model: Model, trial: Trial) -> tuple[Graph, list[Row], str]:
    """The graph for one concept, its rows of pictures and the node that shows the report."""
    graph = Graph(model)
    widgets = server.node("PURE_EraseConcept")["input"]["required"]
    eraser = graph.add(
        "PURE_EraseConcept",
        model=[graph.loader, 0],
        clip=[graph.loader, 1],
        concept=trial.name,
        neighbours=trial.listed_names(),
        kind=trial.kind,
        method=widgets["method"][1]["default"],
        strength=widgets["strength"][1]["default"],
        width=SIZE,
        height=SIZE,
    )
    report = graph.add("PreviewImage", images=[eraser, 2])
    rows = [
        Row(
            prompt,
            graph.pictures(graph.loader, prompt.text),
            graph.pictures(eraser, prompt.text),
        )
        for prompt in (*trial.by_name, *trial.neighbours)
    ]
    return graph, rows, report


def fetch(server: ComfyServer, run: Run, node: str) -> np.ndarray:
    """The pictures of a node, (b, height, width, 3) uint8."""
    files = (server.image(reference) for reference in run.images(node))
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def rate(trial: Trial, prompts: Sequence[Prompt], pictures: list[np.ndarray]) -> Rate:
    """How many of the pictures show what their prompt asks for."""
    total = Rate(0, 0)
    for prompt, batch in zip(prompts, pictures, strict=True):
        readings = trial.world.read(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255)
        total += Rate(sum(prompt.met(reading, trial.kind) for reading in readings), len(readings))
    return total


def sheet(
    title: str, texts: list[str], before: list[np.ndarray], after: list[np.ndarray]
) -> Image.Image:
    """One line per prompt: its words, the pictures before, the pictures after."""
    cell, words, gap, head = SIZE * ZOOM, 300, 24, 72
    width = words + 2 * SEEDS * cell + gap
    picture = Image.new("RGB", (width, head + len(texts) * cell), "white")
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(22), ImageFont.load_default(15)
    draw.text((12, 14), title, fill="black", font=font)
    draw.text((words + 4, 46), "before", fill="black", font=small)
    draw.text((words + SEEDS * cell + gap + 4, 46), "after", fill="black", font=small)
    for i, text in enumerate(texts):
        top = head + i * cell
        draw.multiline_text((12, top + 12), wrapped(text, 34), fill="black", font=small)
        for side, batch in enumerate((before[i], after[i])):
            for j, pixels in enumerate(batch):
                tile = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.LANCZOS)
                picture.paste(tile, (words + side * (SEEDS * cell + gap) + j * cell, top))
    return picture


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most `width` characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    version = os.environ["PURE_COMFY_VERSION"]
    parser.add_argument("--out", type=Path, default=ROOT / "demo-output" / version)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "| concept | kind | shown when asked, before | after | neighbours shown, before | after |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with ComfyServer() as server:
        for model, kind, concept in CONCEPTS:
            trial = model.world.trial(kind, concept, PROMPTS)
            name = trial.name
            say(f"erasing the {kind} {name!r}")
            graph, rows, report = workflow(server, model, trial)
            run = server.run(graph.nodes, timeout=1800)
            if run.error:
                raise SystemExit(f"ComfyUI failed: {run.error['exception_message']}")
            before = [fetch(server, run, row.before) for row in rows]
            after = [fetch(server, run, row.after) for row in rows]
            prompts = [row.prompt for row in rows]
            rates = [
                rate(trial, prompts[part], pictures[part])
                for part in (slice(PROMPTS), slice(PROMPTS, None))
                for pictures in (before, after)
            ]
            lines.append(f"| {name} | {kind} | " + " | ".join(str(each) for each in rates) + " |")
            texts = [prompt.text for prompt in prompts]
            stem = f"erase-{kind}"
            sheet(f"{kind} '{name}' erased", texts, before, after).save(out / f"{stem}.png")
            Image.fromarray(fetch(server, run, report)[0]).save(out / f"{stem}-report.png")
    table = "\n".join(lines) + "\n"
    (out / "table.md").write_text(table, encoding="utf-8")
    print(f"\n{table}\nPictures and this table are in {out}", flush=True)


if __name__ == "__main__":
    main()
