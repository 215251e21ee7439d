"""Pictures as ComfyUI passes them on."""

import numpy as np
import torch
from torch import Tensor


def to_image(picture: np.ndarray) -> Tensor:
    """An IMAGE (1, H, W, 3), float32 in 0 to 1, from a uint8 picture (H, W, 3)."""
    return torch.tensor(picture).float().div(255).unsqueeze(0)
