"""Pictures as ComfyUI passes them on."""

import numpy as np
import torch
from comfy.sd import VAE
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

NO_PICTURE = ExecutionBlocker(None)
"""For an IMAGE output that has none: what is connected to it does not run."""


def to_image(picture: np.ndarray) -> Tensor:
    """An IMAGE (1, H, W, 3), float32 in 0 to 1, from a uint8 picture (H, W, 3)."""
    return torch.tensor(picture).float().div(255).unsqueeze(0)


def decoded(vae: VAE, latent: Tensor) -> np.ndarray:
    """A uint8 picture (H, W, 3) of a latent (1, ...); of a clip the first frame."""
    drawn = vae.decode(latent)
    frame = drawn.reshape(-1, *drawn.shape[-3:])[0]
    pixels: np.ndarray = frame.float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return pixels
