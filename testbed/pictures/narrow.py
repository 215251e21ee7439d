"""Both models in their narrow form, outside ComfyUI: the same functions, much faster.

The benchmarks measure with them, and `tests/comfy/test_pictures.py` compares them with ComfyUI on
the files that `expand.py` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from testbed.world import narrow as world
from testbed.world.networks import Decoder, TextEncoder, UNet

from . import vae
from .wan import Attention, Wan
from .words import rows

WEIGHTS = Path(__file__).parent / "weights"
MODELS = ("unet", "wan")
SHIFT = 3.0
"""What ModelSamplingSD3 is set to for the Wan layout."""

CFG = 3.0
STEPS = 20


def _fill(module: nn.Module, tensors: dict[str, Tensor]) -> Any:
    module.load_state_dict({key: value.float() for key, value in tensors.items()})
    return module.eval().requires_grad_(False)


def _decoder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = "decoder."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def load_unet(weights: Path = WEIGHTS) -> world.NarrowModel:
    """The SD 1.5 layout in float32: the same class as the drawn world's model."""
    text, unet, taesd = (load_file(weights / f"{n}.safetensors") for n in ("text", "unet", "taesd"))
    tokens = tuple(text.pop("tokens").tolist())
    return world.NarrowModel(
        _fill(TextEncoder(len(tokens)), text),
        _fill(UNet(), unet),
        _fill(Decoder(), _decoder(taesd)),
        tokens,
    )


class NarrowWan(NamedTuple):
    """Text encoder, transformer and decoder, float32."""

    text: TextEncoder
    transformer: Wan
    decoder: vae.Decoder
    mean: Tensor
    """Of each channel of the autoencoder's latents (16, 1, 1); the transformer's have mean 0."""

    deviation: Tensor
    tokens: tuple[int, ...]

    def encode(self, texts: list[str]) -> Tensor:
        """What the last layer of the text encoder says, before the final norm (b, 77, 192)."""
        return self.text.raw(rows(texts, self.tokens))

    def cross_attention(self) -> dict[str, Attention]:
        """Cross-attention layers under their names in the layout."""
        return {
            f"blocks.{i}.cross_attn": block.cross_attn
            for i, block in enumerate(self.transformer.blocks)
        }

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (b, 16, 8, 8) to pictures (b, 3, 64, 64) in [0, 1]."""
        drawn = self.decoder(latents * self.deviation + self.mean)
        return ((drawn + 1) / 2).clamp(0, 1)


def load_wan(weights: Path = WEIGHTS) -> NarrowWan:
    """The Wan layout in float32."""
    text, wan, own = (load_file(weights / f"{n}.safetensors") for n in ("text", "wan", "vae"))
    tokens = tuple(text.pop("tokens").tolist())
    mean, deviation = (own[name].float().view(-1, 1, 1) for name in ("mean", "deviation"))
    return NarrowWan(
        _fill(TextEncoder(len(tokens)), text),
        _fill(Wan(), wan),
        _fill(vae.Decoder(), _decoder(own)),
        mean,
        deviation,
        tokens,
    )


def shifted(times: Tensor, shift: float) -> Tensor:
    """A rectified flow's times (0 to 1), moved towards the noise."""
    return shift * times / (1 + (shift - 1) * times)


def flow_sigmas(steps: int, shift: float = SHIFT, scheduler: str = "simple") -> Tensor:
    """ComfyUI's "simple" or "normal" schedule of a rectified flow: from 1, then zero."""
    table = shifted(torch.arange(1, 1001, dtype=torch.float64) / 1000, shift)
    if scheduler == "simple":
        picked = torch.stack([table[-(1 + int(i * len(table) / steps))] for i in range(steps)])
    elif scheduler == "normal":
        picked = shifted(torch.linspace(1, float(table[0]), steps, dtype=torch.float64), shift)
    else:
        raise ValueError(f"scheduler: expected simple or normal, got {scheduler}")
    return torch.cat([picked, torch.zeros(1, dtype=torch.float64)]).float()


@torch.no_grad()
def sample_wan(
    model: NarrowWan,
    texts: list[str],
    noise: Tensor,
    *,
    steps: int = STEPS,
    cfg: float = CFG,
    shift: float = SHIFT,
    scheduler: str = "simple",
    run_steps: int | None = None,
) -> Tensor:
    """Euler sampling of one latent (16, 8, 8) per text; conditional rows come first in a call.

    The text is read once, not in every step.
    """
    context = torch.cat([model.encode(texts), model.encode([""]).expand(len(texts), -1, -1)])
    reads = model.transformer.read(context)
    levels = flow_sigmas(steps, shift, scheduler)
    x = noise * levels[0]
    for i in range(run_steps or steps):
        t = (1000 * levels[i]).expand(2 * len(texts))
        flow, empty = model.transformer.flow(x.repeat(2, 1, 1, 1), t, reads).chunk(2)
        x = x + (empty + cfg * (flow - empty)) * (levels[i + 1] - levels[i])
    return x


@torch.no_grad()
def wan_pictures(
    model: NarrowWan, texts: list[str], seed: int = 0, steps: int = STEPS, cfg: float = CFG
) -> Tensor:
    """Pictures (b, 3, 64, 64) in [0, 1], in batches of 32."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(texts), 16, 8, 8, generator=generator)
    out = []
    for start in range(0, len(texts), 32):
        part = slice(start, start + 32)
        out.append(model.decode(sample_wan(model, texts[part], noise[part], steps=steps, cfg=cfg)))
    return torch.cat(out)


def sampler(name: str, weights: Path = WEIGHTS, cfg: float = CFG) -> Callable[[list[str]], Tensor]:
    """Prompts to pictures by one of `MODELS`."""
    if name == "unet":
        unet = load_unet(weights)
        return lambda texts: world.pictures(unet, texts, steps=STEPS, cfg=cfg)
    wan = load_wan(weights)
    return lambda texts: wan_pictures(wan, texts, cfg=cfg)


@contextmanager
def recording(model: NarrowWan, cells: int = 1) -> Iterator[world.Recorded]:
    """Collect activations for as long as the block runs; the U-Net has the drawn world's."""
    outputs = {name: layer.o for name, layer in model.cross_attention().items()}
    with world.recording_inputs(outputs, cells) as found:
        yield found
