"""The Wan 2.1 transformer for single pictures of 64 x 64 pixels, small.

Its widths are free but for heads of 128, so nothing is padded: only the text's entry, which takes
4096 columns of which the small text encoder fills the first 192. Names are those of the layout.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from testbed.world.networks import TEXT_NARROW

from .transformer import EPS, FREQUENCIES, rotate, sinusoids
from .vae import LATENT

DIM, HEADS, LAYERS, HIDDEN = 256, 2, 4, 1024
PATCH = 2
HEAD = DIM // HEADS


def rotations(side: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (side^2, 64) that turn pairs of a head's numbers by row and column.

    The first 22 pairs belong to time, which stands still in a picture.
    """
    space = 2 * (HEAD // 6)
    pairs = space // 2
    speeds = 10000 ** -torch.linspace(0, (space - 2) / space, pairs, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rows, columns = (at.reshape(-1, 1).double() * speeds for at in (y, x))
    still = torch.zeros(side * side, HEAD // 2 - 2 * pairs, dtype=torch.float64)
    angles = torch.cat([still, rows, columns], dim=1)
    return angles.cos().float(), angles.sin().float()


class RootMeanSquare(nn.Module):
    """Normalisation over all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * self.weight


Read = tuple[Tensor, Tensor]
"""Keys and values (b, heads, t, 128)."""


class Attention(nn.Module):
    """Attention with normalised queries and keys; `turns` for tokens of the picture only."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))
        self.norm_q, self.norm_k = RootMeanSquare(), RootMeanSquare()

    def read(self, context: Tensor) -> Read:
        """What there is to attend to."""
        k, v = self.norm_k(self.k(context)), self.v(context)
        return _by_head(k), _by_head(v)

    def forward(
        self, x: Tensor, read: Read, turns: tuple[Tensor, Tensor] | None = None, copies: int = 1
    ) -> Tensor:
        """Of `copies` pictures for each row of what they read."""
        q, (k, v) = self.norm_q(self.q(x)), read
        q = rearrange(
            q,
            "(b c) t (h d) -> b h (c t) d" if turns is None else "(b c) t (h d) -> (b c) h t d",
            h=HEADS,
            c=copies,
        )
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        scores = (q.to(v.dtype) / math.sqrt(HEAD)) @ k.to(v.dtype).transpose(-1, -2)
        h = scores.float().softmax(-1).to(v.dtype) @ v
        if turns is None:
            h = rearrange(h, "b h (c t) d -> (b c) t (h d)", c=copies)
        else:
            h = rearrange(h, "b h t d -> b t (h d)")
        return self.o(h)


def _by_head(x: Tensor) -> Tensor:
    return rearrange(x, "b t (h d) -> b h t d", h=HEADS)


def _plain_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), (DIM,), eps=EPS)


class Block(nn.Module):
    """One block: the picture reads itself, the text, and thinks."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = Attention(), Attention()
        self.norm3 = nn.LayerNorm(DIM, eps=EPS)
        self.ffn = nn.Sequential(
            nn.Linear(DIM, HIDDEN), nn.GELU(approximate="tanh"), nn.Linear(HIDDEN, DIM)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, DIM) / math.sqrt(DIM))

    def forward(
        self, x: Tensor, e: Tensor, read: Read, turns: tuple[Tensor, Tensor], copies: int
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + e).chunk(6, dim=1)
        y = torch.addcmul(shift1, _plain_norm(x), 1 + scale1)
        x = torch.addcmul(x, self.self_attn(y, self.self_attn.read(y), turns).float(), gate1)
        x = x + self.cross_attn(self.norm3(x), read, copies=copies)
        y = torch.addcmul(shift2, _plain_norm(x), 1 + scale2)
        return torch.addcmul(x, self.ffn(y).float(), gate2)


class Wan(nn.Module):
    """Latents (b, 16, 8, 8) at times (b,) given text (b, 77, 192) to the flow (b, 16, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        cells = LATENT * PATCH * PATCH
        self.patch_embedding = nn.Linear(cells, DIM)
        self.text_embedding = nn.Sequential(
            nn.Linear(TEXT_NARROW, DIM), nn.GELU(approximate="tanh"), nn.Linear(DIM, DIM)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(FREQUENCIES, DIM), nn.SiLU(), nn.Linear(DIM, DIM)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(DIM, 6 * DIM))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(DIM, cells)
        self.head_modulation = nn.Parameter(torch.randn(1, 2, DIM) / math.sqrt(DIM))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """With fewer texts than pictures, each text serves that many pictures in a row."""
        return self.flow(x, t, self.read(context))

    def read(self, context: Tensor) -> list[Read]:
        """What every block's cross-attention reads of a text, whatever the picture and the time."""
        context = self.text_embedding(context)
        return [block.cross_attn.read(context) for block in self.blocks]

    def flow(self, x: Tensor, t: Tensor, reads: list[Read]) -> Tensor:
        """The flow, given what `read` gives."""
        copies = len(x) // len(reads[0][0])
        side = x.shape[-1] // PATCH
        cos, sin = rotations(side)
        turns = cos.to(x.device), sin.to(x.device)
        # a Conv3d's weight is flattened channel first, the head's output channel last
        x = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)
        x = self.patch_embedding(x).float()
        e = self.time_embedding(sinusoids(t)).float()
        modulation = self.time_projection(e).float().unflatten(1, (6, DIM))
        for block, read in zip(self.blocks, reads, strict=True):
            x = block(x, modulation, read, turns, copies)
        shift, scale = (self.head_modulation + e[:, None]).chunk(2, dim=1)
        x = self.head(torch.addcmul(shift, _plain_norm(x), 1 + scale))
        return rearrange(
            x, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=PATCH, q=PATCH, c=LATENT
        )
