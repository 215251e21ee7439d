"""The Wan 2.1 autoencoder for single pictures: two-dimensional, in its file's names.

For one frame only the last tap in time of each of its kernels counts, so a two-dimensional network
fits in (`expand.py`). Its width is read from the file: 16 here, 96 in the released one. Blocks that
are not used ship as zeros, which is the identity, and so does the attention in its middle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATENT = 16
WIDTHS = (16, 32, 64, 64)
"""Channels at 64, 32, 16 and 8 pixels: 1, 2, 4 and 4 times the width."""

ENCODER_BLOCKS = (1, 1, 2, 2)
"""Blocks used of two, at 64, 32, 16 and 8 pixels."""

DECODER_BLOCKS = (2, 2, 2, 2)
"""Blocks used of three, at 8, 16, 32 and 64 pixels."""


class Norm(nn.Module):
    """Root mean square over channels, with a learned size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        scale = math.sqrt(len(self.gamma)) / length.clamp_min(1e-6)
        return x * scale.to(x.dtype) * self.gamma[:, None, None].to(x.dtype)


class Residual(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(into), nn.Conv2d(into, out, 3, padding=1)
        self.norm2, self.conv2 = Norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if into == out else nn.Conv2d(into, out, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Encoder(nn.Module):
    """Pictures (b, 3, 64, 64) in [-1, 1] to latents (b, 16, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.levels, self.downs = nn.ModuleList(), nn.ModuleList()
        into = WIDTHS[0]
        for out, used in zip(WIDTHS, ENCODER_BLOCKS, strict=True):
            blocks = [Residual(into if i == 0 else out, out) for i in range(used)]
            self.levels.append(nn.Sequential(*blocks))
            into = out
        for channels in WIDTHS[:-1]:
            self.downs.append(nn.Conv2d(channels, channels, 3, stride=2))
        self.middle = nn.Sequential(*(Residual(into, into) for _ in range(2)))
        self.norm, self.head = Norm(into), nn.Conv2d(into, LATENT, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, level in enumerate(self.levels):
            x = level(x)
            if i < len(self.downs):
                x = self.downs[i](F.pad(x, (0, 1, 0, 1)))
        return self.head(F.silu(self.norm(self.middle(x))))


class Decoder(nn.Module):
    """Latents (b, 16, 8, 8) to pictures (b, 3, 64, 64) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        into = WIDTHS[-1]
        self.stem = nn.Conv2d(LATENT, into, 3, padding=1)
        self.middle = nn.Sequential(*(Residual(into, into) for _ in range(2)))
        self.levels, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, (out, used) in enumerate(zip(reversed(WIDTHS), DECODER_BLOCKS, strict=True)):
            blocks = [Residual(into if n == 0 else out, out) for n in range(used)]
            self.levels.append(nn.Sequential(*blocks))
            if i < len(WIDTHS) - 1:
                into = out // 2
                self.ups.append(nn.Conv2d(out, into, 3, padding=1))
        self.norm, self.head = Norm(WIDTHS[0]), nn.Conv2d(WIDTHS[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x))
        for i, level in enumerate(self.levels):
            x = level(x)
            if i < len(self.ups):
                x = self.ups[i](F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.head(F.silu(self.norm(x)))


class Autoencoder(nn.Module):
    """Encoder and decoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
