"""The HunyuanVideo transformer for single pictures of 64 x 64 pixels, small.

One block of two streams and five of one, in which text and picture share all weights, as in Flux.
The hidden width of MLPs is half the layout's, that of the text's refiner less. No pooled vector
enters, and the refiner does not hear the prompt's mean, so all that a prompt says is read in
attention. Names are those of the layout.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from testbed.world.networks import TEXT_NARROW

from .transformer import (
    EPS,
    JointAttention,
    Last,
    Mlp,
    Modulation,
    TimeEmbedder,
    after_attention,
    attend,
    by_head,
    plain_norm,
    root_mean_square,
    rotate,
    speeds,
)
from .vae import LATENT

DIM, HEADS = 256, 2
HEAD = DIM // HEADS
DOUBLE, SINGLE, REFINER = 1, 5, 2
HIDDEN, REFINER_HIDDEN = 512, 256
PATCH = 2
THETA, AXES = 256, (16, 56, 56)


def rotations(side: int, text: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (text + side^2, 64) for text, which stands still, and then the picture."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = [torch.zeros(side * side), y.reshape(-1), x.reshape(-1)]
    turns = [
        torch.outer(at.double(), speeds(THETA, size)) for at, size in zip(places, AXES, strict=True)
    ]
    angles = torch.cat([torch.zeros(text, HEAD // 2, dtype=torch.float64), torch.cat(turns, 1)])
    return angles.cos().float(), angles.sin().float()


class Norm(nn.Module):
    """Of queries and keys, head by head."""

    def __init__(self) -> None:
        super().__init__()
        self.query_norm, self.key_norm = (nn.Parameter(torch.ones(HEAD)) for _ in range(2))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return root_mean_square(q, self.query_norm), root_mean_square(k, self.key_norm)


class Attention(nn.Module):
    """One stream's part in an attention over both."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.norm = Norm()

    def read(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (b, heads, t, 128)."""
        q, k, v = (by_head(each, HEADS) for each in self.qkv(x).chunk(3, dim=-1))
        return (*self.norm(q, k), v)


Turns = tuple[Tensor, Tensor]


class Stream(nn.Module):
    """What a block of two streams does to text or picture."""

    def __init__(self) -> None:
        super().__init__()
        self.mod, self.attn, self.mlp = Modulation(DIM, 6), Attention(), Mlp(DIM, HIDDEN)

    def begin(self, x: Tensor, vector: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What goes into attention, and the modulations for what comes after."""
        shift, scale, *rest = self.mod(vector)
        return self.attn.read(torch.addcmul(shift, plain_norm(x), 1 + scale)), tuple(rest)

    def end(self, x: Tensor, h: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        """The stream behind attention."""
        return after_attention(x, h, self.attn.proj, self.mlp, rest)


class Double(nn.Module):
    """Text and picture, each with weights of its own, in one attention."""

    def __init__(self) -> None:
        super().__init__()
        self.img, self.txt = Stream(), Stream()
        self.attention = JointAttention()

    def forward(self, text: Tensor, x: Tensor, vector: Tensor, turns: Turns) -> tuple[Tensor, ...]:
        said, said_rest = self.txt.begin(text, vector)
        seen, seen_rest = self.img.begin(x, vector)
        q, k, v = (torch.cat(each, dim=2) for each in zip(said, seen, strict=True))
        tokens = text.shape[1]
        h = self.attention(rotate(q, turns), rotate(k, turns), v, tokens)
        text = self.txt.end(text, h[:, :tokens], said_rest)
        return text, self.img.end(x, h[:, tokens:], seen_rest)


class Single(nn.Module):
    """Text and picture as one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = Modulation(DIM, 3)
        self.linear1 = nn.Linear(DIM, 3 * DIM + HIDDEN)
        self.linear2 = nn.Linear(DIM + HIDDEN, DIM)
        self.norm = Norm()
        self.attention = JointAttention()

    def forward(self, x: Tensor, tokens: int, vector: Tensor, turns: Turns) -> Tensor:
        shift, scale, gate = self.modulation(vector)
        *read, hidden = self.linear1(torch.addcmul(shift, plain_norm(x), 1 + scale)).split(
            [DIM, DIM, DIM, HIDDEN], dim=-1
        )
        q, k, v = (by_head(each, HEADS) for each in read)
        q, k = self.norm(q, k)
        h = self.attention(rotate(q, turns), rotate(k, turns), v, tokens)
        hidden = nn.functional.gelu(hidden, approximate="tanh")
        return torch.addcmul(x, gate, self.linear2(torch.cat([h, hidden], dim=-1)))


class RefinerBlock(nn.Module):
    """Text reads text before it meets the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(DIM, eps=EPS) for _ in range(2))
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = Mlp(DIM, REFINER_HIDDEN, silu=True)
        self.adaLN_modulation = Modulation(DIM, 2)
        nn.init.constant_(self.adaLN_modulation.up.bias, 0.1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        gate1, gate2 = self.adaLN_modulation(vector)
        read = (by_head(each, HEADS) for each in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = torch.addcmul(x, gate1, self.proj(attend(*read)))
        return torch.addcmul(x, gate2, self.mlp(self.norm2(x)))


class Refiner(nn.Module):
    """The text's entry and its own blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.input_embedder = nn.Linear(TEXT_NARROW, DIM)
        self.t_embedder = TimeEmbedder(DIM, 64)
        self.blocks = nn.ModuleList(RefinerBlock() for _ in range(REFINER))

    def forward(self, context: Tensor, t: Tensor) -> Tensor:
        vector, x = self.t_embedder(t), self.input_embedder(context)
        for block in self.blocks:
            x = block(x, vector)
        return x


class HunyuanVideo(nn.Module):
    """Latents (b, 16, 8, 8) at times (b,) given text (b, 77, 192) to the flow (b, 16, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        cells = LATENT * PATCH * PATCH
        self.img_in = nn.Linear(cells, DIM)
        self.time_in = TimeEmbedder(DIM, DIM)
        self.txt_in = Refiner()
        self.double_blocks = nn.ModuleList(Double() for _ in range(DOUBLE))
        self.single_blocks = nn.ModuleList(Single() for _ in range(SINGLE))
        self.final_layer = Last(DIM, cells)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        side, tokens = x.shape[-1] // PATCH, context.shape[1]
        cos, sin = rotations(side, tokens)
        turns = cos.to(x.device), sin.to(x.device)
        # a Conv3d's weight is flattened channel first, and so is the last layer's output
        x = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)
        x, vector, text = self.img_in(x), self.time_in(t), self.txt_in(context, t)
        for block in self.double_blocks:
            text, x = block(text, x, vector, turns)
        x = torch.cat([text, x], dim=1)
        for block in self.single_blocks:
            x = block(x, tokens, vector, turns)
        x = self.final_layer(x[:, tokens:], vector)
        return rearrange(
            x, "b (h w) (c p q) -> b c (h p) (w q)", h=side, p=PATCH, q=PATCH, c=LATENT
        )
