"""The eraser: one low-rank change of the identity per cross-attention layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .errors import EraserError
from .sketch import SAME, difference

Edit = Literal["keys and values", "values", "keys"]
"""Which of a cross-attention's projections E multiplies: W_K and W_V, W_V alone, W_K alone."""

EDITS: tuple[Edit, ...] = get_args(Edit)

PROJECTIONS: dict[Edit, tuple[str, ...]] = {
    "keys and values": ("to_k", "to_v"),
    "values": ("to_v",),
    "keys": ("to_k",),
}
"""What is edited -> the projections it means, as every U-Net's modules call them."""


@dataclass(frozen=True, eq=False)
class LayerEraser:
    """E = I - proj_left @ proj_right for one layer.

    Every method here changes only what lies in a few directions, so the d x d matrix is the
    identity plus something of low rank and is never formed.

    E is meant for activations h, the outputs of all heads side by side. Multiplying the value
    projection by E gives E h exactly for one head, where attention mixes values linearly:
    A (V E^T) = (A V) E^T. With several heads it does so for what E mixes within a head; a value
    that E carries to another head is weighted by that head's attention instead of its own.
    """

    proj_left: Tensor
    """L of shape (d, r)."""

    proj_right: Tensor
    """R of shape (r, d)."""

    def __post_init__(self) -> None:
        left, right = tuple(self.proj_left.shape), tuple(self.proj_right.shape)
        if len(left) != 2 or left != right[::-1]:
            raise EraserError(
                f"Expected proj_left of shape (d, r) and proj_right of shape (r, d), got {left} "
                f"and {right}."
            )

    @property
    def width(self) -> int:
        """d, the number of channels of the layer."""
        return self.proj_left.shape[0]

    @property
    def rank(self) -> int:
        """r, an upper bound of the rank of E - I."""
        return self.proj_left.shape[1]

    @property
    def P(self) -> Tensor:
        """E as a dense (d, d) matrix. For tests and reports: d is up to 2048."""
        eye = torch.eye(self.width, dtype=self.proj_left.dtype, device=self.proj_left.device)
        return eye - self.proj_left @ self.proj_right

    def __call__(self, x: Tensor) -> Tensor:
        """E x for activations of shape (..., d)."""
        return x - (x @ self.proj_right.T) @ self.proj_left.T

    def edit_weight(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """E_s W = W - s L (R W) for a weight of shape (d, in).

        Computed in float32 or better and returned in the weight's own type, on its device.
        Strength 0 returns the weight itself, below 0 amplifies. The change has rank <= r: it is
        the LoRA with up = -s L and down = R W.

        Raises:
            EraserError: the weight has another number of rows than the eraser's width.
        """
        if strength == 0:
            return weight
        if weight.ndim != 2 or weight.shape[0] != self.width:
            raise EraserError(
                f"This layer's eraser has width {self.width}, the weight has shape "
                f"{tuple(weight.shape)}. The eraser was fitted on another architecture."
            )
        dtype = torch.promote_types(weight.dtype, torch.float32)
        left, right = self.proj_left.to(weight.device, dtype), self.proj_right.to(weight.device)
        wide = weight.to(dtype)
        # Two thin products: (r, d) (d, in), then (d, r) (r, in).
        return torch.addmm(wide, left, right.to(dtype) @ wide, alpha=-strength).to(weight.dtype)

    def scaled(self, strength: float) -> LayerEraser:
        """I - s L R. Strength 0 keeps no direction at all, so it is the identity bit for bit."""
        if strength == 0:
            return LayerEraser(self.proj_left[:, :0], self.proj_right[:0])
        return LayerEraser(self.proj_left * strength, self.proj_right)

    def then(self, other: LayerEraser) -> LayerEraser:
        """The product E_other E_self, of rank r_self + r_other.

        (I - L2 R2)(I - L1 R1) = I - [L1, L2] [R1; R2 - (R2 L1) R1].
        """
        if self.width != other.width:
            raise EraserError(f"Widths differ: {self.width} and {other.width}.")
        crossed = other.proj_right - (other.proj_right @ self.proj_left) @ self.proj_right
        return LayerEraser(
            torch.cat([self.proj_left, other.proj_left], dim=1),
            torch.cat([self.proj_right, crossed], dim=0),
        )

    def to(self, *args: Any, **kwargs: Any) -> LayerEraser:
        """Both factors moved or cast as `Tensor.to` does."""
        return LayerEraser(self.proj_left.to(*args, **kwargs), self.proj_right.to(*args, **kwargs))


@dataclass(frozen=True)
class Provenance:
    """How an eraser came to be. Stored with it, and shown in its report."""

    method: str
    """Name of the method, as in the registry."""

    settings: dict[str, float | str]
    """The method's settings by name."""

    forget: tuple[str, ...]
    """Prompts of the concept."""

    retain: tuple[str, ...]
    """Prompts of its neighbours, empty if there were none."""

    edit: Edit
    """Which projections the method edits unless asked otherwise."""

    source_name: str
    """Name of the model the activations came from."""

    source_fingerprint: str
    """Fingerprint of that model's weights, with everything that was patched into it."""

    source_sketch: dict[str, float]
    """Layer -> sketch of that model's own weights: see `sketch.py`."""

    created: str
    """ISO date."""

    plugin_version: str

    def __post_init__(self) -> None:
        if self.edit not in EDITS:
            raise EraserError(f"edit has to be one of {', '.join(EDITS)}, got {self.edit!r}.")


@dataclass(frozen=True, eq=False)
class Eraser:
    """A concept's eraser: one `LayerEraser` per cross-attention layer.

    It holds no model weights, so it fits every fine-tune of the architecture it was made on.
    """

    layers: dict[str, LayerEraser]
    """Module path without 'diffusion_model.' -> eraser of that layer."""

    provenance: Provenance

    def __post_init__(self) -> None:
        if not self.layers:
            raise EraserError("An eraser needs at least one layer, got none.")

    @property
    def widths(self) -> dict[str, int]:
        """Layer -> d: the architecture it fits."""
        return {name: layer.width for name, layer in self.layers.items()}

    @property
    def ranks(self) -> dict[str, int]:
        """Layer -> r."""
        return {name: layer.rank for name, layer in self.layers.items()}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over layer names, shapes and float32 factors: the same eraser everywhere."""
        digest = hashlib.sha256()
        for name in sorted(self.layers):
            layer = self.layers[name].to("cpu", torch.float32)
            digest.update(f"{name} {layer.width} {layer.rank}\n".encode())
            digest.update(layer.proj_left.contiguous().numpy().tobytes())
            digest.update(layer.proj_right.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def strength(self, strength: float) -> Eraser:
        """E_s = I - s L R for every layer: 0 the identity, 1 as fitted, below 0 amplifies."""
        settings = self.provenance.settings | {"strength": float(strength)}
        return Eraser(
            self._each(lambda layer: layer.scaled(strength)),
            replace(self.provenance, settings=settings),
        )

    def compose(self, other: Eraser) -> Eraser:
        """First this eraser, then the other: exactly E_other E_self in every layer.

        Raises:
            EraserError: the two belong to different architectures or edit different
                projections.
        """
        require_same_widths(self.widths, other.widths)
        mine, theirs = self.provenance, other.provenance
        if mine.edit != theirs.edit:
            raise EraserError(
                f"One eraser edits {mine.edit}, the other {theirs.edit}: they are not one "
                "eraser. Patch the model with one after the other instead."
            )
        layers = {name: layer.then(other.layers[name]) for name, layer in self.layers.items()}
        return Eraser(
            layers,
            replace(
                theirs,
                method=f"{mine.method} then {theirs.method}",
                settings=_numbered([mine.settings, theirs.settings]),
                forget=mine.forget + theirs.forget,
                retain=mine.retain + theirs.retain,
                source_sketch=_agreed(mine.source_sketch, theirs.source_sketch),
            ),
        )

    def to(self, *args: Any, **kwargs: Any) -> Eraser:
        """Every factor moved or cast as `Tensor.to` does."""
        return Eraser(self._each(lambda layer: layer.to(*args, **kwargs)), self.provenance)

    def _each(self, change: Callable[[LayerEraser], LayerEraser]) -> dict[str, LayerEraser]:
        return {name: change(layer) for name, layer in self.layers.items()}


def require_same_widths(expected: dict[str, int], actual: dict[str, int]) -> None:
    """Raise EraserError, naming a layer, unless both have the same layers and widths."""
    if expected == actual:
        return
    for name in (*expected, *actual):
        if expected.get(name) != actual.get(name):
            raise EraserError(
                f"Different architectures: {len(expected)} layers against {len(actual)}; for "
                f"example layer {name} has width {expected.get(name, 'none')} against "
                f"{actual.get(name, 'none')}."
            )


def _agreed(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """The sketch of the model that both were fitted on, or nothing if there were two."""
    return other if difference(one, other) <= SAME else {}


def _numbered(settings: Iterable[dict[str, float | str]]) -> dict[str, float | str]:
    """Settings of several erasers side by side: 'keep' of the second becomes 'keep 2'."""
    merged: dict[str, float | str] = {}
    for each in settings:
        for name, value in each.items():
            free = (f"{name} {number}" for number in count(2) if f"{name} {number}" not in merged)
            merged[name if name not in merged else next(free)] = value
    return merged
