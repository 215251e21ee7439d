"""Writes the models as files that stock ComfyUI loads.

    python -m testbed.pictures.expand FOLDER

The layouts of SD 1.5 and SD3 are one checkpoint each (CheckpointLoaderSimple), those of Wan 2.1 and
HunyuanVideo three files: diffusion model (UNETLoader), text encoder (CLIPLoader, type sd3 for Wan
and stable_diffusion for HunyuanVideo) and autoencoder (VAELoader). The text encoder is the same in
all, and of the autoencoders only that of SD 1.5 has latents of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from testbed.world.expand import autoencoder_tensors, text_tensors, unet_tensors
from testbed.world.networks import TEXT_NARROW

from . import hunyuan, sd3
from .vae import LATENT, WIDTHS
from .wan import DIM, LAYERS, PATCH

WEIGHTS = Path(__file__).parent / "weights"
TEXT_WIDE, POOLED = 4096, 768
"""Columns of the text's entry in the layouts of Wan and SD3, and in that of HunyuanVideo."""

PARTS = ("weight", "bias")

LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_DEVIATION = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
"""By which ComfyUI scales what goes to the Wan autoencoder's decoder, channel by channel."""

HUNYUAN_SCALE = 0.476986
SD3_SCALE, SD3_SHIFT = 1.5305, 0.0609
"""By which it scales and shifts the latents of these."""

KEPT = (
    *("vae_scale", "vae_shift", "position_ids"),
    *("conv1.bias", "conv2.bias", "conv1.weight", "conv2.weight"),
    *("adaLN_modulation.1.weight", "mod.lin.weight", "modulation.lin.weight"),
)
"""Endings of tensors that are not rounded to float16: scalings and products."""

FILES = {
    "checkpoint": "checkpoints/pictures-unet.safetensors",
    "diffusion model": "diffusion_models/pictures-wan.safetensors",
    "text encoder": "text_encoders/pictures-clip-l.safetensors",
    "autoencoder": "vae/pictures-wan-vae.safetensors",
    "sd3": "checkpoints/pictures-sd3.safetensors",
    "hunyuan": "diffusion_models/pictures-hunyuan.safetensors",
    "hunyuan autoencoder": "vae/pictures-hunyuan-vae.safetensors",
}
NAMES = {part: file.rpartition("/")[2] for part, file in FILES.items()}
"""As the loaders' lists have them."""


def _last_tap(weight: Tensor) -> Tensor:
    """A two-dimensional kernel as the last tap in time of a causal one of three."""
    if weight.shape[-1] == 1:
        return weight[:, :, None]
    wide = torch.zeros(*weight.shape[:2], 3, *weight.shape[2:], dtype=weight.dtype)
    wide[:, :, -1] = weight
    return wide


class _VaeWriter:
    """Collects the autoencoder's tensors under the layout's names."""

    def __init__(self, narrow: dict[str, Tensor]) -> None:
        self.narrow = narrow
        self.out: dict[str, Tensor] = {}

    def causal(self, source: str, target: str) -> None:
        self.out[f"{target}.weight"] = _last_tap(self.narrow[f"{source}.weight"])
        self.out[f"{target}.bias"] = self.narrow[f"{source}.bias"]

    def plain(self, source: str, target: str) -> None:
        for part in ("weight", "bias"):
            self.out[f"{target}.{part}"] = self.narrow[f"{source}.{part}"]

    def norm(self, source: str, target: str) -> None:
        self.out[f"{target}.gamma"] = self.narrow[f"{source}.gamma"].view(-1, 1, 1, 1)

    def residual(self, source: str, target: str, channels: int) -> None:
        """A block, or one that does nothing where the narrow network has none."""
        if f"{source}.conv1.weight" not in self.narrow:
            for n in (0, 3):
                self.out[f"{target}.residual.{n}.gamma"] = torch.ones(channels, 1, 1, 1)
            for n in (2, 6):
                shape = (channels, channels, 3, 3, 3)
                self.out[f"{target}.residual.{n}.weight"] = torch.zeros(shape)
                self.out[f"{target}.residual.{n}.bias"] = torch.zeros(channels)
            return
        self.norm(f"{source}.norm1", f"{target}.residual.0")
        self.causal(f"{source}.conv1", f"{target}.residual.2")
        self.norm(f"{source}.norm2", f"{target}.residual.3")
        self.causal(f"{source}.conv2", f"{target}.residual.6")
        if f"{source}.shortcut.weight" in self.narrow:
            self.causal(f"{source}.shortcut", f"{target}.shortcut")

    def middle(self, side: str) -> None:
        """Two blocks and, between them, an attention that does nothing."""
        channels = WIDTHS[-1]
        for n, block in ((0, 0), (1, 2)):
            self.residual(f"{side}.middle.{n}", f"{side}.middle.{block}", channels)
        attention = f"{side}.middle.1"
        self.out[f"{attention}.norm.gamma"] = torch.ones(channels, 1, 1)
        for name, out in (("to_qkv", 3 * channels), ("proj", channels)):
            self.out[f"{attention}.{name}.weight"] = torch.zeros(out, channels, 1, 1)
            self.out[f"{attention}.{name}.bias"] = torch.zeros(out)

    def still(self, target: str, out: int, into: int) -> None:
        """A convolution in time, which a single frame never reaches."""
        self.out[f"{target}.time_conv.weight"] = torch.zeros(out, into, 3, 1, 1)
        self.out[f"{target}.time_conv.bias"] = torch.zeros(out)


def vae_tensors(
    narrow: dict[str, Tensor],
    host_mean: Sequence[float] = LATENT_MEAN,
    host_deviation: Sequence[float] = LATENT_DEVIATION,
) -> dict[str, Tensor]:
    """The Wan autoencoder; its two 1 x 1 convolutions undo ComfyUI's scaling of latents."""
    w = _VaeWriter(narrow)
    for side in ("encoder", "decoder"):
        w.causal(f"{side}.stem", f"{side}.conv1")
        w.middle(side)
        w.norm(f"{side}.norm", f"{side}.head.0")
    w.causal("decoder.head", "decoder.head.2")
    w.causal("encoder.head", "encoder.head.2")
    # the layout's encoder gives mean and log variance, of which only the mean is ever read
    for part in ("weight", "bias"):
        key = f"encoder.head.2.{part}"
        w.out[key] = torch.cat([w.out[key], torch.zeros_like(w.out[key])])
    for i, channels in enumerate(WIDTHS):
        for n in range(2):
            w.residual(f"encoder.levels.{i}.{n}", f"encoder.downsamples.{3 * i + n}", channels)
        if i < len(WIDTHS) - 1:
            target = f"encoder.downsamples.{3 * i + 2}"
            w.plain(f"encoder.downs.{i}", f"{target}.resample.1")
            if i > 0:
                w.still(target, channels, channels)
    for i, channels in enumerate(reversed(WIDTHS)):
        for n in range(3):
            w.residual(f"decoder.levels.{i}.{n}", f"decoder.upsamples.{4 * i + n}", channels)
        if i < len(WIDTHS) - 1:
            target = f"decoder.upsamples.{4 * i + 3}"
            w.plain(f"decoder.ups.{i}", f"{target}.resample.1")
            if i < 2:
                w.still(target, 2 * channels, channels)
    host = (torch.tensor(each, dtype=torch.float64) for each in (host_mean, host_deviation))
    return w.out | _scaling(narrow["mean"].double(), narrow["deviation"].double(), *host)


def _scaling(
    mean: Tensor, deviation: Tensor, host_mean: Tensor, host_deviation: Tensor
) -> dict[str, Tensor]:
    """The 1 x 1 convolutions: from our latents to what ComfyUI scales to mean 0, and back."""
    gain = host_deviation / deviation
    weight = torch.zeros(2 * LATENT, 2 * LATENT, dtype=torch.float64)
    weight[:LATENT, :LATENT] = torch.diag(gain)
    bias = torch.cat([host_mean - mean * gain, torch.zeros_like(mean)])
    back = torch.diag(1 / gain)
    return {
        "conv1.weight": weight.view(2 * LATENT, 2 * LATENT, 1, 1, 1).float(),
        "conv1.bias": bias.float(),
        "conv2.weight": back.view(LATENT, LATENT, 1, 1, 1).float(),
        "conv2.bias": (mean - host_mean / gain).float(),
    }


def wan_tensors(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    """The Wan transformer."""
    out = dict(narrow)
    entry = "text_embedding.0.weight"
    out[entry] = torch.zeros(DIM, TEXT_WIDE, dtype=narrow[entry].dtype)
    out[entry][:, :TEXT_NARROW] = narrow[entry]
    patch = "patch_embedding.weight"
    out[patch] = narrow[patch].view(DIM, LATENT, 1, PATCH, PATCH)
    for part in ("weight", "bias"):
        out[f"head.head.{part}"] = out.pop(f"head.{part}")
    out["head.modulation"] = out.pop("head_modulation")
    assert f"blocks.{LAYERS - 1}.ffn.2.weight" in out
    return out


class _LayoutWriter:
    """Collects a transformer's tensors under the layout's names."""

    def __init__(self, narrow: dict[str, Tensor]) -> None:
        self.narrow = narrow
        self.out: dict[str, Tensor] = {}

    def linear(self, source: str, target: str, *shape: int) -> None:
        """A linear map; rows and columns beyond its own, up to a shape, are zero."""
        weight, bias = (self.narrow[f"{source}.{part}"] for part in ("weight", "bias"))
        rows, columns = shape or weight.shape
        self.out[f"{target}.weight"] = _within(weight, rows, columns)
        self.out[f"{target}.bias"] = _within(bias, rows)

    def nothing(self, target: str, rows: int, columns: int) -> None:
        """A linear map that says zero."""
        self.out[f"{target}.weight"] = torch.zeros(rows, columns)
        self.out[f"{target}.bias"] = torch.zeros(rows)

    def mlp(self, source: str, target: str, *names: str) -> None:
        """Two linear maps with four times the width between them, of which some are used."""
        first, second = names or ("0", "2")
        width = self.narrow[f"{source}.0.weight"].shape[1]
        self.linear(f"{source}.0", f"{target}.{first}", 4 * width, width)
        self.linear(f"{source}.2", f"{target}.{second}", width, 4 * width)

    def modulation(self, source: str, target: str) -> None:
        """The product of its two factors, in float32, so that nothing is rounded again."""
        up, down = (self.narrow[f"{source}.{part}.weight"].float() for part in ("up", "down"))
        self.out[f"{target}.weight"] = up @ down
        self.out[f"{target}.bias"] = self.narrow[f"{source}.up.bias"]

    def patches(self, source: str, target: str, *shape: int) -> None:
        """The map of a picture's patches, as a convolution."""
        self.linear(source, target)
        self.out[f"{target}.weight"] = self.out[f"{target}.weight"].view(-1, LATENT, *shape)

    def time(self, source: str, target: str, *names: str) -> None:
        """An embedder of times, whose hidden width may be less than the layout's."""
        first, second = names or ("in_layer", "out_layer")
        width = self.narrow[f"{source}.out_layer.weight"].shape[0]
        columns = self.narrow[f"{source}.in_layer.weight"].shape[1]
        self.linear(f"{source}.in_layer", f"{target}.{first}", width, columns)
        self.linear(f"{source}.out_layer", f"{target}.{second}", width, width)


def _within(tensor: Tensor, *shape: int) -> Tensor:
    """A tensor at the beginning of a larger one, which is zero elsewhere."""
    wide = tensor.new_zeros(shape)
    wide[tuple(slice(size) for size in tensor.shape)] = tensor
    return wide


def sd3_tensors(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    """The SD3 transformer; without tensors of places, which ComfyUI then computes."""
    w = _LayoutWriter(narrow)
    w.patches("x_embedder", "x_embedder.proj", sd3.PATCH, sd3.PATCH)
    w.time("t_embedder", "t_embedder", "mlp.0", "mlp.2")
    w.linear("context_embedder", "context_embedder", sd3.DIM, TEXT_WIDE)
    for block in range(sd3.DEPTH):
        for stream in ("context_block", "x_block"):
            path = f"joint_blocks.{block}.{stream}"
            w.modulation(f"{path}.adaLN_modulation", f"{path}.adaLN_modulation.1")
            w.linear(f"{path}.attn.qkv", f"{path}.attn.qkv")
            if f"{path}.attn.proj.weight" in narrow:
                w.linear(f"{path}.attn.proj", f"{path}.attn.proj")
                w.mlp(f"{path}.mlp", f"{path}.mlp", "fc1", "fc2")
    w.modulation("final_layer.modulation", "final_layer.adaLN_modulation.1")
    w.linear("final_layer.linear", "final_layer.linear")
    return w.out


def hunyuan_tensors(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    """The HunyuanVideo transformer; its maps of the pooled text and the text's mean say nothing."""
    w, width = _LayoutWriter(narrow), hunyuan.DIM
    w.patches("img_in", "img_in.proj", 1, hunyuan.PATCH, hunyuan.PATCH)
    w.time("time_in", "time_in")
    w.linear("txt_in.input_embedder", "txt_in.input_embedder", width, POOLED)
    w.time("txt_in.t_embedder", "txt_in.t_embedder")
    for silent in ("txt_in.c_embedder", "vector_in"):
        w.nothing(f"{silent}.in_layer", width, POOLED)
        w.nothing(f"{silent}.out_layer", width, width)
    for block in range(hunyuan.REFINER):
        path = f"txt_in.blocks.{block}"
        target = f"txt_in.individual_token_refiner.blocks.{block}"
        for part in ("norm1", "norm2"):
            w.out |= {f"{target}.{part}.{k}": narrow[f"{path}.{part}.{k}"] for k in PARTS}
        w.linear(f"{path}.qkv", f"{target}.self_attn.qkv")
        w.linear(f"{path}.proj", f"{target}.self_attn.proj")
        w.mlp(f"{path}.mlp", f"{target}.mlp")
        w.modulation(f"{path}.adaLN_modulation", f"{target}.adaLN_modulation.1")
    for block in range(hunyuan.DOUBLE):
        for stream in ("img", "txt"):
            path = f"double_blocks.{block}.{stream}"
            w.modulation(f"{path}.mod", f"{path}_mod.lin")
            w.linear(f"{path}.attn.qkv", f"{path}_attn.qkv")
            w.linear(f"{path}.attn.proj", f"{path}_attn.proj")
            w.out |= _key_norms(narrow, f"{path}.attn.norm", f"{path}_attn.norm")
            w.mlp(f"{path}.mlp", f"{path}_mlp")
    for block in range(hunyuan.SINGLE):
        path = f"single_blocks.{block}"
        w.modulation(f"{path}.modulation", f"{path}.modulation.lin")
        w.linear(f"{path}.linear1", f"{path}.linear1", 7 * width, width)
        w.linear(f"{path}.linear2", f"{path}.linear2", width, 5 * width)
        w.out |= _key_norms(narrow, f"{path}.norm", f"{path}.norm")
    w.modulation("final_layer.modulation", "final_layer.adaLN_modulation.1")
    w.linear("final_layer.linear", "final_layer.linear")
    return w.out


def _key_norms(narrow: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    names = ("query_norm", "key_norm")
    return {f"{target}.{name}.scale": narrow[f"{source}.{name}"] for name in names}


def files(weights: Path = WEIGHTS) -> dict[str, dict[str, Tensor]]:
    """The tensors of each of `FILES` for which there are weights; float16 but for `KEPT`."""

    def load(name: str) -> dict[str, Tensor]:
        return load_file(weights / f"{name}.safetensors")

    text = load("text")
    clip = text_tensors(text, text["tokens"])
    written = {}
    if (weights / "unet.safetensors").exists():
        parts = {
            "model.diffusion_model.": unet_tensors(load("unet")),
            "cond_stage_model.transformer.text_model.": clip,
            "first_stage_model.": autoencoder_tensors(load("taesd")),
        }
        written["checkpoint"] = {p + k: v for p, part in parts.items() for k, v in part.items()}
    if (weights / "wan.safetensors").exists():
        written["diffusion model"] = wan_tensors(load("wan"))
        written["text encoder"] = {f"text_model.{k}": v for k, v in clip.items()}
        written["autoencoder"] = vae_tensors(load("vae"))
    if all((weights / f"{part}.safetensors").exists() for part in ("sd3", "taesd16")):
        parts = {
            "model.diffusion_model.": sd3_tensors(load("sd3")),
            "text_encoders.clip_l.transformer.text_model.": clip,
            "first_stage_model.": autoencoder_tensors(load("taesd16"), SD3_SCALE, SD3_SHIFT),
        }
        written["sd3"] = {p + k: v for p, part in parts.items() for k, v in part.items()}
    if (weights / "hunyuan.safetensors").exists():
        written["hunyuan"] = hunyuan_tensors(load("hunyuan"))
        host = [0.0] * LATENT, [1 / HUNYUAN_SCALE] * LATENT
        written["hunyuan autoencoder"] = vae_tensors(load("vae"), *host)
    return {
        name: {k: v if k.endswith(KEPT) else v.half() for k, v in tensors.items()}
        for name, tensors in written.items()
    }


def main(folder: Path, weights: Path = WEIGHTS) -> None:
    """Write the files below a models folder, each complete or not at all."""
    for name, tensors in files(weights).items():
        target = folder / FILES[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial)
        partial.replace(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m testbed.pictures.expand FOLDER")
    main(Path(sys.argv[1]))
