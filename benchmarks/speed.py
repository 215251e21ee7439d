"""Measures what erasing costs: capturing, fitting, patching, sampling afterwards, and memory.

    python3 dev.py run benchmarks/speed.py

Two things are compared in turns (A B A B ..) after one turn that does not count, so that a slow
minute of the machine hits both. Memory is the peak of the resident set while one thing is done in
a process of its own. Capturing and sampling use the shipped model; captures of the two small models
of real pictures whose text and picture share one attention are timed as well. Fitting and patching
have the layers and weights of Stable Diffusion 1.5. Every single value goes to `speed.jsonl`, where
a run on the same machine goes on, and the table to `speed.md`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from testbed.comfy import inprocess

inprocess.enter()

import comfy.sample
import comfy.supported_models
import psutil
from comfy.model_management import get_torch_device, load_models_gpu
from comfy.model_patcher import ModelPatcher
from comfyui_pure.nodes.defaults import METHOD
from comfyui_pure.nodes.host import capture as host
from comfyui_pure.nodes.host.capture import batches, sampling
from comfyui_pure.nodes.host.conditioning import encode, stack
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.sites import Sites, display_name
from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.concepts import Anchors
from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.fitting import fit
from comfyui_pure.pure_core.methods import METHODS
from comfyui_pure.pure_core.model_identity import ModelIdentity
from comfyui_pure.pure_core.trajectory import Trajectory

from benchmarks.common import RESULTS, ROOT
from testbed.comfy.erasable import TRAJECTORY, Erasable
from testbed.comfy.pictures import HunyuanPictures, SD3Pictures
from testbed.comfy.shipped import Shipped
from testbed.pictures import prompts as pictures
from testbed.world.prompts import everything_prompts

PROMPTS = 20
"""Prompts of a measured capture: with 3 latents 60 rows, one full model call a step."""

SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 768,
}
"""The U-Net of Stable Diffusion 1.5: 16 cross-attention layers of width 320, 640 and 1280."""

ANCHORS = {"90 + 810 rows": (6, 54), "900 + 900 rows": (60, 60)}
"""Forget and retain prompts of a fit, 15 rows each: as in the paper, and 900 rows on each side."""


FIELDS = ("machine", "first", "second", "turn")

Pair = tuple[float, float]
"""What one turn gave."""


class Ratio(NamedTuple):
    """One thing against another, measured in turns."""

    what: str
    against: str
    goal: str
    unit: str
    take: Callable[[int], Iterable[Pair]]
    """So many turns."""

    values: Sequence[float] = ()
    others: Sequence[float] = ()

    @property
    def names(self) -> tuple[str, str]:
        """What it is called in the ledger."""
        return self.what, self.against

    def line(self) -> str:
        """Its row of the table: both medians, and median and quartiles of the turns' ratios."""
        ratios = [a / b for a, b in zip(self.values, self.others, strict=True)]
        medians = (f"{statistics.median(s):.3g} {self.unit}" for s in (self.values, self.others))
        return row(self.what, self.against, *medians, middle(ratios), self.goal)


class Fitted(NamedTuple):
    """Seconds to fit an eraser and to have it in the model's weights."""

    what: str
    goal: str
    take: Callable[[int], Iterable[Pair]]
    """So many turns."""

    values: Sequence[float] = ()
    """Seconds to fit."""

    others: Sequence[float] = ()
    """Seconds to patch."""

    unit: str = "s"

    @property
    def names(self) -> tuple[str, str]:
        """What it is called in the ledger."""
        return f"fit, {self.what}", f"patch, {self.what}"

    def line(self) -> str:
        """Its row of the table: medians and quartiles."""
        both = [a + b for a, b in zip(self.values, self.others, strict=True)]
        columns = (f"{middle(side)} s" for side in (self.values, self.others, both))
        return row(self.what, *columns, self.goal)


Line = TypeVar("Line", Ratio, Fitted)


def row(*cells: str) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def middle(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.3f} ({low:.3f}–{high:.3f})"


def seconds(action: Callable[..., object], *arguments: Any) -> float:
    """How long an action takes."""
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


def in_turns(first: Callable[[], float], second: Callable[[], float], turns: int) -> Iterator[Pair]:
    """Two measurements in turns; the first turn does not count."""
    first(), second()
    for _ in range(turns):
        yield first(), second()


def prompts() -> list[str]:
    """What is captured and sampled here."""
    return [prompt.text for prompt in everything_prompts(PROMPTS, by_name=True)]


def written(texts: list[str]) -> AnchorSet:
    """A concept for each prompt."""
    return AnchorSet.written([[text] for text in texts])


def capture(model: Erasable, texts: list[str]) -> Activations:
    """The activations of some prompts, with the nodes' default settings."""
    return host.capture(model.model, model.clip, written(texts), TRAJECTORY)


def capture_alone(shipped: Shipped, texts: list[str]) -> list[Activations]:
    """The same, a prompt at a time."""
    return [capture(shipped, [text]) for text in texts]


def sample_as_captured(of: Erasable, texts: list[str]) -> None:
    """The calls of text encoder and model that a capture makes, with nothing attached."""
    model, cfg = of.model, TRAJECTORY.cfg
    encoded = [encode(of.clip, text) for text in texts]
    empty = encode(of.clip, "")
    noise = sampling.starting_noise(model, Sites.of(model), TRAJECTORY)
    sigmas = sampling.noise_levels(model, TRAJECTORY)
    size = batches.rows_per_call(model, noise, cfg)
    for batch in batches.batches(encoded, TRAJECTORY.latents, size):
        comfy.sample.sample_custom(
            model,
            noise[[each.latent for each in batch]],
            cfg,
            sampling.sampler_for(model, TRAJECTORY, batch, noise),
            sigmas,
            stack([encoded[each.anchor] for each in batch]),
            stack([empty]),
            torch.zeros(len(batch), *noise.shape[1:]),
            disable_pbar=True,
            seed=TRAJECTORY.seed,
        )


def sample_one(shipped: Shipped, texts: list[str]) -> None:
    """One picture's latent, as a person samples it."""
    shipped.latents(texts[:1])


def time_capture(shipped: Shipped) -> Iterator[Ratio]:
    """What listening costs, and what a different prompt in every batch row saves."""
    texts = prompts()
    together = partial(seconds, capture, shipped, texts)
    plain = partial(seconds, sample_as_captured, shipped, texts)
    alone = partial(seconds, capture_alone, shipped, texts)
    what = f"capture of {PROMPTS} prompts"
    same, each = partial(in_turns, together, plain), partial(in_turns, together, alone)
    yield Ratio(what, "the same model calls, nothing attached", "≤ 1.02", "s", same)
    yield Ratio(what, "one prompt at a time", "< 1", "s", each)


def time_joint() -> Iterator[Ratio]:
    """What listening costs where text and picture share one attention, which is called again."""
    texts = [prompt.text for prompt in pictures.everything_prompts(PROMPTS, by_name=True)]
    for name, model in (("SD3", SD3Pictures()), ("HunyuanVideo", HunyuanPictures())):
        listening = partial(seconds, capture, model, texts)
        plain = partial(seconds, sample_as_captured, model, texts)
        what = f"capture of {PROMPTS} prompts, small {name}"
        same = partial(in_turns, listening, plain)
        yield Ratio(what, "the same model calls, nothing attached", "≤ 1.25", "s", same)


def time_sampling(shipped: Shipped) -> Iterator[Ratio]:
    """What an eraser in the weights costs while sampling, once the model is loaded."""
    texts = prompts()

    def sample(model: ModelPatcher) -> float:
        load_models_gpu([model])
        return seconds(shipped.latents, texts, model)

    def take(turns: int) -> Iterator[Pair]:
        erased = without_some(shipped, texts)
        return in_turns(partial(sample, erased), partial(sample, shipped.model), turns)

    yield Ratio("sampling, erased", "sampling, unedited", "1.00 ± 0.01", "s", take)


def without_some(shipped: Shipped, texts: list[str]) -> ModelPatcher:
    """The model without the first quarter of the prompts."""
    anchors = Anchors(written(texts[: PROMPTS // 4]), written(texts[PROMPTS // 4 :]))
    by_cells = TRAJECTORY._replace(cells=METHODS[METHOD].cells)
    eraser = fit(METHOD, *host.capture_both(shipped.model, shipped.clip, anchors, by_cells)[:2])
    return patch(shipped.model, eraser).model


def weigh_capture() -> Iterator[Ratio]:
    """What a capture needs in memory."""
    what = f"memory: capture of {PROMPTS} prompts"
    for against, other in (
        ("the same model calls, nothing attached", sample_as_captured),
        ("sampling one picture", sample_one),
    ):
        yield Ratio(what, against, "", "MB", partial(peaks, other.__name__))


def peaks(other: str, turns: int) -> Iterator[Pair]:
    """Of a capture and of something else, in processes of their own."""
    for _ in range(turns):
        yield peak_elsewhere(capture.__name__), peak_elsewhere(other)


def peak_elsewhere(action: str) -> float:
    """The peak resident set in MB while a fresh process does one of `WEIGHED`."""
    launch = [sys.executable, str(ROOT / "dev" / "launch.py"), "script", __file__]
    done = subprocess.run(
        [*launch, "--peak", action], check=True, text=True, stdout=subprocess.PIPE
    )
    return float(done.stdout.split()[-1])


def peak(action: str) -> float:
    """The same in this process: the model is loaded first and counts."""
    shipped, process, highest = Shipped(), psutil.Process(), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    WEIGHED[action](shipped, prompts())
    done.set()
    watcher.join()
    return highest / 1e6


WEIGHED: dict[str, Callable[[Shipped, list[str]], object]] = {
    each.__name__: each for each in (capture, sample_as_captured, sample_one)
}


def time_fit() -> Iterator[Fitted]:
    """Fit and patch with the default settings, for a model of the size people use."""
    model = stable_diffusion()
    for rows, (forget, retain) in ANCHORS.items():
        known = like_captured(model, forget, seed=0), like_captured(model, retain, seed=1)
        for method in METHODS:
            goal = "≤ 0.3 s together" if method == "pure" else ""
            yield Fitted(f"{method}, {rows}", goal, partial(fits, model, method, *known))


def fits(
    model: ModelPatcher, method: str, forget: Activations, retain: Activations, turns: int
) -> Iterator[Pair]:
    """Fit and patch again and again; the first turn does not count."""
    fit_and_patch(model, method, forget, retain)
    for _ in range(turns):
        yield fit_and_patch(model, method, forget, retain)


def fit_and_patch(
    model: ModelPatcher, method: str, forget: Activations, retain: Activations
) -> tuple[float, float]:
    """Seconds to fit, and seconds until the erased model is loaded in place of the unedited one."""
    load_models_gpu([model])
    started = time.perf_counter()
    eraser = fit(method, forget, retain)
    fitted = time.perf_counter()
    load_models_gpu([patch(model, eraser).model])
    return fitted - started, time.perf_counter() - fitted


def stable_diffusion() -> ModelPatcher:
    """The U-Net of Stable Diffusion 1.5 on the CPU. Only the weights that are edited are set."""
    config = comfy.supported_models.SD15(SD15)
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = ModelPatcher(config.get_model({}, "", device=cpu), cpu, cpu)
    sites = Sites.of(model)
    for site in sites.sites:
        for rows in (site.keys, site.values):
            linear = sites.net.get_submodule(rows.module)
            linear.weight.data.normal_(0, linear.in_features**-0.5)
    return model


def like_captured(model: ModelPatcher, count: int, seed: int) -> Activations:
    """Activations of `count` prompts as real ones are: one strong mean and a long weak tail.

    The k-th singular value falls as 1 / k from 0.3 of the first. The small trained model's fall
    faster, so that fewer directions hold the same energy and a fit is quicker.
    """
    trajectory = Trajectory(latents=3, run_steps=5)
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for layer, width in Sites.of(model).widths().items():
        tail = torch.randn(count * 15, width, generator=generator)
        rows[layer] = width**-0.5 + 0.3 * tail / torch.arange(1, width + 1)
    anchors = AnchorSet.written([[f"prompt {i}" for i in range(count)]])
    sites = Sites.of(model)
    made = ModelIdentity(display_name(model), sites.family.name)
    return Activations(rows, anchors, trajectory, made, heads=sites.heads())


def measured(ledger: Ledger, wanted: Iterable[Line], turns: int) -> Iterator[Line]:
    """Every one with its turns, those that the ledger has and the others taken now."""
    for each in wanted:
        keys = [(machine(), *each.names, turn) for turn in range(1, turns + 1)]
        missing = [key for key in keys if key not in ledger]
        if missing:
            for key, pair in zip(missing, each.take(len(missing)), strict=True):
                ledger.add(key, {"unit": each.unit, "values": pair})
        values, others = zip(*(ledger[key]["values"] for key in keys), strict=True)
        done = each._replace(values=values, others=others)
        print(done.line(), flush=True)
        yield done


def machine() -> str:
    """What all this was measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{cores} cores ({platform.machine()}), {psutil.virtual_memory().total / 2**30:.0f} GB, "
        f"{torch.get_num_threads()} threads; torch {torch.__version__}, ComfyUI "
        f"{os.environ['PURE_COMFY_VERSION']}, Python {platform.python_version()}, "
        f"models on {get_torch_device()}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--turns", type=int, default=7, help="how often everything is measured, at least twice"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peak", choices=WEIGHED, help="only print the memory of one thing")
    args = parser.parse_args()
    if args.peak:
        print(peak(args.peak))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    ledger, shipped = Ledger(args.out / "speed.jsonl", FIELDS), Shipped()
    wanted = (*time_capture(shipped), *time_joint(), *time_sampling(shipped), *weigh_capture())
    ratios = list(measured(ledger, wanted, args.turns))
    fitted = list(measured(ledger, time_fit(), args.turns))
    text = "\n".join(
        [
            f"Measured on {machine()}.",
            "Medians and, in brackets, quartiles of the turns.",
            "",
            row("measured", "against", "", "", "ratio", "goal"),
            row(*["---"] * 6),
            *(each.line() for each in ratios),
            "",
            row("method, forget + retain rows a layer", "fit", "patch", "together", "goal"),
            row(*["---"] * 5),
            *(each.line() for each in fitted),
            "",
        ]
    )
    (args.out / "speed.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
