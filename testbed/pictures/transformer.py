"""What the small transformers share: times, places, and attention over text and picture."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

FREQUENCIES = 256
EPS = 1e-6


def sinusoids(t: Tensor) -> Tensor:
    """The 256 cosines and sines of a time (b,) in 0 to 1000."""
    half = FREQUENCIES // 2
    angles = t.float()[:, None] * 10000 ** (-torch.arange(half, device=t.device) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Turn neighbouring numbers of (b, heads, t, d) as pairs, by cosines and sines (t, d / 2)."""
    cos, sin = turns
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([cos * a - sin * b, sin * a + cos * b], dim=-1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of all to all, (b, heads, t, d) to (b, t, heads d)."""
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)")


class JointAttention(nn.Module):
    """Of all to all, where the first tokens of keys and values are the text's.

    A module of its own, so that what goes in and out can be heard and changed.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, text: int) -> Tensor:
        """(b, heads, t, d) and the number of the text's tokens to (b, t, heads d)."""
        return attend(q, k, v)


def plain_norm(x: Tensor) -> Tensor:
    """Over the last axis, without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


class Modulation(nn.Module):
    """Shifts, scales and gates from a vector of the time, (b, d) to parts of (b, 1, d).

    They depend on one number alone, so few directions hold them: the layout's matrix is `up down`.
    """

    RANK = 32

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.down = nn.Linear(width, self.RANK, bias=False)
        self.up = nn.Linear(self.RANK, parts * width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        return self.up(self.down(F.silu(vector)))[:, None].chunk(self.parts, dim=-1)


class Mlp(nn.Sequential):
    """Two linear maps; `hidden` of the layout's four times the width, the others stay zero."""

    def __init__(self, width: int, hidden: int, *, silu: bool = False) -> None:
        act = nn.SiLU() if silu else nn.GELU(approximate="tanh")
        super().__init__(nn.Linear(width, hidden), act, nn.Linear(hidden, width))


def after_attention(
    x: Tensor, h: Tensor, proj: nn.Module, mlp: nn.Module, modulations: tuple[Tensor, ...]
) -> Tensor:
    """A stream x with what it read, h, and then with what it makes of that."""
    gate1, shift2, scale2, gate2 = modulations
    x = torch.addcmul(x, gate1, proj(h))
    return torch.addcmul(x, gate2, mlp(torch.addcmul(shift2, plain_norm(x), 1 + scale2)))


class TimeEmbedder(nn.Module):
    """A time (b,) in 0 to 1000 to a vector (b, d)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(FREQUENCIES, hidden)
        self.out_layer = nn.Linear(hidden, width)

    def forward(self, t: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(sinusoids(t))))


class Last(nn.Module):
    """From tokens to what is predicted of their cells."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, 2)
        self.linear = nn.Linear(width, out)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        shift, scale = self.modulation(vector)
        return self.linear(torch.addcmul(shift, plain_norm(x), 1 + scale))


def speeds(theta: float, size: int) -> Tensor:
    """How fast the pairs of `size` numbers turn."""
    return theta ** -torch.linspace(0, (size - 2) / size, size // 2, dtype=torch.float64)


def waves(side: int, width: int) -> Tensor:
    """SD3's places (side^2, width): sines and cosines of column and row."""
    at = torch.linspace(-1, 1, side, dtype=torch.float64) * 7.5 + 7.5
    y, x = torch.meshgrid(at, at, indexing="ij")
    omega = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    parts = [torch.outer(axis.reshape(-1), omega) for axis in (x, y)]
    return torch.cat([f(part) for part in parts for f in (torch.sin, torch.cos)], dim=1).float()


def root_mean_square(x: Tensor, weight: Tensor) -> Tensor:
    """Over the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def by_head(x: Tensor, heads: int) -> Tensor:
    """(b, t, heads d) as (b, heads, t, d)."""
    return rearrange(x, "b t (h d) -> b h t d", h=heads)
