"""Writes the small model as a Stable Diffusion 1.5 checkpoint that stock ComfyUI loads.

    python -m testbed.world.expand TARGET.safetensors

The narrow weights are scattered into zero tensors of the wide layout (see `networks.py`); both
compute the same function.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .networks import (
    DECODER_BLOCKS,
    ENCODER_BLOCKS,
    HEADS,
    LATENT_SCALE,
    NARROW,
    NARROW_HEAD,
    TEXT_NARROW,
    TEXT_WIDE,
    TIME_NARROW,
    TIME_WIDE,
    TOKENS,
    WIDE,
    WIDE_HEAD,
)

WEIGHTS = Path(__file__).parent / "weights"
VOCABULARY = 49408
TEXT_ALL_LAYERS = 12
TAESD_WIDTH = 64

CHANNEL = torch.tensor([10 * (c // 3) + c % 3 for c in range(NARROW)])
SKIPPED = torch.cat([CHANNEL, WIDE + CHANNEL])
INNER = torch.tensor([WIDE_HEAD * h + i for h in range(HEADS) for i in range(NARROW_HEAD)])
HIDDEN = torch.arange(4 * NARROW)
GATED = torch.cat([HIDDEN, 4 * WIDE + HIDDEN])
TIME = torch.arange(TIME_NARROW)
TEXT = torch.arange(TEXT_NARROW)
TEXT_HIDDEN = torch.arange(4 * TEXT_NARROW)


def _put(narrow: Tensor, shape: tuple[int, ...], *index: Tensor | None) -> Tensor:
    """A zero tensor of the wide shape with the narrow one at these rows (and columns)."""
    wide = torch.zeros(shape, dtype=narrow.dtype)
    if len(index) == 1 or index[1] is None:
        wide[index[0]] = narrow
    elif index[0] is None:
        wide[:, index[1]] = narrow
    else:
        wide[index[0][:, None], index[1]] = narrow
    return wide


class _Writer:
    """Collects wide tensors under their checkpoint names."""

    def __init__(self, narrow: dict[str, Tensor]) -> None:
        self.narrow = narrow
        self.out: dict[str, Tensor] = {}

    def vector(self, source: str, target: str, size: int, rows: Tensor) -> None:
        self.out[target] = _put(self.narrow[source], (size,), rows)

    def norm(self, source: str, target: str, size: int, rows: Tensor) -> None:
        for part in ("weight", "bias"):
            self.vector(f"{source}.{part}", f"{target}.{part}", size, rows)

    def layer(
        self,
        source: str,
        target: str,
        out: tuple[int, Tensor | None],
        into: tuple[int, Tensor | None],
    ) -> None:
        """A linear or convolution layer; `out` and `into`: wide size, where the real ones are."""
        weight = self.narrow[f"{source}.weight"]
        shape = (out[0], into[0], *weight.shape[2:])
        self.out[f"{target}.weight"] = _put(weight, shape, out[1], into[1])
        if f"{source}.bias" in self.narrow:
            rows = torch.arange(out[0]) if out[1] is None else out[1]
            self.vector(f"{source}.bias", f"{target}.bias", out[0], rows)


def unet_tensors(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    """The wide U-Net, keys as below `model.diffusion_model.`."""
    w = _Writer(narrow)
    channels, skipped, inner = (WIDE, CHANNEL), (2 * WIDE, SKIPPED), (WIDE, INNER)
    time, text = (TIME_WIDE, TIME), (TEXT_WIDE, TEXT)
    w.layer("time_in", "time_embed.0", time, (WIDE, None))
    w.layer("time_out", "time_embed.2", time, time)
    w.layer("conv_in", "input_blocks.0.0", channels, (4, None))
    w.layer("down", "input_blocks.2.0.op", channels, channels)
    w.layer("up", "output_blocks.1.2.conv", channels, channels)
    w.norm("out_norm", "out.0", *channels)
    w.layer("conv_out", "out.2", (4, None), channels)

    residual = {"in_res.0": "input_blocks.1.0", "in_res.1": "input_blocks.3.0"}
    residual |= {"mid_res.0": "middle_block.0", "mid_res.1": "middle_block.2"}
    residual |= {f"out_res.{i}": f"output_blocks.{i}.0" for i in range(4)}
    for source, target in residual.items():
        into = skipped if source.startswith("out_res") else channels
        w.norm(f"{source}.in_norm", f"{target}.in_layers.0", *into)
        w.layer(f"{source}.in_conv", f"{target}.in_layers.2", channels, into)
        w.layer(f"{source}.emb", f"{target}.emb_layers.1", channels, time)
        w.norm(f"{source}.out_norm", f"{target}.out_layers.0", *channels)
        w.layer(f"{source}.out_conv", f"{target}.out_layers.3", channels, channels)
        if into is skipped:
            w.layer(f"{source}.skip", f"{target}.skip_connection", channels, into)

    transformers = {"in_attn.0": "input_blocks.1.1", "in_attn.1": "input_blocks.3.1"}
    transformers |= {"mid_attn": "middle_block.1"}
    transformers |= {f"out_attn.{i}": f"output_blocks.{i}.1" for i in range(4)}
    for source, target in transformers.items():
        block = f"{target}.transformer_blocks.0"
        w.norm(f"{source}.norm", f"{target}.norm", *channels)
        w.layer(f"{source}.proj_in", f"{target}.proj_in", channels, channels)
        w.layer(f"{source}.proj_out", f"{target}.proj_out", channels, channels)
        for n in (1, 2, 3):
            w.norm(f"{source}.norm{n}", f"{block}.norm{n}", *channels)
        for name, context in (("attn1", channels), ("attn2", text)):
            w.layer(f"{source}.{name}.to_q", f"{block}.{name}.to_q", inner, channels)
            w.layer(f"{source}.{name}.to_k", f"{block}.{name}.to_k", inner, context)
            w.layer(f"{source}.{name}.to_v", f"{block}.{name}.to_v", inner, context)
            w.layer(f"{source}.{name}.to_out", f"{block}.{name}.to_out.0", channels, inner)
        w.layer(f"{source}.ff_in", f"{block}.ff.net.0.proj", (8 * WIDE, GATED), channels)
        w.layer(f"{source}.ff_out", f"{block}.ff.net.2", channels, (4 * WIDE, HIDDEN))
    return w.out


def text_tensors(narrow: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """The wide text encoder, keys as below `cond_stage_model.transformer.text_model.`.

    Layers that are all zero add nothing to their residual stream: they are the identity.
    """
    w = _Writer(narrow)
    width, hidden = (TEXT_WIDE, TEXT), (4 * TEXT_WIDE, TEXT_HIDDEN)
    embedding = "embeddings.token_embedding.weight"
    w.out[embedding] = _put(
        narrow["token_embedding.weight"],
        (VOCABULARY, TEXT_WIDE),
        tokens,
        TEXT,
    )
    w.out["embeddings.position_embedding.weight"] = _put(
        narrow["position_embedding.weight"], (TOKENS, TEXT_WIDE), None, TEXT
    )
    w.out["embeddings.position_ids"] = torch.arange(TOKENS)[None]
    for i in range(TEXT_ALL_LAYERS):
        target = f"encoder.layers.{i}"
        real = f"layers.{i}.fc1.weight" in narrow
        # an unused layer takes the shapes of the first one and none of its numbers
        source = f"layers.{i}" if real else "layers.0"
        start = set(w.out)
        for n in (1, 2):
            w.norm(f"{source}.layer_norm{n}", f"{target}.layer_norm{n}", *width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            w.layer(f"{source}.{name}", f"{target}.self_attn.{name}", width, width)
        w.layer(f"{source}.fc1", f"{target}.mlp.fc1", hidden, width)
        w.layer(f"{source}.fc2", f"{target}.mlp.fc2", width, hidden)
        if not real:
            for key in set(w.out) - start:
                w.out[key].zero_()
    w.norm("final_layer_norm", "final_layer_norm", *width)
    return w.out


MOST_LATENT = 16
"""Channels of a latent; layers inside have more."""


def autoencoder_tensors(
    narrow: dict[str, Tensor], scale: float = LATENT_SCALE, shift: float = 0.0
) -> dict[str, Tensor]:
    """TAESD as ComfyUI finds it inside a checkpoint, keys as below `first_stage_model.`.

    `scale` and `shift` are those of the model's latents, which ComfyUI undoes before it decodes.
    """
    w = _Writer(narrow)

    def place(source: str, target: str) -> None:
        weight = narrow[f"{source}.weight"]
        out, into = (
            (n, None) if n <= MOST_LATENT else (TAESD_WIDTH, torch.arange(n))
            for n in weight.shape[:2]
        )
        w.layer(source, target, out, into)

    def blocks(source: str, target: str, first: int, used: int, count: int) -> None:
        for i in range(count):
            for n in (0, 2, 4):
                key = f"{target}.{first + i}.conv.{n}"
                if i < used:
                    place(f"{source}.{i}.conv.{n}", key)
                else:
                    w.out[f"{key}.weight"] = torch.zeros(TAESD_WIDTH, TAESD_WIDTH, 3, 3)
                    w.out[f"{key}.bias"] = torch.zeros(TAESD_WIDTH)

    encoder, decoder = "taesd_encoder", "taesd_decoder"
    place("encoder.stem", f"{encoder}.0")
    blocks("encoder.blocks.0", encoder, 1, ENCODER_BLOCKS[64], 1)
    for i, size in enumerate((32, 16, 8)):
        place(f"encoder.downs.{i}", f"{encoder}.{2 + 4 * i}")
        blocks(f"encoder.blocks.{i + 1}", encoder, 3 + 4 * i, ENCODER_BLOCKS[size], 3)
    place("encoder.head", f"{encoder}.14")
    place("decoder.stem", f"{decoder}.1")
    for i, size in enumerate((8, 16, 32, 64)):
        blocks(f"decoder.blocks.{i}", decoder, 3 + 5 * i, DECODER_BLOCKS[size], 1 if i == 3 else 3)
        if i < 3:
            place(f"decoder.ups.{i}", f"{decoder}.{7 + 5 * i}")
    place("decoder.head", f"{decoder}.19")
    w.out["vae_scale"] = torch.tensor(scale)
    w.out["vae_shift"] = torch.tensor(shift)
    return w.out


def checkpoint(weights: Path = WEIGHTS) -> dict[str, Tensor]:
    """All tensors of the SD1.5 checkpoint, float16 but for the autoencoder's two scalars."""
    text = load_file(weights / "text.safetensors")
    autoencoder = load_file(weights / "autoencoder.safetensors")
    parts = {
        "model.diffusion_model.": unet_tensors(load_file(weights / "unet.safetensors")),
        "cond_stage_model.transformer.text_model.": text_tensors(text, text["tokens"]),
        "first_stage_model.": autoencoder_tensors(autoencoder),
    }
    tensors = {prefix + k: v for prefix, part in parts.items() for k, v in part.items()}
    scalars = ("first_stage_model.vae_scale", "first_stage_model.vae_shift")
    return {
        k: v.half() if v.is_floating_point() and k not in scalars else v for k, v in tensors.items()
    }


def main(target: Path) -> None:
    """Write the checkpoint, complete or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in checkpoint().items()}, partial)
    partial.replace(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m testbed.world.expand TARGET.safetensors")
    main(Path(sys.argv[1]))
