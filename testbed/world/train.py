"""Trains the small model from nothing, stage by stage, and writes its compact weights.

    python -m testbed.world.train --work FOLDER [--stage STAGE]

Stages: data, judge, autoencoder, text, diffusion, export.

Stages run in that order when none is named. Each saves its state every few minutes in FOLDER and
goes on from there when started again. On two CPU cores the whole takes about two hours, on a GPU
minutes. Seeds are fixed; results differ between kinds of hardware only by rounding.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .captions import caption
from .judge import CLASSES, labels, new_judge
from .networks import TEXT_NARROW, Decoder, Encoder, TextEncoder, UNet
from .render import render
from .run import Data, Run, autocast, part
from .scene import Scene, random_scene
from .vocabulary import (
    BACKGROUNDS,
    BODIES,
    CHARACTERS,
    COLOURS,
    COVERS,
    EYES,
    OBJECTS,
    PATTERNS,
    STYLES,
    TOPS,
)
from .words import END, known_tokens, rows

TRAIN_SCENES, TEST_SCENES, CHUNK = 60_000, 3_000, 1_000
STAGES = ("data", "judge", "autoencoder", "text", "diffusion", "export")

MEANINGS: dict[str, tuple[str | None, ...]] = {
    "subject": (*OBJECTS, "creature", "nothing", "scrap"),
    "character": (None, *CHARACTERS),
    "colour": tuple(COLOURS),
    "pattern": tuple(PATTERNS),
    "background": tuple(BACKGROUNDS),
    "style": (None, *STYLES),
    "cover": tuple(COVERS),
    "body": (None, *BODIES),
    "top": (None, *TOPS),
    "eyes": (None, *EYES),
}
"""What a caption says of its scene: field of `Scene` -> its values."""


def alphas_cumprod() -> Tensor:
    """SD1's scaled-linear schedule, 1000 values."""
    betas = torch.linspace(0.00085**0.5, 0.0120**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


# ---------------------------------------------------------------- data


def _draw_chunk(number: int) -> tuple[np.ndarray, list[dict[str, str | None]]]:
    rng = Random(1_000_003 + number)
    scenes = [random_scene(rng) for _ in range(CHUNK)]
    return np.stack([render(scene, rng) for scene in scenes]), [asdict(scene) for scene in scenes]


def make_data(work: Path) -> None:
    """Draw the scenes and keep pictures (n, 64, 64, 3) and what they show."""
    if (work / "scenes.json").exists():
        return
    chunks = (TRAIN_SCENES + TEST_SCENES) // CHUNK
    with concurrent.futures.ProcessPoolExecutor() as pool:
        drawn = list(pool.map(_draw_chunk, range(chunks)))
    np.save(work / "pictures.npy", np.concatenate([pictures for pictures, _ in drawn]))
    (work / "scenes.json").write_text(json.dumps([s for _, scenes in drawn for s in scenes]))


# ---------------------------------------------------------------- stages


def train_judge(work: Path, data: Data[Scene], device: torch.device, steps: int) -> Run:
    """The judge sees shifted, blurred and noisy pictures too, so that it reads drawings it did not
    make, and empty or meaningless scenes, so that it is not forced to see an object."""
    run = Run("judge", work, new_judge().to(device), steps, 2e-3)
    targets = {name: torch.stack([labels(s)[name] for s in data.scenes]) for name in CLASSES}

    def loss_of(rng: np.random.Generator) -> Tensor:
        index = np.sort(rng.integers(0, TRAIN_SCENES, 128))
        pictures = _disturb(data.batch(index, device), rng)
        with autocast(device):
            logits = run.module(pictures)
        return sum(
            F.cross_entropy(logits[n].float(), targets[n][index].to(device), ignore_index=-1)
            for n in CLASSES
        )

    run.module.train()
    run.train(loss_of)
    return run


def _disturb(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    kind = rng.random()
    if kind < 0.5:
        small = F.avg_pool2d(pictures, 2)
        soft = F.interpolate(small, scale_factor=2, mode="bilinear")
        pictures = torch.lerp(pictures, soft, float(rng.random()))
    dy, dx = (int(v) for v in rng.integers(-2, 3, 2))
    padded = F.pad(pictures, (2, 2, 2, 2), mode="replicate")
    pictures = padded[:, :, 2 + dy : 66 + dy, 2 + dx : 66 + dx]
    return pictures + 0.06 * float(rng.random()) * torch.randn_like(pictures)


class Autoencoder(nn.Module):
    """Encoder and decoder, trained together."""

    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(latent), Decoder(latent)


def train_autoencoder(work: Path, data: Data[Scene], device: torch.device, steps: int) -> Run:
    """Absolute error at two scales, with noise on the latents, whose size is kept near one."""
    module = Autoencoder().to(device, memory_format=torch.channels_last)
    run = Run("autoencoder", work, module, steps, 2e-3)

    def loss_of(rng: np.random.Generator) -> Tensor:
        pictures = data.batch(np.sort(rng.integers(0, TRAIN_SCENES, 48)), device)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with autocast(device):
            latents = module.encoder(pictures).float()
            noisy = latents + 0.08 * torch.randn_like(latents)
            error = module.decoder(noisy).float() - pictures
        size = (latents.square().mean(dim=(0, 2, 3)) - 1).square().mean()
        centre = latents.mean(dim=(0, 2, 3)).square().mean()
        coarse = F.avg_pool2d(error, 4).abs().mean()
        return error.abs().mean() + 2 * error.square().mean() + coarse + 0.02 * (size + centre)

    run.train(loss_of)
    return run


class Reader(nn.Module):
    """The text encoder with a head per attribute on its end tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.text = TextEncoder(len(known_tokens()))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(TEXT_NARROW, len(values)) for name, values in MEANINGS.items()}
        )


def train_text(work: Path, data: Data[Scene], device: torch.device, steps: int) -> Run:
    """Teach the text encoder what captions mean, as CLIP's was taught before Stable Diffusion.

    Every end token after a caption has to tell each attribute of its scene. Trained only through
    the U-Net, the subject's one token in 77 was still ignored after 2,500 steps.
    """
    run = Run("text", work, Reader().to(device), steps, 2e-3)
    batches = _caption_batches(data, run.step, steps, 96)

    def loss_of(rng: np.random.Generator) -> Tensor:
        index, words = next(batches)
        with autocast(device):
            out = run.module.text(words.to(device)).float()
        ends = (words == known_tokens().index(END)).float()
        places = torch.multinomial(ends, 2)
        picked = out[torch.arange(len(words))[:, None], places.to(device)]
        loss = torch.zeros((), device=device)
        for name, values in MEANINGS.items():
            meant = [values.index(getattr(data.scenes[i], name)) for i in index]
            logits = run.module.heads[name](picked).flatten(0, 1)
            loss = loss + F.cross_entropy(
                logits, torch.tensor(meant, device=device).repeat_interleave(2)
            )
        return loss

    run.train(loss_of)
    return run


def train_unet(
    work: Path, data: Data[Scene], autoencoder: Autoencoder, text: TextEncoder, steps: int
) -> Run:
    """Noise prediction with SD1's schedule; the text encoder stays as it is, as in SD1.

    A tenth of the captions is empty. Steps with little noise weigh less (min-SNR-5, arXiv
    2303.09556): what is shown is decided where there is much.
    """
    device = next(text.parameters()).device
    latents = _encode(work / "latents.safetensors", data, autoencoder, device)
    run = Run("unet", work, UNet().to(device), steps, 1.2e-3)
    alphas = alphas_cumprod().to(device)
    weights = (5 * (1 - alphas) / alphas).clamp(max=1)
    batches = _caption_batches(data, run.step, steps, 64)

    def loss_of(rng: np.random.Generator) -> Tensor:
        index, words = next(batches)
        clean = latents[index].to(device)
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (len(index),), device=device)
        signal = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        with autocast(device):
            with torch.no_grad():
                context = text(words.to(device))
            predicted = run.module(noisy, timesteps, context)
        error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        return (weights[timesteps] * error).mean()

    run.train(loss_of)
    return run


def _caption_batches(
    data: Data[Scene], start: int, steps: int, size: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    for step in range(start, steps):
        rng = np.random.default_rng(step)
        index = np.sort(rng.integers(0, TRAIN_SCENES, size))
        words_rng = Random(step)
        texts = [
            "" if words_rng.random() < 0.1 else caption(data.scenes[i], words_rng) for i in index
        ]
        yield index, rows(texts, known_tokens())


@torch.no_grad()
def _encode(
    file: Path, data: Data[Scene], autoencoder: Autoencoder, device: torch.device
) -> Tensor:
    if file.exists():
        return load_file(file)["latents"]
    parts = []
    for start in range(0, TRAIN_SCENES, 100):
        pictures = data.batch(np.arange(start, start + 100), device)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        parts.append(autoencoder.encoder(pictures).contiguous().cpu())
    latents = torch.cat(parts)
    save_file({"latents": latents}, file)
    return latents


def export(work: Path, runs: dict[str, Run], folder: Path) -> None:
    """Write the compact float16 weights of everything."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, run in runs.items():
        tensors = {k: v.half().contiguous().cpu() for k, v in run.average.items()}
        if name == "text":
            tensors = part(tensors, "text.") | {"tokens": torch.tensor(known_tokens())}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"steps": str(run.step)})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and checkpoints")
    parser.add_argument("--stage", choices=STAGES, help="only this stage")
    parser.add_argument("--judge-steps", type=int, default=2500)
    parser.add_argument("--autoencoder-steps", type=int, default=5000)
    parser.add_argument("--text-steps", type=int, default=1500)
    parser.add_argument("--diffusion-steps", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = STAGES if args.stage is None else (args.stage,)

    make_data(args.work)
    data = Data(args.work, Scene)
    runs: dict[str, Run] = {}
    if {"judge", "export"} & set(wanted):
        steps = args.judge_steps if "judge" in wanted else 0
        runs["judge"] = train_judge(args.work, data, device, steps)
    if {"autoencoder", "diffusion", "export"} & set(wanted):
        steps = args.autoencoder_steps if "autoencoder" in wanted else 0
        runs["autoencoder"] = train_autoencoder(args.work, data, device, steps)
    if {"text", "diffusion", "export"} & set(wanted):
        runs["text"] = train_text(
            args.work, data, device, args.text_steps if "text" in wanted else 0
        )
    if {"diffusion", "export"} & set(wanted):
        steps = args.diffusion_steps if "diffusion" in wanted else 0
        autoencoder, reader = runs["autoencoder"].averaged(), runs["text"].averaged()
        assert isinstance(autoencoder, Autoencoder)
        assert isinstance(reader, Reader)
        runs["unet"] = train_unet(args.work, data, autoencoder, reader.text, steps)
    if "export" in wanted:
        export(args.work, runs, args.out)


if __name__ == "__main__":
    main()
