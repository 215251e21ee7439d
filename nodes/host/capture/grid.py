"""Over which parts of the picture activations are averaged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from .error import CaptureError


class Pooled(NamedTuple):
    """The activations of one layer in one model call, averaged; float32."""

    cells: Tensor
    """(rows, cells^2, d)."""

    means: Tensor
    """Over the whole picture, (rows, d)."""


class Grid(NamedTuple):
    """A grid of cells x cells over a latent."""

    cells: int

    size: tuple[int, int]
    """Height and width of the latent."""

    frames: int = 1
    """Of the latent; cells are averaged over all of them."""

    def pool(self, h: Tensor, layer: str) -> Pooled:
        """Average h (rows, positions, d) over the whole picture and over every cell.

        Cells overlap where they do not divide the picture, as in adaptive pooling.

        Raises:
            CaptureError: there is more than one cell and the positions are not those of the
                latent, halved some times.
        """
        means = h.mean(dim=1, dtype=torch.float32)
        if self.cells == 1:
            return Pooled(means.unsqueeze(1), means)
        positions = h.shape[1] // self.frames
        height, width = self.size
        while height * width > positions and max(height, width) > 1:
            height, width = (height + 1) // 2, (width + 1) // 2
        if height * width * self.frames != h.shape[1]:
            raise CaptureError(
                f"cells: layer {layer} has {h.shape[1]} positions, which are not those of the "
                "picture made smaller: a patch upstream merges or splits them. Capture before it, "
                "or set cells to 1."
            )
        frames = rearrange(h, "row (t p) d -> row t p d", t=self.frames)
        picture = rearrange(
            frames.mean(dim=1, dtype=torch.float32), "row (y x) d -> row d y x", y=height
        )
        parts = torch.nn.functional.adaptive_avg_pool2d(picture, self.cells)
        return Pooled(rearrange(parts, "row d y x -> row (y x) d"), means)
