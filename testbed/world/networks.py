"""The networks of the small model, narrow to train and wide to ship.

Stable Diffusion 1.5's layout fixes its widths (320 channels, 768 text channels, 8 heads of 40 and
12 heads of 64). The small model uses the first part of each: 96 channels (3 of every group of 10),
192 text channels (3 heads), and its normalisations take the statistics of the zero-padded wide
tensors. Scattering the weights into zeros (`expand.py`) then gives the same function.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

WIDE, NARROW = 320, 96
GROUPS = 32
HEADS, WIDE_HEAD, NARROW_HEAD = 8, 40, 12
TEXT_WIDE, TEXT_NARROW, TEXT_HEADS, TEXT_LAYERS = 768, 192, 3, 2
TIME_WIDE, TIME_NARROW = 1280, 192
TOKENS = 77
LATENT_SCALE = 0.18215


def _padded_scale(x: Tensor, share: float, eps: float) -> tuple[Tensor, Tensor]:
    """Scale and shift that normalise the last dimension as if only `share` of it were not zero."""
    mean = share * x.mean(-1, keepdim=True)
    square = share * x.square().mean(-1, keepdim=True)
    scale = torch.rsqrt((square - mean.square()).clamp_min(0) + eps)
    return scale, -mean * scale


class PaddedGroupNorm(nn.Module):
    """GroupNorm over groups of which 3 of every 10 channels are real and the others zero."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        b, c = x.shape[:2]
        scale, shift = _padded_scale(x.reshape(b, GROUPS, -1), NARROW / WIDE, self.eps)
        scale, shift = (y.expand(b, GROUPS, c // GROUPS).reshape(b, c) for y in (scale, shift))
        scale, shift = scale * self.weight, shift * self.weight + self.bias
        view = (b, c) + (1,) * (x.ndim - 2)
        return torch.addcmul(shift.view(view), x, scale.view(view))


class PaddedLayerNorm(nn.Module):
    """LayerNorm over `wide` channels of which the others than the given ones are zero."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.share = channels / wide

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        scale, shift = _padded_scale(x, self.share, 1e-5)
        return torch.addcmul(self.bias, torch.addcmul(shift, x, scale), self.weight)


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Attention over (b, heads, t, d). Written out: with so small heads the fused kernel's
    backward pass took 40 % of a training step on a CPU."""
    scores = (q * scale) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1).to(v.dtype) @ v


class TextLayer(nn.Module):
    """One CLIP encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        d = TEXT_NARROW
        self.layer_norm1 = PaddedLayerNorm(d, TEXT_WIDE)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))
        self.layer_norm2 = PaddedLayerNorm(d, TEXT_WIDE)
        self.fc1 = nn.Linear(d, 4 * d)
        self.fc2 = nn.Linear(4 * d, d)
        mask = torch.full((TOKENS, TOKENS), -torch.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer_norm1(x)
        q, k, v = (
            rearrange(proj(y), "b t (h d) -> b h t d", h=TEXT_HEADS)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = self.mask[: x.shape[1], : x.shape[1]]
        y = _attention(q, k, v, 1 / math.sqrt(TEXT_NARROW // TEXT_HEADS), mask)
        x = x + self.out_proj(rearrange(y, "b h t d -> b t (h d)"))
        y = self.fc1(self.layer_norm2(x))
        return x + self.fc2(y * torch.sigmoid(1.702 * y))


class TextEncoder(nn.Module):
    """CLIP-L's text model, two layers of its twelve and only the words of the world."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(words, TEXT_NARROW)
        self.position_embedding = nn.Embedding(TOKENS, TEXT_NARROW)
        nn.init.normal_(self.token_embedding.weight, std=0.3)
        nn.init.normal_(self.position_embedding.weight, std=0.05)
        self.layers = nn.ModuleList(TextLayer() for _ in range(TEXT_LAYERS))
        self.final_layer_norm = PaddedLayerNorm(TEXT_NARROW, TEXT_WIDE)

    def raw(self, words: Tensor) -> Tensor:
        """What the last layer says, before the final norm: (b, t, 192) of the first t <= 77 words.

        No word hears a later one, so the first words of a text may be read alone.
        """
        x = self.token_embedding(words) + self.position_embedding.weight[: words.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, words: Tensor) -> Tensor:
        """Word numbers (b, 77) to text embeddings (b, 77, 192)."""
        return self.final_layer_norm(self.raw(words))


class ResBlock(nn.Module):
    """A residual block of the U-Net, with the time embedding added in its middle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_norm = PaddedGroupNorm(channels)
        self.in_conv = nn.Conv2d(channels, NARROW, 3, padding=1)
        self.emb = nn.Linear(TIME_NARROW, NARROW)
        self.out_norm = PaddedGroupNorm(NARROW)
        self.out_conv = nn.Conv2d(NARROW, NARROW, 3, padding=1)
        self.skip = nn.Identity() if channels == NARROW else nn.Conv2d(channels, NARROW, 1)
        nn.init.zeros_(self.out_conv.weight)
        nn.init.zeros_(self.out_conv.bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_conv(F.silu(self.in_norm(x))) + self.emb(F.silu(emb))[:, :, None, None]
        return self.skip(x) + self.out_conv(F.silu(self.out_norm(h)))


class Attention(nn.Module):
    """Attention with eight heads of 12, scaled as heads of 40 are."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(NARROW, NARROW, bias=False)
        self.to_k = nn.Linear(context, NARROW, bias=False)
        self.to_v = nn.Linear(context, NARROW, bias=False)
        self.to_out = nn.Linear(NARROW, NARROW)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            rearrange(y, "b t (h d) -> b h t d", h=HEADS)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        y = _attention(q, k, v, 1 / math.sqrt(WIDE_HEAD))
        return self.to_out(rearrange(y, "b h t d -> b t (h d)"))


class Transformer(nn.Module):
    """A spatial transformer of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = PaddedGroupNorm(NARROW, eps=1e-6)
        self.proj_in = nn.Conv2d(NARROW, NARROW, 1)
        self.norm1, self.norm2, self.norm3 = (PaddedLayerNorm(NARROW, WIDE) for _ in range(3))
        self.attn1 = Attention(NARROW)
        self.attn2 = Attention(TEXT_NARROW)
        self.ff_in = nn.Linear(NARROW, 8 * NARROW)
        self.ff_out = nn.Linear(4 * NARROW, NARROW)
        self.proj_out = nn.Conv2d(NARROW, NARROW, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        height = x.shape[2]
        y = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        z = self.norm1(y)
        y = y + self.attn1(z, z)
        y = y + self.attn2(self.norm2(y), context)
        value, gate = self.ff_in(self.norm3(y)).chunk(2, dim=-1)
        y = y + self.ff_out(value * F.gelu(gate))
        return x + self.proj_out(rearrange(y, "b (h w) c -> b c h w", h=height))


class UNet(nn.Module):
    """SD1.5's U-Net with two levels of one residual block: seven cross-attention layers."""

    def __init__(self) -> None:
        super().__init__()
        self.time_in = nn.Linear(WIDE, TIME_NARROW)
        self.time_out = nn.Linear(TIME_NARROW, TIME_NARROW)
        self.conv_in = nn.Conv2d(4, NARROW, 3, padding=1)
        self.in_res = nn.ModuleList(ResBlock(NARROW) for _ in range(2))
        self.in_attn = nn.ModuleList(Transformer() for _ in range(2))
        self.down = nn.Conv2d(NARROW, NARROW, 3, stride=2, padding=1)
        self.mid_res = nn.ModuleList(ResBlock(NARROW) for _ in range(2))
        self.mid_attn = Transformer()
        self.out_res = nn.ModuleList(ResBlock(2 * NARROW) for _ in range(4))
        self.out_attn = nn.ModuleList(Transformer() for _ in range(4))
        self.up = nn.Conv2d(NARROW, NARROW, 3, padding=1)
        self.out_norm = PaddedGroupNorm(NARROW)
        self.conv_out = nn.Conv2d(NARROW, 4, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Noise in latents x (b, 4, h, w) at timesteps (b,) given text (b, 77, 192)."""
        emb = self.time_out(F.silu(self.time_in(timestep_embedding(timesteps))))
        skips = [self.conv_in(x)]
        skips.append(self.in_attn[0](self.in_res[0](skips[-1], emb), context))
        skips.append(self.down(skips[-1]))
        skips.append(self.in_attn[1](self.in_res[1](skips[-1], emb), context))
        x = self.mid_attn(self.mid_res[0](skips[-1], emb), context)
        x = self.mid_res[1](x, emb)
        for i, (res, attn) in enumerate(zip(self.out_res, self.out_attn, strict=True)):
            x = attn(res(torch.cat([x, skips.pop()], dim=1), emb), context)
            if i == 1:
                x = self.up(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv_out(F.silu(self.out_norm(x)))


def timestep_embedding(timesteps: Tensor) -> Tensor:
    """The 320 cosines and sines of a timestep."""
    half = WIDE // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = timesteps[:, None].float() * frequencies.to(timesteps.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Block(nn.Module):
    """A TAESD block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        nn.init.zeros_(self.conv[-1].weight)
        nn.init.zeros_(self.conv[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


# Channels used of TAESD's 64 at 64, 32, 16 and 8 pixels, and blocks used of its three (one at 64).
# Unused blocks ship as zeros, which is the identity after a ReLU.
AE_CHANNELS = {64: 24, 32: 40, 16: 48, 8: 48}
ENCODER_BLOCKS = {64: 0, 32: 1, 16: 2, 8: 2}
DECODER_BLOCKS = {64: 1, 32: 1, 16: 2, 8: 2}


class Encoder(nn.Module):
    """TAESD's encoder: pictures (b, 3, 64, 64) in [0, 1] to latents (b, 4, 8, 8)."""

    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        c = AE_CHANNELS
        self.stem = nn.Conv2d(3, c[64], 3, padding=1)
        self.downs = nn.ModuleList(
            nn.Conv2d(c[2 * s], c[s], 3, stride=2, padding=1, bias=False) for s in (32, 16, 8)
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(c[s]) for _ in range(ENCODER_BLOCKS[s])) for s in (64, 32, 16, 8)
        )
        self.head = nn.Conv2d(c[8], latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # an unused block's outer ReLU stays in the shipped layout, so it is applied here too
        x = self.stem(x)
        for i, blocks in enumerate(self.blocks):
            if i:
                x = self.downs[i - 1](x)
            x = F.relu(x) if not blocks else x
            for block in blocks:
                x = block(x)
        return self.head(x)


class Decoder(nn.Module):
    """TAESD's decoder: latents (b, 4, 8, 8) to pictures (b, 3, 64, 64) in [0, 1]."""

    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        c = AE_CHANNELS
        self.stem = nn.Conv2d(latent, c[8], 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(c[s]) for _ in range(DECODER_BLOCKS[s])) for s in (8, 16, 32, 64)
        )
        self.ups = nn.ModuleList(
            nn.Conv2d(c[s // 2], c[s], 3, padding=1, bias=False) for s in (16, 32, 64)
        )
        self.head = nn.Conv2d(c[64], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(torch.tanh(x / 3) * 3))
        for i, blocks in enumerate(self.blocks):
            if i:
                x = self.ups[i - 1](F.interpolate(x, scale_factor=2, mode="nearest"))
            x = F.relu(x) if not blocks else x
            for block in blocks:
                x = block(x)
        return self.head(x)


class Judge(nn.Module):
    """A small classifier that reads the attributes of a picture."""

    def __init__(self, classes: dict[str, int]) -> None:
        super().__init__()
        channels = (3, 32, 64, 96, 128)
        self.trunk = nn.Sequential()
        for a, b in pairwise(channels):
            size = 5 if a == 3 else 3
            self.trunk.append(nn.Conv2d(a, b, size, padding=size // 2, stride=2))
            self.trunk.append(nn.BatchNorm2d(b))
            self.trunk.append(nn.ReLU())
        self.neck = nn.Sequential(
            nn.Flatten(), nn.Linear(128 * 16, 128), nn.ReLU(), nn.Dropout(0.1)
        )
        self.heads = nn.ModuleDict({name: nn.Linear(128, n) for name, n in classes.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures (b, 3, 64, 64) in [0, 1] to logits by attribute."""
        x = self.neck(self.trunk(pictures))
        return {name: head(x) for name, head in self.heads.items()}
