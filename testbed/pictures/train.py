"""Trains the models from nothing, stage by stage, and writes their compact weights.

    PURE_COMFY_PATH=<a ComfyUI folder> python -m testbed.pictures.train --work FOLDER --stage STAGE

Stages, in the order in which they need one another: begin (from the compact weights that there are,
if training is to go on where somebody else's ended); data; judge, taesd and vae (the two
autoencoders); text; unet and wan; taesd-decoder and vae-decoder (their decoders once more);
taesd16, which learns vae's latents; sd3 and hunyuan, which learn from wan as well as from the
pictures; export. Each saves its state every few minutes in FOLDER and goes on from there when
started again. Seeds are fixed; results differ between kinds of hardware only by rounding.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from testbed.world import train as world
from testbed.world.networks import TEXT_NARROW, TOKENS, TextEncoder, UNet
from testbed.world.run import Data, Run, autocast, part

from . import vae
from .captions import Caption, caption
from .data import STRANGE_SCENES, TEST_SCENES, TRAIN_SCENES, make_data
from .hunyuan import HunyuanVideo
from .judge import CLASSES, labels, new_judge
from .scene import Scene
from .sd3 import SD3
from .vae import LATENT
from .wan import Wan
from .words import END, known_tokens, rows

STAGES = (
    *("begin", "data", "judge", "taesd", "vae", "text", "unet", "wan"),
    *("taesd-decoder", "vae-decoder", "taesd16", "sd3", "hunyuan", "export"),
)
STEPS = {"judge": 2000, "taesd": 6000, "vae": 1200, "text": 700, "unet": 8000, "wan": 8000}
STEPS |= {"taesd-decoder": 1000, "vae-decoder": 2000, "taesd16": 4000, "sd3": 8000, "hunyuan": 8000}
SHORT = 40
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAST = torch.channels_last


# ---------------------------------------------------------------- judge


def disturb(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift, blur, tint and add noise, so that the judge reads pictures that are not renders."""
    kind = rng.random()
    if kind < 0.6:
        factor = 2 if kind < 0.4 else 3
        small = F.avg_pool2d(pictures, factor)
        soft = F.interpolate(small, size=pictures.shape[-2:], mode="bilinear")
        most = 1.0 if factor == 2 else 0.7
        pictures = torch.lerp(pictures, soft, most * float(rng.random()))
    dy, dx = (int(v) for v in rng.integers(-3, 4, 2))
    padded = F.pad(pictures, (3, 3, 3, 3), mode="replicate")
    pictures = padded[:, :, 3 + dy : 67 + dy, 3 + dx : 67 + dx]
    size, device = (len(pictures), 3, 1, 1), pictures.device
    gain = 1 + 0.12 * (torch.rand(size, device=device) - 0.5)
    offset = 0.08 * (torch.rand(size, device=device) - 0.5)
    return pictures * gain + offset + 0.06 * float(rng.random()) * torch.randn_like(pictures)


def train_judge(work: Path, data: Data[Scene], steps: int) -> Run:
    """A sixth of a batch is strange, so that the judge need not see a concept or a known hand."""
    run = Run("judge", work, new_judge().to(DEVICE), steps, 2e-3)
    targets = {
        name: torch.tensor([labels(s)[name] for s in data.scenes], device=DEVICE)
        for name in CLASSES
    }
    first_strange = TRAIN_SCENES + TEST_SCENES

    def loss_of(rng: np.random.Generator) -> Tensor:
        plain = rng.integers(0, TRAIN_SCENES, 104)
        strange = first_strange + rng.integers(0, STRANGE_SCENES - 500, 24)
        index = np.concatenate([plain, strange])
        logits = run.module(disturb(data.batch(index, DEVICE), rng))
        losses = [F.cross_entropy(logits[name], targets[name][index]) for name in CLASSES]
        return torch.stack(losses).sum()

    run.module.train()
    run.train(loss_of)
    return run


# ---------------------------------------------------------------- autoencoders


def _rebuilding_error(drawn: Tensor, pictures: Tensor) -> Tensor:
    """Absolute error at two scales and of edges, both in [0, 1]."""
    error = drawn - pictures
    coarse = F.avg_pool2d(error, 4).abs().mean()
    across, down = error.diff(dim=3).abs().mean(), error.diff(dim=2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + coarse + 0.5 * (across + down)


def _autoencoder_run(run: Run, data: Data[Scene], *, signed: bool) -> Run:
    """Trained with noise on the latents, whose size is kept near one."""

    def loss_of(rng: np.random.Generator) -> Tensor:
        pictures = data.batch(rng.integers(0, TRAIN_SCENES, 24), DEVICE)
        pictures = pictures.contiguous(memory_format=LAST)
        with autocast(DEVICE):
            latents = run.module.encoder(2 * pictures - 1 if signed else pictures).float()
            drawn = run.module.decoder(latents + 0.05 * torch.randn_like(latents)).float()
        size = (latents.square().mean(dim=(0, 2, 3)) - 1).square().mean()
        centre = latents.mean(dim=(0, 2, 3)).square().mean()
        error = _rebuilding_error((drawn + 1) / 2 if signed else drawn, pictures)
        return error + 0.02 * (size + centre)

    run.train(loss_of)
    return run


def train_taesd(work: Path, data: Data[Scene], steps: int) -> Run:
    """The autoencoder of the SD 1.5 layout, 4 channels."""
    module = world.Autoencoder().to(DEVICE, memory_format=LAST)
    run = Run("taesd", work, module, steps, 3e-3)
    return _autoencoder_run(run, data, signed=False)


def train_vae(work: Path, data: Data[Scene], steps: int) -> Run:
    """The autoencoder of the Wan layout, 16 channels."""
    module = vae.Autoencoder().to(DEVICE, memory_format=LAST)
    run = Run("vae", work, module, steps, 2e-3)
    return _autoencoder_run(run, data, signed=True)


def refine_decoder(work: Path, data: Data[Scene], steps: int, name: str) -> Run:
    """Train only the decoder on: the latents stay, and with them what a model has learned."""
    signed = name == "vae"
    module = finished(work, name).to(memory_format=LAST)
    decoder = module.decoder.train().requires_grad_(True)
    run = Run(f"{name}-decoder", work, decoder, steps, 1.5e-3)

    def loss_of(rng: np.random.Generator) -> Tensor:
        pictures = data.batch(rng.integers(0, TRAIN_SCENES, 24), DEVICE)
        pictures = pictures.contiguous(memory_format=LAST)
        with autocast(DEVICE):
            with torch.no_grad():
                latents = module.encoder(2 * pictures - 1 if signed else pictures).float()
            drawn = run.module(latents + 0.05 * torch.randn_like(latents)).float()
        return _rebuilding_error((drawn + 1) / 2 if signed else drawn, pictures)

    run.train(loss_of)
    return run


def train_taesd16(work: Path, data: Data[Scene], steps: int) -> Run:
    """TAESD between pictures and Wan's latents, begun from the one with four channels."""
    encode(work, data, "vae")
    latents = load_file(work / "latents-vae.safetensors")["latents"]
    mean, deviation = latent_scale(latents)
    module = world.Autoencoder(LATENT)
    own, four = module.state_dict(), trained(work, "taesd").average
    own |= {k: v for k, v in four.items() if v.shape == own[k].shape}
    module.load_state_dict(own)
    run = Run("taesd16", work, module.to(DEVICE, memory_format=LAST), steps, 2e-3)

    def loss_of(rng: np.random.Generator) -> Tensor:
        index = rng.integers(0, TRAIN_SCENES, 24)
        pictures = data.batch(index, DEVICE).contiguous(memory_format=LAST)
        wanted = ((latents[index] - mean) / deviation).to(DEVICE)
        with autocast(DEVICE):
            found = run.module.encoder(pictures).float()
            drawn = run.module.decoder(wanted + 0.05 * torch.randn_like(wanted)).float()
        return _rebuilding_error(drawn, pictures) + 0.1 * (found - wanted).square().mean()

    run.train(loss_of)
    return run


def finished(work: Path, name: str) -> Any:
    """The module of a stage with the running average of its weights, for use."""
    return Run(name, work, MODULES[name]().to(DEVICE), 0, 0.0).averaged()


def trained(work: Path, name: str) -> Run:
    """The state of a stage, an autoencoder's with its decoder refined if it was."""
    run = Run(name, work, MODULES[name](), 0, 0.0)
    if (work / f"{name}-decoder.safetensors").exists():
        refined = Run(f"{name}-decoder", work, run.module.decoder, 0, 0.0)
        run.average |= {f"decoder.{key}": value for key, value in refined.average.items()}
    return run


# ---------------------------------------------------------------- text encoder


UNSAID = "unsaid"
MEANINGS = {name: (*values, UNSAID) for name, values in CLASSES.items()}
"""What a caption says of its scene: field of `Scene` -> its values."""


class Reader(nn.Module):
    """The text encoder with a head per field on its end tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.text = TextEncoder(len(known_tokens()))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(TEXT_NARROW, len(values)) for name, values in MEANINGS.items()}
        )


def meaning(scene: Scene, said: Caption, field: str) -> int:
    """Class number of what a caption says about a field."""
    value = getattr(scene, field) if field in said.says else UNSAID
    return MEANINGS[field].index(value)


def train_text(work: Path, data: Data[Scene], steps: int) -> Run:
    """Teach the text encoder what captions mean, as CLIP's was taught before Stable Diffusion.

    Every end token after a caption has to tell each field of its scene. No word hears a later one,
    so most steps read only the first `SHORT` words, which is all that captions need.
    """
    run = Run("text", work, Reader().to(DEVICE), steps, 2e-3)
    end = known_tokens().index(END)

    def loss_of(rng: np.random.Generator) -> Tensor:
        length = TOKENS if rng.random() < 0.2 else SHORT
        index = rng.integers(0, TRAIN_SCENES, 96)
        words_rng = Random(int(rng.integers(2**31)))
        said = [caption(data.scenes[i], words_rng) for i in index]
        words = rows([c.text for c in said], known_tokens())[:, :length]
        with autocast(DEVICE):
            out = run.module.text(words.to(DEVICE)).float()
        places = torch.multinomial((words == end).float(), 2)
        picked = out[torch.arange(len(words))[:, None], places.to(DEVICE)].flatten(0, 1)
        loss = torch.zeros((), device=DEVICE)
        for field, head in run.module.heads.items():
            meant = [meaning(data.scenes[i], c, field) for i, c in zip(index, said, strict=True)]
            loss = loss + F.cross_entropy(
                head(picked), torch.tensor(meant, device=DEVICE).repeat_interleave(2)
            )
        return loss

    run.train(loss_of)
    return run


# ---------------------------------------------------------------- latents and captions


@torch.no_grad()
def encode(work: Path, data: Data[Scene], name: str) -> None:
    """Everything that a model's training reads again and again, computed once.

    Latents of the training pictures, and what the frozen text encoder says to one caption of each
    (float16, before its final norm); the last row is the empty caption.
    """
    latents = work / f"latents-{name}.safetensors"
    if not latents.exists():
        module = finished(work, name).to(memory_format=LAST)
        parts = []
        for start in range(0, TRAIN_SCENES, 100):
            pictures = data.batch(np.arange(start, start + 100), DEVICE)
            pictures = (2 * pictures - 1) if name == "vae" else pictures
            with autocast(DEVICE):
                found = module.encoder(pictures.contiguous(memory_format=LAST)).float()
            parts.append(found.contiguous().cpu())
        save_file({"latents": torch.cat(parts)}, latents)
    captions = work / "captions.npy"
    if captions.exists():
        return
    text = finished(work, "text").text
    texts = [*_texts(data.scenes), ""]
    partial = work / "captions.partial.npy"
    kept = np.lib.format.open_memmap(
        partial, mode="w+", dtype=np.float16, shape=(len(texts), TOKENS, TEXT_NARROW)
    )
    for start in range(0, len(texts), 100):
        part = texts[start : start + 100]
        with autocast(DEVICE):
            found = text.raw(rows(part, known_tokens()).to(DEVICE))
        kept[start : start + 100] = found.half().cpu().numpy()
    kept.flush()
    partial.replace(captions)


def _texts(scenes: list[Scene]) -> list[str]:
    """One caption of each training picture."""
    rng = Random("captions")
    return [caption(scene, rng).text for scene in scenes[:TRAIN_SCENES]]


class Pairs:
    """Captions with pictures that they fit: of the same concept, hand and background."""

    def __init__(self, work: Path, data: Data[Scene], name: str) -> None:
        self.latents = load_file(work / f"latents-{name}.safetensors")["latents"]
        self.captions = np.load(work / "captions.npy", mmap_mode="r")
        self.scenes = data.scenes[:TRAIN_SCENES]
        alike: dict[Scene, list[int]] = {}
        for i, scene in enumerate(data.scenes[:TRAIN_SCENES]):
            alike.setdefault(scene, []).append(i)
        self.alike = [np.array(alike[scene]) for scene in data.scenes[:TRAIN_SCENES]]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each caption, with start and end."""
        found = _texts(self.scenes)
        ends = rows(found, known_tokens()) == known_tokens().index(END)
        return ends.int().argmax(dim=1).numpy() + 1

    def draw(self, rng: np.random.Generator, texts: int, copies: int) -> tuple[Tensor, Tensor]:
        """Captions (texts, 77, 192) and latents (texts * copies, c, 8, 8); a tenth is empty."""
        return self._read(rng.integers(0, TRAIN_SCENES, texts), rng, copies)

    def draw_alike(self, rng: np.random.Generator, texts: int) -> tuple[Tensor, Tensor, int]:
        """The same of captions of about the same length, and where the longest of them ends."""
        several = 8
        index = rng.integers(0, TRAIN_SCENES, several * texts)
        order = index[np.argsort(self.lengths[index], kind="stable")]
        index = order.reshape(several, texts)[rng.integers(several)]
        tokens = int(self.lengths[index].max())
        return (*self._read(index, rng, 1), tokens)

    def _read(
        self, index: np.ndarray, rng: np.random.Generator, copies: int
    ) -> tuple[Tensor, Tensor]:
        pictures = np.concatenate([rng.choice(self.alike[i], copies) for i in index])
        said = np.where(rng.random(len(index)) < 0.1, TRAIN_SCENES, index)
        captions = torch.from_numpy(self.captions[said]).to(DEVICE).float()
        return captions, self.latents[pictures].to(DEVICE)


# ---------------------------------------------------------------- diffusion


def train_unet(work: Path, data: Data[Scene], steps: int) -> Run:
    """Noise prediction with SD1's schedule; the text encoder stays as it is, as in SD1.

    Steps with little noise weigh less (min-SNR-5, arXiv 2303.09556): what is shown is decided where
    there is much.
    """
    encode(work, data, "taesd")
    pairs = Pairs(work, data, "taesd")
    norm = finished(work, "text").text.final_layer_norm
    run = Run("unet", work, UNet().to(DEVICE), steps, 1e-3)
    alphas = world.alphas_cumprod().to(DEVICE)
    weights = (5 * (1 - alphas) / alphas).clamp(max=1)

    def loss_of(rng: np.random.Generator) -> Tensor:
        raw, clean = pairs.draw(rng, 32, 1)
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (len(clean),), device=DEVICE)
        signal = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        with autocast(DEVICE):
            predicted = run.module(noisy, timesteps, norm(raw))
        error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        return (weights[timesteps] * error).mean()

    run.train(loss_of)
    return run


def latent_scale(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (1, c, 1, 1)."""
    return latents.mean((0, 2, 3), keepdim=True), latents.std((0, 2, 3), keepdim=True)


def train_wan(work: Path, data: Data[Scene], steps: int) -> Run:
    """Rectified flow: from the picture towards the noise, at times drawn around the middle.

    The text's keys and values cost more than the picture's 16 tokens, so each caption serves three
    pictures.
    """
    encode(work, data, "vae")
    pairs = Pairs(work, data, "vae")
    mean, deviation = latent_scale(pairs.latents)
    pairs.latents = (pairs.latents - mean) / deviation
    run = Run("wan", work, Wan().to(DEVICE), steps, 1e-3)

    def loss_of(rng: np.random.Generator) -> Tensor:
        raw, clean = pairs.draw(rng, 24, 3)
        noise = torch.randn_like(clean)
        time = torch.sigmoid(torch.randn(len(clean), device=DEVICE) + 0.3)
        uniform, chance = torch.rand(2, len(clean), device=DEVICE)
        time = torch.where(chance < 0.2, uniform, time)
        level = time.view(-1, 1, 1, 1)
        with autocast(DEVICE):
            flow = run.module(torch.lerp(clean, noise, level), 1000 * time, raw)
        return (flow.float() - (noise - clean)).square().mean()

    run.train(loss_of)
    return run


def train_joint(work: Path, data: Data[Scene], steps: int, name: str) -> Run:
    """A transformer whose text and picture share one attention, in Wan's latents.

    All tokens of a text pass all blocks with every picture, so most steps read captions of about
    the same length up to their end, and only a tenth, and the last fifth of all, all 77 tokens. The
    flow to predict is partly what Wan predicts of the same: unlike the picture it is the mean over
    all pictures that fit, so that far fewer steps do.
    """
    encode(work, data, "vae")
    pairs = Pairs(work, data, "vae")
    mean, deviation = latent_scale(pairs.latents)
    pairs.latents = (pairs.latents - mean) / deviation
    teacher, norm = finished(work, "wan"), finished(work, "text").text.final_layer_norm
    run = Run(name, work, MODULES[name]().to(DEVICE), steps, 1e-3)

    def loss_of(rng: np.random.Generator) -> Tensor:
        done = run.step / run.steps
        if done < 0.8 and rng.random() < 0.9:
            raw, clean, tokens = pairs.draw_alike(rng, 32)
        else:
            (raw, clean), tokens = pairs.draw(rng, 32, 1), TOKENS
        noise = torch.randn_like(clean)
        time = torch.sigmoid(torch.randn(len(clean), device=DEVICE) + 0.3)
        uniform, chance = torch.rand(2, len(clean), device=DEVICE)
        time = torch.where(chance < 0.2, uniform, time)
        noisy = torch.lerp(clean, noise, time.view(-1, 1, 1, 1))
        with autocast(DEVICE):
            with torch.no_grad():
                taught = teacher(noisy, 1000 * time, raw).float()
            said = (norm(raw) if name == "hunyuan" else raw)[:, :tokens]
            flow = run.module(noisy, 1000 * time, said)
        target = torch.lerp(noise - clean, taught, 0.9 - 0.6 * done)
        return (flow.float() - target).square().mean()

    run.train(loss_of)
    return run


def export(work: Path, folder: Path) -> None:
    """Write the compact float16 weights of everything that there is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODULES:
        if not (work / f"{name}.safetensors").exists():
            continue
        run = trained(work, name)
        tensors = {k: v.half().contiguous() for k, v in run.average.items()}
        if name == "text":
            tensors = part(tensors, "text.") | {"tokens": torch.tensor(known_tokens())}
        if name == "vae":
            latents = load_file(work / "latents-vae.safetensors")["latents"]
            mean, deviation = latent_scale(latents)
            tensors |= {"mean": mean.flatten(), "deviation": deviation.flatten()}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"steps": str(run.step)})


def begin(work: Path, folder: Path) -> None:
    """Make the state of every stage whose compact weights there are, to go on from.

    What a weight's optimiser had gathered is not in them, and of the text encoder's stage not its
    heads, which nothing needs after it.
    """
    for name, new in MODULES.items():
        source, target = (each / f"{name}.safetensors" for each in (folder, work))
        if target.exists() or not source.exists():
            continue
        with safe_open(source, "pt") as file:
            step = int(file.metadata()["steps"])
        tensors = {key: each.float() for key, each in load_file(source).items()}
        if name == "text":
            tensors = {f"text.{key}": each for key, each in tensors.items()}
        module = new()
        known = module.state_dict()
        module.load_state_dict({k: v for k, v in tensors.items() if k in known}, strict=False)
        state = module.state_dict()
        saved = {
            f"{kind}.{k}": v.clone() for kind in ("module", "average") for k, v in state.items()
        }
        save_file({**saved, "step": torch.tensor(step)}, target)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "judge": new_judge,
    "taesd": world.Autoencoder,
    "vae": vae.Autoencoder,
    "taesd16": functools.partial(world.Autoencoder, LATENT),
    "text": Reader,
    "unet": UNet,
    "wan": Wan,
    "sd3": SD3,
    "hunyuan": HunyuanVideo,
}

TRAININGS: dict[str, Callable[[Path, Data[Scene], int], Run]] = {
    "judge": train_judge,
    "taesd": train_taesd,
    "vae": train_vae,
    "taesd16": train_taesd16,
    "text": train_text,
    "unet": train_unet,
    "wan": train_wan,
    "taesd-decoder": functools.partial(refine_decoder, name="taesd"),
    "vae-decoder": functools.partial(refine_decoder, name="vae"),
    "sd3": functools.partial(train_joint, name="sd3"),
    "hunyuan": functools.partial(train_joint, name="hunyuan"),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and checkpoints")
    parser.add_argument("--icons", type=Path, help="folder that testbed.pictures.sources filled")
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--steps", type=int, help="length of the stage's training")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    steps = args.steps or STEPS.get(args.stage, 0)
    match args.stage:
        case "begin":
            begin(args.work, args.out)
        case "data":
            make_data(args.work, args.icons or args.work / "icons")
        case "export":
            export(args.work, args.out)
        case stage:
            TRAININGS[stage](args.work, Data(args.work, Scene), steps)


if __name__ == "__main__":
    main()
