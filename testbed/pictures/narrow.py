"""The models in their narrow form, outside ComfyUI: the same functions, much faster.

The benchmarks measure with them, and `tests/comfy/test_pictures.py` compares them with ComfyUI on
the files that `expand.py` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from testbed.world import narrow as world
from testbed.world.networks import Decoder, TextEncoder, UNet

from . import vae
from .hunyuan import HunyuanVideo
from .sd3 import SD3
from .transformer import JointAttention, attend
from .wan import Attention, Wan
from .words import rows

WEIGHTS = Path(__file__).parent / "weights"
MODELS = ("unet", "wan", "sd3", "hunyuan")

SHIFT = 3.0
"""What ModelSamplingSD3 is set to for the transformers."""

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


@dataclass(frozen=True)
class NarrowFlow:
    """Text encoder, a transformer that is a rectified flow, and decoder, float32."""

    text: TextEncoder
    transformer: Any
    decoder: vae.Decoder | Decoder
    """Wan's, or TAESD's, which takes the transformer's own latents."""

    mean: Tensor
    """Of each channel of the autoencoder's latents (16, 1, 1); the transformer's have mean 0."""

    deviation: Tensor
    tokens: tuple[int, ...]
    normed: bool = False
    """Whether the transformer reads text behind the encoder's final norm."""

    def encode(self, texts: list[str]) -> Tensor:
        """What the last layer of the text encoder says (b, 77, 192), with its final norm or not."""
        words = rows(texts, self.tokens)
        return self.text(words) if self.normed else self.text.raw(words)

    def given(self, context: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Latents and times to the flow, for texts that are encoded."""
        return lambda x, t: self.transformer(x, t, context)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (b, 16, 8, 8) to pictures (b, 3, 64, 64) in [0, 1]."""
        if isinstance(self.decoder, Decoder):
            return self.decoder(latents).clamp(0, 1)
        drawn = self.decoder(latents * self.deviation + self.mean)
        return ((drawn + 1) / 2).clamp(0, 1)


@dataclass(frozen=True)
class NarrowWan(NarrowFlow):
    """With cross-attention, so that a text is read once, not in every step."""

    transformer: Wan

    def given(self, context: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        reads = self.transformer.read(context)
        return lambda x, t: self.transformer.flow(x, t, reads)

    def cross_attention(self) -> dict[str, Attention]:
        """Cross-attention layers under their names in the layout."""
        return {
            f"blocks.{i}.cross_attn": block.cross_attn
            for i, block in enumerate(self.transformer.blocks)
        }


@dataclass(frozen=True)
class NarrowJoint(NarrowFlow):
    """With text and picture in one attention."""

    def joint_attention(self) -> dict[str, JointAttention]:
        """Block -> its attention."""
        return {
            name.removesuffix(".attention"): module
            for name, module in self.transformer.named_modules()
            if isinstance(module, JointAttention)
        }


def _around(transformer: nn.Module, name: str, weights: Path) -> dict[str, Any]:
    """The parts of a model, its transformer filled with the weights of that name."""
    text, flow, own = (load_file(weights / f"{n}.safetensors") for n in ("text", name, "vae"))
    tokens = tuple(text.pop("tokens").tolist())
    mean, deviation = (own[part].float().view(-1, 1, 1) for part in ("mean", "deviation"))
    return {
        "text": _fill(TextEncoder(len(tokens)), text),
        "transformer": _fill(transformer, flow),
        "decoder": _fill(vae.Decoder(), _decoder(own)),
        "mean": mean,
        "deviation": deviation,
        "tokens": tokens,
    }


def load_wan(weights: Path = WEIGHTS) -> NarrowWan:
    """The Wan layout in float32."""
    return NarrowWan(**_around(Wan(), "wan", weights))


def load_sd3(weights: Path = WEIGHTS) -> NarrowJoint:
    """The SD3 layout in float32."""
    parts = _around(SD3(), "sd3", weights)
    taesd = load_file(weights / "taesd16.safetensors")
    return NarrowJoint(**{**parts, "decoder": _fill(Decoder(vae.LATENT), _decoder(taesd))})


def load_hunyuan(weights: Path = WEIGHTS) -> NarrowJoint:
    """The HunyuanVideo layout in float32."""
    return NarrowJoint(**_around(HunyuanVideo(), "hunyuan", weights), normed=True)


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
def sample_flow(
    model: NarrowFlow,
    texts: list[str],
    noise: Tensor,
    *,
    steps: int = STEPS,
    cfg: float = CFG,
    shift: float = SHIFT,
    scheduler: str = "simple",
    run_steps: int | None = None,
) -> Tensor:
    """Euler sampling of one latent (16, 8, 8) per text; conditional rows come first in a call."""
    context = torch.cat([model.encode(texts), model.encode([""]).expand(len(texts), -1, -1)])
    predict = model.given(context)
    levels = flow_sigmas(steps, shift, scheduler)
    x = noise * levels[0]
    for i in range(run_steps or steps):
        t = (1000 * levels[i]).expand(2 * len(texts))
        flow, empty = predict(x.repeat(2, 1, 1, 1), t).chunk(2)
        x = x + (empty + cfg * (flow - empty)) * (levels[i + 1] - levels[i])
    return x


@torch.no_grad()
def flow_pictures(
    model: NarrowFlow, texts: list[str], seed: int = 0, steps: int = STEPS, cfg: float = CFG
) -> Tensor:
    """Pictures (b, 3, 64, 64) in [0, 1], in batches of 32."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(texts), 16, 8, 8, generator=generator)
    out = []
    for start in range(0, len(texts), 32):
        part = slice(start, start + 32)
        out.append(model.decode(sample_flow(model, texts[part], noise[part], steps=steps, cfg=cfg)))
    return torch.cat(out)


sample_wan, wan_pictures = sample_flow, flow_pictures
FLOWS: dict[str, Callable[[Path], NarrowFlow]] = {
    "wan": load_wan,
    "sd3": load_sd3,
    "hunyuan": load_hunyuan,
}


def sampler(name: str, weights: Path = WEIGHTS, cfg: float = CFG) -> Callable[[list[str]], Tensor]:
    """Prompts to pictures by one of `MODELS`."""
    if name == "unet":
        unet = load_unet(weights)
        return lambda texts: world.pictures(unet, texts, steps=STEPS, cfg=cfg)
    flow = FLOWS[name](weights)
    return lambda texts: flow_pictures(flow, texts, cfg=cfg)


@contextmanager
def recording(model: NarrowWan, cells: int = 1) -> Iterator[world.Recorded]:
    """Collect activations for as long as the block runs; the U-Net has the drawn world's."""
    outputs = {name: layer.o for name, layer in model.cross_attention().items()}
    with world.recording_inputs(outputs, cells) as found:
        yield found


Part = Literal["text", "picture", "both"]
"""Whose values h is made of."""


@contextmanager
def recording_joint(
    model: NarrowJoint, cells: int = 1, part: Part = "text"
) -> Iterator[world.Recorded]:
    """Collect what the picture's tokens read, of the text's values, the picture's or both."""
    attentions = model.joint_attention()
    listeners = {name: nn.Identity() for name in attentions}

    def hear(name: str, inputs: tuple[Any, ...]) -> None:
        q, k, v, text = inputs
        v = v.clone()
        if part != "both":
            v[:, :, slice(text, None) if part == "text" else slice(text)] = 0
        listeners[name](attend(q[:, :, text - k.shape[2] :], k, v))

    with ExitStack() as hooks, world.recording_inputs(listeners, cells) as found:
        for name, attention in attentions.items():
            hook = attention.register_forward_pre_hook(lambda _, own, name=name: hear(name, own))
            hooks.callback(hook.remove)
        yield found
