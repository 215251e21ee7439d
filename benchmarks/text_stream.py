"""What an eraser changes of what text tells text, where text and picture share one attention.

    python3 dev.py run benchmarks/text_stream.py

In such models the text's tokens read each other, too, and what they read is erased as well. On the
narrow forms of the two small models, one call of the model from one noise, before and after: how
far what text reads moves, and what the picture reads, |h' - h| / |h| over all layers. Prompts are
those of the concept, of its listed neighbours and of everything else; one development concept of
each kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.eraser import AT_SHARED
from comfyui_pure.pure_core.fitting import BY_HEAD

from benchmarks.common import RESULTS, markdown
from benchmarks.joint import ALL, ENTRY, JOINT, TEXT, Bench, Way
from benchmarks.models import MODELS
from benchmarks.narrow import NarrowJointModel
from testbed.comfy.erasable import TRAJECTORY
from testbed.pictures.narrow import sample_flow
from testbed.world.measure import Trial

RIDGE = ("ridge", BY_HEAD, "defaults", TEXT)
WAYS = {
    "sd3": (Way(*RIDGE, JOINT), Way("token ridge", sites=ENTRY)),
    "hunyuan": (
        Way(*RIDGE, ALL, "while sampling"),
        Way(*RIDGE, ALL, "in the weights"),
        Way("token ridge", sites=ENTRY),
    ),
}
GROUPS = ("by_name", "neighbours", "everything_else")
PROMPTS = 12


@torch.no_grad()
def read(model: NarrowJointModel, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What text and what the picture reads in the first call, all layers side by side."""
    found: list[tuple[Tensor, Tensor]] = []

    def hear(_: Any, given: tuple[Any, ...], out: Tensor) -> None:
        own, text = out[: len(texts)].double(), given[3]
        found.append((own[:, :text].flatten(), own[:, text:].flatten()))

    with ExitStack() as hooks:
        for attention in model.attentions.values():
            hooks.callback(attention.register_forward_hook(hear).remove)
        noise = model.noise(1, 0).expand(len(texts), -1, -1, -1)
        sample_flow(model.model, list(texts), noise, steps=TRAJECTORY.steps, run_steps=1)
    by_text, by_picture = zip(*found, strict=True)
    return torch.cat(by_text), torch.cat(by_picture)


def moved(bench: Bench, trial: Trial, way: Way) -> Iterator[float]:
    """Of every group: how far what text reads moves, and what the picture reads."""
    eraser = bench.eraser(trial, way)
    if way.shared in AT_SHARED:
        bench.model.at_shared = way.shared
    for group in GROUPS:
        texts = [prompt.text for prompt in getattr(trial, group)]
        before = read(bench.model, texts)
        with bench.model.erased(eraser):
            after = read(bench.model, texts)
        for one, other in zip(before, after, strict=True):
            yield float((other - one).norm() / one.norm())


def main() -> None:
    """Write the table."""
    rows = []
    for name, ways in WAYS.items():
        world, load, words = MODELS[name]
        bench = Bench(load())
        for way in ways:
            found = []
            for kind, concepts in world.splits["development"].items():
                trial = world.trial(kind, concepts[0], PROMPTS)
                found.append(list(moved(bench, trial, way)))
            means = torch.tensor(found).mean(0).tolist()
            rows.append((words, way.method, way.shared, *(f"{each:.2f}" for each in means)))
    heads = [
        f"{who} reads, {group.replace('_', ' ')}" for group in GROUPS for who in ("text", "picture")
    ]
    text = markdown(("model", "method", "shared layers", *heads), rows)
    (RESULTS / "text_stream.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
