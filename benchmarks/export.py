"""Exports full-size U-Nets with random weights: time, memory, and what diffusers makes of them.

    python3 dev.py run benchmarks/export.py -- --family "SD 1.5" --family SDXL

For each family it writes a U-Net file (in float16 1.7 GB for SD 1.5 and 5.1 GB for SDXL, twice
that on the disk for a while), exports it erased as a checkpoint and as a diffusers folder, and
compares the two U-Nets' outputs for the same latents, step and text, computed in float32. The
time of an export is compared with that of copying the file, in turns in one run, both until the
disk has it.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from testbed.comfy import inprocess

inprocess.enter()

from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.eraser import Eraser, LayerEraser, Provenance
from comfyui_pure.pure_core.export import export_checkpoint, export_diffusers
from comfyui_pure.pure_core.families import ModelFile, model_in_file
from comfyui_pure.pure_core.files.eraser import save_eraser
from comfyui_pure.pure_core.model_identity import ModelIdentity
from diffusers import UNet2DConditionModel

from benchmarks.common import RESULTS, ROOT, markdown
from testbed.comfy.families import FAMILIES, build, randomise

DTYPES = {"float16": torch.float16, "float32": torch.float32}
RANK = 64
ROUNDS = 3
HEADS = (
    "family",
    "weights",
    "stored as",
    "file",
    "export / copy",
    "memory beyond the process",
    "largest difference diffusers / ComfyUI",
    "outputs' size",
    "change by erasing",
)


def eraser_for(model: ModelFile) -> Eraser:
    """Random factors of rank 64 for every layer."""
    generator = torch.Generator().manual_seed(1)
    layers = {
        name: LayerEraser(
            torch.randn(d, RANK, generator=generator) / d**0.5,
            torch.randn(RANK, d, generator=generator) / d**0.5,
        )
        for name, d in model.widths().items()
    }
    made = Provenance(
        method="random",
        settings={},
        forget=AnchorSet.written([["none"]]),
        retain=AnchorSet(),
        edit="keys and values",
        model=ModelIdentity("random weights"),
        created="",
        plugin_version="",
    )
    return Eraser(layers, made)


def inputs(family: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents of 256 pixels, two steps, text, and SDXL's pooled text."""
    generator = torch.Generator().manual_seed(2)
    width = FAMILIES[family].unet["context_dim"]
    return (
        torch.randn(2, 4, 32, 32, generator=generator),
        torch.tensor([10.0, 800.0]),
        torch.randn(2, 77, width, generator=generator),
        torch.randn(2, 1280, generator=generator),
    )


TIME_IDS = torch.tensor([[256.0, 256, 0, 0, 256, 256]] * 2)


def sinusoids(numbers: torch.Tensor, width: int = 256) -> torch.Tensor:
    """SDXL's size conditioning as ComfyUI makes it, (b, 6 x 256)."""
    return timestep_embedding(numbers.flatten(), width).reshape(len(numbers), -1)


@torch.no_grad()
def comfy_output(unet: torch.nn.Module, family: str) -> torch.Tensor:
    latents, step, text, pooled = inputs(family)
    extra = {}
    if "adm_in_channels" in FAMILIES[family].unet:
        extra["y"] = torch.cat([pooled, sinusoids(TIME_IDS)], dim=1)
    return unet.float()(latents, step, context=text, **extra)


@torch.no_grad()
def diffusers_output(unet: UNet2DConditionModel, family: str) -> torch.Tensor:
    latents, step, text, pooled = inputs(family)
    extra = {}
    if "adm_in_channels" in FAMILIES[family].unet:
        extra["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": TIME_IDS}
    return unet(latents, step, text, **extra).sample


def timed(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def copy(source: Path, target: Path) -> None:
    """Copy a file and wait until the disk has it, as the exporter does."""
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def peak(*words: object) -> int:
    """Bytes that a run of the command line holds at most."""
    command = [sys.executable, "-m", "pure_core", *map(str, words)]
    with (
        (ROOT / ".dev" / "export.log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=log) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def added_memory(source: Path, eraser: Eraser, folder: Path) -> int:
    """Bytes that exporting takes beyond what the program takes to look into the eraser."""
    saved, target = folder / "eraser.safetensors", folder / "target.safetensors"
    save_eraser(eraser, saved)
    exporting = peak("apply", source, saved, "--any-source", "-o", target)
    target.unlink()
    return exporting - peak("inspect", saved)


def ratio_to_copying(source: Path, erasers: list[Eraser], folder: Path) -> float:
    """Median over rounds of export seconds / copy seconds, in turns."""
    target, ratios = folder / "target.safetensors", []
    for _ in range(ROUNDS):
        copying = timed(lambda: copy(source, target))
        target.unlink()
        ratios.append(
            timed(lambda: export_checkpoint(source, target, erasers, any_source=True)) / copying
        )
        target.unlink()
    return statistics.median(ratios)


def run(family: str, dtype: str) -> list[str]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source.safetensors"
        unet = build(family, torch.device("cpu"))
        randomise(unet, 0)
        unet = unet.to(DTYPES[dtype])
        state = {f"model.diffusion_model.{key}": each for key, each in unet.state_dict().items()}
        save_file(state, source)
        shapes = {key: tuple(each.shape) for key, each in state.items()}
        erasers = [eraser_for(model_in_file(shapes, family))]
        count, size = sum(each.numel() for each in state.values()), source.stat().st_size
        del unet, state
        gc.collect()
        ratio = ratio_to_copying(source, erasers, folder)
        memory = added_memory(source, erasers[0], folder)
        export_diffusers(source, folder / "diffusers", erasers, any_source=True)
        theirs = UNet2DConditionModel.from_pretrained(
            folder / "diffusers", torch_dtype=torch.float32
        ).eval()
        output = diffusers_output(theirs, family)
        del theirs
        shutil.rmtree(folder / "diffusers")
        gc.collect()
        export_checkpoint(source, folder / "erased.safetensors", erasers, any_source=True)
        expected = comfy_output(load(folder / "erased.safetensors", family), family)
        plain = comfy_output(load(source, family), family)
        return [
            family,
            f"{count / 1e9:.2f} B",
            dtype,
            f"{size / 1e9:.1f} GB",
            f"{ratio:.2f}",
            f"{memory / 1e6:.0f} MB",
            f"{float((output - expected).abs().max()):.1e}",
            f"{float(expected.abs().max()):.1f}",
            f"{float((expected - plain).abs().max()):.2f}",
        ]


def load(path: Path, family: str) -> torch.nn.Module:
    """The U-Net with the weights of a file, which are mapped, not copied."""
    unet = build(family, torch.device("meta")).eval()
    state = {key.removeprefix("model.diffusion_model."): t for key, t in load_file(path).items()}
    unet.load_state_dict(state, assign=True)
    return unet


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = [run(family, args.dtype) for family in args.family or ("SD 1.5", "SDXL")]
    table = markdown(HEADS, rows)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "export.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
