"""The eraser: one low-rank change of the identity per cross-attention layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .activations import Activations
from .errors import EraserError

Edit = Literal["keys and values", "values", "keys"]
"""Which of a cross-attention's projections E multiplies: W_K and W_V, W_V alone, W_K alone."""

EDITS: tuple[Edit, ...] = get_args(Edit)

PROJECTIONS: dict[Edit, tuple[str, ...]] = {
    "keys and values": ("to_k", "to_v"),
    "values": ("to_v",),
    "keys": ("to_k",),
}
"""What is edited -> the projections it means, as every U-Net's modules call them."""


Side = Literal["activations", "text"]
"""What E multiplies. activations: the layer's outputs h, W <- E W. text: the text encoder's
vectors c before the layer reads them, W <- W E."""

SIDES: tuple[Side, ...] = get_args(Side)


@dataclass(frozen=True, eq=False)
class LayerEraser:
    """E = I - proj_left @ proj_right for one layer.

    Every method here changes only what lies in a few directions, so the d x d matrix is the
    identity plus something of low rank and is never formed.

    E is meant for activations h, the outputs of all heads side by side. Multiplying the value
    projection by E gives E h exactly for one head, where attention mixes values linearly:
    A (V E^T) = (A V) E^T. With several heads it does so for what E mixes within a head; a value
    that E carries to another head is weighted by that head's attention instead of its own.

    An eraser on the side of the text is meant for the vectors c that the layer reads. Then d is
    their width, and keys and values of E c are (W E) c.
    """

    proj_left: Tensor
    """L of shape (d, r)."""

    proj_right: Tensor
    """R of shape (r, d)."""

    rows: Tensor | None = None
    """X of shape (m, d) with X^T X = H_F^T H_F / n_F, the second moment of the forget rows, which
    joining with other concepts needs. None where it is not known."""

    side: Side = "activations"

    def __post_init__(self) -> None:
        left, right = tuple(self.proj_left.shape), tuple(self.proj_right.shape)
        if len(left) != 2 or left != right[::-1]:
            raise EraserError(
                f"Expected proj_left of shape (d, r) and proj_right of shape (r, d), got {left} "
                f"and {right}."
            )
        if self.rows is not None and (self.rows.ndim != 2 or self.rows.shape[1] != left[0]):
            raise EraserError(
                f"Expected rows of shape (m, {left[0]}), got {tuple(self.rows.shape)}."
            )

    @property
    def width(self) -> int:
        """d, the number of channels of the layer's outputs or of the text."""
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
        """E x for activations or text vectors of shape (..., d)."""
        return x - (x @ self.proj_right.T) @ self.proj_left.T

    def edit_weight(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """E_s W = W - s L (R W), or on the side of the text W E_s = W - s (W L) R.

        Computed in float32 or better and returned in the weight's own type, on its device.
        Strength 0 returns the weight itself, below 0 amplifies. The change has rank <= r: see
        `change`.

        Args:
            weight: (d, in), or on the side of the text (out, d).

        Raises:
            EraserError: the weight has another width than the eraser.
        """
        if strength == 0:
            return weight
        self._require_fitting(weight)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        wide = weight.to(dtype)
        up, down = self.to(weight.device, dtype).change(wide)
        return torch.addmm(wide, up, down, alpha=strength).to(weight.dtype)

    def change(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The thin factors of E W - W, or W E - W: the LoRA's up (out, r) and down (r, in)."""
        if self.side == "text":
            return -(weight @ self.proj_left), self.proj_right
        return -self.proj_left, self.proj_right @ weight

    def _require_fitting(self, weight: Tensor) -> None:
        axis = 1 if self.side == "text" else 0
        if weight.ndim != 2 or weight.shape[axis] != self.width:
            raise EraserError(
                f"This layer's eraser has width {self.width}, the weight has shape "
                f"{tuple(weight.shape)}. The eraser was fitted on another architecture."
            )

    def scaled(self, strength: float) -> LayerEraser:
        """I - s L R. Strength 0 keeps no direction at all, so it is the identity bit for bit."""
        if strength == 0:
            return replace(self, proj_left=self.proj_left[:, :0], proj_right=self.proj_right[:0])
        return replace(self, proj_left=self.proj_left * strength)

    def then(self, other: LayerEraser) -> LayerEraser:
        """Both edits of a weight, this one first, of rank r_self + r_other, at most d.

        E_other E_self W, or W E_self E_other on the side of the text, with
        (I - L2 R2)(I - L1 R1) = I - [L1, L2] [R1; R2 - (R2 L1) R1]. It has no rows.
        """
        if (self.width, self.side) != (other.width, other.side):
            raise EraserError(f"Widths or sides differ: {self.width} and {other.width}.")
        one, two = (other, self) if self.side == "text" else (self, other)
        crossed = two.proj_right - (two.proj_right @ one.proj_left) @ one.proj_right
        left = torch.cat([one.proj_left, two.proj_left], dim=1)
        right = torch.cat([one.proj_right, crossed], dim=0)
        if left.shape[1] > self.width:
            left, right = left @ right, torch.eye(self.width, dtype=left.dtype, device=left.device)
        return LayerEraser(left, right, side=self.side)

    def limited(self, max_rank: int) -> LayerEraser:
        """The eraser of at most that rank which comes closest to E on the forget rows.

        It minimises |X (E - E')^T| over all E' = I - L' R' of the rank: L' holds the leading
        directions U of what E changes in the rows, and R' = U^T L R. So what E keeps exactly, E'
        keeps exactly. Without rows the change itself, L R, is what is approximated.
        """
        if self.rank <= max_rank:
            return self
        frame, inner = torch.linalg.qr(self.proj_left.double())
        right = self.proj_right.double()
        seen = right if self.rows is None else right @ self.rows.double().T
        directions, _, _ = torch.linalg.svd(inner @ seen, full_matrices=False)
        leading = directions[:, :max_rank]
        dtype = self.proj_left.dtype
        left, right = (frame @ leading).to(dtype), (leading.T @ inner @ right).to(dtype)
        return replace(self, proj_left=left, proj_right=right)

    def share_changed(self) -> float | None:
        """|X - X E^T|^2 / |X|^2: how much of the forget rows' energy E changes."""
        if self.rows is None:
            return None
        changed = (self.rows @ self.proj_right.T) @ self.proj_left.T
        return float(changed.square().sum() / self.rows.square().sum().clamp(min=1e-30))

    def to(self, *args: Any, **kwargs: Any) -> LayerEraser:
        """Every tensor moved or cast as `Tensor.to` does."""
        return replace(
            self,
            proj_left=self.proj_left.to(*args, **kwargs),
            proj_right=self.proj_right.to(*args, **kwargs),
            rows=None if self.rows is None else self.rows.to(*args, **kwargs),
        )


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

    concepts: tuple[int, ...] = ()
    """How many of the forget prompts belong to each concept, in their order; empty if the file
    does not say, which means one concept."""

    capture: dict[str, float | str] = field(default_factory=dict)
    """Settings of the trajectory that the activations came from; empty if not known, or if several
    erasers with different ones were combined."""

    contribution: dict[str, float] = field(default_factory=dict)
    """Layer -> share of the forget rows' energy that its E changes; empty if not known."""

    def __post_init__(self) -> None:
        if self.edit not in EDITS:
            raise EraserError(f"edit has to be one of {', '.join(EDITS)}, got {self.edit!r}.")
        if self.concepts and (sum(self.concepts) != len(self.forget) or min(self.concepts) < 1):
            raise EraserError(
                f"concepts: expected the number of prompts of each, {len(self.forget)} in all, "
                f"got {list(self.concepts)}."
            )

    @property
    def groups(self) -> tuple[int, ...]:
        """How many forget prompts each concept has."""
        return self.concepts or (len(self.forget),)

    @property
    def names(self) -> tuple[str, ...]:
        """The first prompt of every concept, which names it."""
        starts = accumulate(self.groups[:-1], initial=0)
        return tuple(self.forget[start] for start in starts) if self.forget else ("nothing",)


@dataclass(frozen=True, eq=False)
class Eraser:
    """A concept's eraser: one `LayerEraser` per cross-attention layer.

    It holds no model weights, so it fits every fine-tune of the architecture it was made on.
    """

    layers: dict[str, LayerEraser]
    """Module path without 'diffusion_model.' -> eraser of that layer. On the side of the text most
    methods edit all layers alike: then they are one and the same object."""

    provenance: Provenance

    retain: Activations | None = field(default=None, repr=False)
    """The retain activations it was fitted with, until it is saved: joining needs them."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise EraserError("An eraser needs at least one layer, got none.")
        if len({layer.rows is None for layer in self.layers.values()}) > 1:
            raise EraserError("Some layers of the eraser have rows and others have none.")
        if len({layer.side for layer in self.layers.values()}) > 1:
            raise EraserError("Some layers of the eraser are meant for text and others are not.")

    @property
    def side(self) -> Side:
        """What its layers multiply."""
        return next(iter(self.layers.values())).side

    @property
    def widths(self) -> dict[str, int]:
        """Layer -> d: the architecture it fits, by the widths of its side."""
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
            side = "" if layer.side == "activations" else f" {layer.side}"
            digest.update(f"{name} {layer.width} {layer.rank}{side}\n".encode())
            digest.update(layer.proj_left.contiguous().numpy().tobytes())
            digest.update(layer.proj_right.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def strength(self, strength: float) -> Eraser:
        """E_s = I - s L R for every layer: 0 the identity, 1 as fitted, below 0 amplifies."""
        layers = self._each(lambda layer: layer.scaled(strength))
        settings = self.provenance.settings | {"strength": float(strength)}
        made = replace(self.provenance, settings=settings, contribution=contribution(layers))
        return Eraser(layers, made)

    def limited(self, max_rank: int) -> Eraser:
        """At most `max_rank` directions a layer, those in which the forget rows change most.

        Raises:
            EraserError: `max_rank` below 1.
        """
        if max_rank < 1:
            raise EraserError(f"max_rank: expected 1 or more, got {max_rank}.")
        if max(self.ranks.values()) <= max_rank:
            return self
        layers = self._each(lambda layer: layer.limited(max_rank))
        settings = self.provenance.settings | {"max_rank": max_rank}
        made = replace(self.provenance, settings=settings, contribution=contribution(layers))
        return Eraser(layers, made).without_rows()

    def without_rows(self) -> Eraser:
        """The same, smaller, and not to be joined with others any more."""
        layers = self._each(lambda layer: replace(layer, rows=None))
        return Eraser(layers, self.provenance)

    def to(self, *args: Any, **kwargs: Any) -> Eraser:
        """Every factor moved or cast as `Tensor.to` does."""
        layers = self._each(lambda layer: layer.to(*args, **kwargs))
        return Eraser(layers, self.provenance, self.retain)

    def _each(self, change: Callable[[LayerEraser], LayerEraser]) -> dict[str, LayerEraser]:
        distinct = {id(layer): layer for layer in self.layers.values()}
        changed = {key: change(layer) for key, layer in distinct.items()}
        return {name: changed[id(layer)] for name, layer in self.layers.items()}


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


def product(layers: Sequence[LayerEraser]) -> LayerEraser:
    """All edits, first to last, as one.

    Neighbours are multiplied pairwise: only where ranks have grown to the width does a product
    cost d^3, and of such there are few, so the time grows with the number of layers alone.
    """
    while len(layers) > 1:
        odd = layers[len(layers) & ~1 :]
        pairs = zip(layers[::2], layers[1::2], strict=False)
        layers = [*(first.then(second) for first, second in pairs), *odd]
    return layers[0]


def compressed(rows: Tensor) -> Tensor:
    """X of shape (n, d) with at most d rows and the same X^T X."""
    n, d = rows.shape
    return rows if n <= d else torch.linalg.qr(rows, mode="r").R


def contribution(layers: Mapping[str, LayerEraser]) -> dict[str, float]:
    """Layer -> share of the forget rows' energy that is changed, or nothing if it is not known."""
    shares = {name: layer.share_changed() for name, layer in layers.items()}
    return {name: share for name, share in shares.items() if share is not None}
