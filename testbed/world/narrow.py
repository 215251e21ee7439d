"""The small model in its narrow form, outside ComfyUI: the same function some ten times faster.

The benchmarks measure with it, and `tests/comfy/test_shipped_model.py` compares it with ComfyUI on
the wide checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .networks import Attention, Decoder, TextEncoder, UNet
from .train import alphas_cumprod
from .words import rows

LAYERS = {
    "in_attn.0": "input_blocks.1.1",
    "in_attn.1": "input_blocks.3.1",
    "mid_attn": "middle_block.1",
    **{f"out_attn.{i}": f"output_blocks.{i}.1" for i in range(4)},
}


class NarrowModel(NamedTuple):
    """Text encoder, U-Net and decoder, float32."""

    text: TextEncoder
    unet: UNet
    decoder: Decoder
    tokens: tuple[int, ...]
    """The tokens it knows, in the order of its embedding."""

    def encode(self, texts: list[str]) -> Tensor:
        """Text embeddings (b, 77, 192)."""
        return self.text(rows(texts, self.tokens))

    def cross_attention(self) -> dict[str, Attention]:
        """Cross-attention layers under their names in the checkpoint."""
        return {
            f"{name}.transformer_blocks.0.attn2": self.unet.get_submodule(f"{own}.attn2")
            for own, name in LAYERS.items()
        }


def load(weights: Path) -> NarrowModel:
    """The compact weights in float32."""

    def fill(module: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        module.load_state_dict({key: value.float() for key, value in tensors.items()})
        return module.eval().requires_grad_(False)

    text, unet, autoencoder = (
        load_file(weights / f"{name}.safetensors") for name in ("text", "unet", "autoencoder")
    )
    tokens = tuple(text.pop("tokens").tolist())
    decoder = {
        key.removeprefix("decoder."): value
        for key, value in autoencoder.items()
        if key.startswith("decoder.")
    }
    return NarrowModel(
        fill(TextEncoder(len(tokens)), text),
        fill(UNet(), unet),
        fill(Decoder(), decoder),
        tokens,
    )


def sigmas(steps: int) -> Tensor:
    """ComfyUI's "normal" schedule: evenly spaced timesteps, then zero."""
    alphas = alphas_cumprod().double()
    table = ((1 - alphas) / alphas).sqrt().log()
    t = torch.linspace(999, 0, steps, dtype=torch.float64)
    low = t.floor().long()
    high = (low + 1).clamp(max=999)
    values = torch.lerp(table[low], table[high], t - low).exp()
    return torch.cat([values, torch.zeros(1)]).float()


@torch.no_grad()
def sample(
    model: NarrowModel,
    texts: list[str],
    noise: Tensor,
    *,
    steps: int = 20,
    cfg: float = 4.0,
    run_steps: int | None = None,
) -> Tensor:
    """Euler sampling of one latent (4, 8, 8) per text; conditional rows come first in a call."""
    context = torch.cat([model.encode(texts), model.encode([""]).expand(len(texts), -1, -1)])
    table = alphas_cumprod()
    log_sigmas = ((1 - table) / table).sqrt().log()
    levels = sigmas(steps)
    x = noise * (1 + levels[0] ** 2).sqrt()
    for i in range(run_steps or steps):
        sigma = levels[i]
        t = (sigma.log() - log_sigmas).abs().argmin().expand(2 * len(texts))
        scaled = x / (1 + sigma**2).sqrt()
        eps, eps_empty = model.unet(scaled.repeat(2, 1, 1, 1), t, context).chunk(2)
        x = x + (eps_empty + cfg * (eps - eps_empty)) * (levels[i + 1] - sigma)
    return x


@torch.no_grad()
def pictures(
    model: NarrowModel, texts: list[str], seed: int = 0, steps: int = 20, cfg: float = 4.0
) -> Tensor:
    """Pictures (b, 3, 64, 64) in [0, 1], in batches of 32."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(texts), 4, 8, 8, generator=generator)
    out = []
    for start in range(0, len(texts), 32):
        part = slice(start, start + 32)
        out.append(model.decoder(sample(model, texts[part], noise[part], steps=steps, cfg=cfg)))
    return torch.cat(out).clamp(0, 1)


class Recorded(NamedTuple):
    """The inputs of every `to_out` of cross-attention, a tensor for each call of the U-Net."""

    cells: dict[str, list[Tensor]]
    """Layer -> means over the cells of a grid, (b, cells^2, d)."""

    means: dict[str, list[Tensor]]
    """Layer -> means over the whole picture, (b, d)."""


@contextmanager
def recording_inputs(projections: dict[str, nn.Module], cells: int = 1) -> Iterator[Recorded]:
    """Collect what these layers are given, (b, side^2, d) in each call, while the block runs."""
    found = Recorded({name: [] for name in projections}, {name: [] for name in projections})

    def keep(name: str, h: Tensor) -> None:
        side = math.isqrt(h.shape[1])
        picture = h.transpose(1, 2).unflatten(2, (side, side))
        parts = nn.functional.adaptive_avg_pool2d(picture, cells)
        found.cells[name].append(parts.flatten(2).transpose(1, 2))
        found.means[name].append(h.mean(1))

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0]))
        for name, layer in projections.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def recording(model: NarrowModel, cells: int = 1) -> Iterator[Recorded]:
    """Collect activations for as long as the block runs."""
    outputs = {name: layer.to_out for name, layer in model.cross_attention().items()}
    with recording_inputs(outputs, cells) as found:
        yield found
