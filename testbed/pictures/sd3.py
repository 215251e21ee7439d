"""The SD3 transformer for single pictures of 64 x 64 pixels, small.

Depth and heads are four, the width is 256; the hidden width of its MLPs is half the layout's. No
pooled vector enters, so all that a prompt says is read in attention. Names are those of the layout.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from testbed.world.networks import TEXT_NARROW

from .transformer import (
    JointAttention,
    Last,
    Mlp,
    Modulation,
    TimeEmbedder,
    after_attention,
    by_head,
    plain_norm,
    waves,
)
from .vae import LATENT

DEPTH = 4
DIM, HEADS = 64 * DEPTH, DEPTH
HIDDEN = 512
PATCH = 2


class Attention(nn.Module):
    """One stream's part in an attention over both; the last text's has no output."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)
        if not last:
            self.proj = nn.Linear(DIM, DIM)

    def read(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values (b, heads, t, 64)."""
        return [by_head(each, HEADS) for each in self.qkv(x).chunk(3, dim=-1)]


class Stream(nn.Module):
    """What a block does to text or picture."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.attn = Attention(last)
        self.adaLN_modulation = Modulation(DIM, 2 if last else 6)
        if not last:
            self.mlp = Mlp(DIM, HIDDEN)

    def begin(self, x: Tensor, vector: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """What goes into attention, and the modulations for what comes after."""
        shift, scale, *rest = self.adaLN_modulation(vector)
        return self.attn.read(torch.addcmul(shift, plain_norm(x), 1 + scale)), tuple(rest)

    def end(self, x: Tensor, h: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        """The stream behind attention."""
        return after_attention(x, h, self.attn.proj, self.mlp, rest)


class Block(nn.Module):
    """Text and picture, each with weights of its own, in one attention."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.context_block, self.x_block = Stream(last), Stream()
        self.attention = JointAttention()
        self.last = last

    def forward(self, text: Tensor, x: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        said, said_rest = self.context_block.begin(text, vector)
        seen, seen_rest = self.x_block.begin(x, vector)
        q, k, v = (torch.cat(each, dim=2) for each in zip(said, seen, strict=True))
        if self.last:
            q = seen[0]
        h = self.attention(q, k, v, text.shape[1])
        tokens = 0 if self.last else text.shape[1]
        if not self.last:
            text = self.context_block.end(text, h[:, :tokens], said_rest)
        return text, self.x_block.end(x, h[:, tokens:], seen_rest)


class SD3(nn.Module):
    """Latents (b, 16, 8, 8) at times (b,) given text (b, 77, 192) to the flow (b, 16, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        cells = LATENT * PATCH * PATCH
        self.x_embedder = nn.Linear(cells, DIM)
        self.t_embedder = TimeEmbedder(DIM, DIM)
        self.context_embedder = nn.Linear(TEXT_NARROW, DIM)
        self.joint_blocks = nn.ModuleList(Block(i == DEPTH - 1) for i in range(DEPTH))
        self.final_layer = Last(DIM, cells)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        side = x.shape[-1] // PATCH
        # a Conv2d's weight is flattened channel first, the last layer's output channel last
        x = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)
        x = self.x_embedder(x) + waves(side, DIM).to(x.device)
        vector, text = self.t_embedder(t), self.context_embedder(context)
        for block in self.joint_blocks:
            text, x = block(text, x, vector)
        x = self.final_layer(x, vector)
        return rearrange(
            x, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=PATCH, q=PATCH, c=LATENT
        )
