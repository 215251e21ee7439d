"""The eraser: one low-rank change of the identity per cross-attention layer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .anchors import AnchorSet
from .errors import EraserError, require_one_of
from .families.site import Role
from .model_identity import ModelIdentity
from .trajectory import Trajectory

Edit = Literal["keys and values", "values", "keys"]
"""Which of a cross-attention's projections E multiplies: W_K and W_V, W_V alone, W_K alone."""

EDITS: tuple[Edit, ...] = get_args(Edit)

ROLES: dict[Edit, tuple[Role, ...]] = {
    "keys and values": ("keys", "values"),
    "values": ("values",),
    "keys": ("keys",),
}
"""What is edited -> the roles of the projections that it means."""

Space = Literal["activations", "text"]
"""What E multiplies. activations: the layer's outputs h, W <- E W. text: the text encoder's
vectors c before the layer reads them, W <- W E."""

SPACES: tuple[Space, ...] = get_args(Space)


@dataclass(frozen=True, eq=False)
class LayerEraser:
    """E = I - proj_left @ proj_right for one layer.

    Every method here changes only what lies in a few directions, so the d x d matrix is the
    identity plus something of low rank and is never formed.

    E is meant for activations h, the outputs of all heads side by side. Multiplying the value
    projection by E gives E h exactly for one head, where attention mixes values linearly:
    A (V E^T) = (A V) E^T. With several heads it does so for what E mixes within a head; a value
    that E carries to another head is weighted by that head's attention instead of its own.

    An eraser in text space is meant for the vectors c that the layer reads. Then d is
    their width, and keys and values of E c are (W E) c.
    """

    proj_left: Tensor
    """L of shape (d, r)."""

    proj_right: Tensor
    """R of shape (r, d)."""

    rows: Tensor | None = None
    """X of shape (m, d) with X^T X = H_F^T H_F / n_F, the second moment of the forget rows, which
    joining with other concepts needs. None where it is not known."""

    space: Space = "activations"

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
        """E_s W = W - s L (R W), or in text space W E_s = W - s (W L) R.

        Computed in float32 or better and returned in the weight's own type, on its device.
        Strength 0 returns the weight itself, below 0 amplifies. The change has rank <= r: see
        `change`.

        Args:
            weight: (d, in), or in text space (out, d). A bias (d,) is edited as a
                column, and left as it is in text space, which it does not read.

        Raises:
            EraserError: the weight has another width than the eraser.
        """
        if strength == 0:
            return weight
        if weight.ndim == 1:
            on_text = self.space == "text"
            return weight if on_text else self.edit_weight(weight[:, None], strength)[:, 0]
        self._require_fitting(weight)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        wide = weight.to(dtype)
        up, down = self.to(weight.device, dtype).change(wide)
        return torch.addmm(wide, up, down, alpha=strength).to(weight.dtype)

    def change(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The thin factors of E W - W, or W E - W: the LoRA's up (out, r) and down (r, in)."""
        if self.space == "text":
            return -(weight @ self.proj_left), self.proj_right
        return -self.proj_left, self.proj_right @ weight

    def _require_fitting(self, weight: Tensor) -> None:
        axis = 1 if self.space == "text" else 0
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

        E_other E_self W, or W E_self E_other in text space, with
        (I - L2 R2)(I - L1 R1) = I - [L1, L2] [R1; R2 - (R2 L1) R1]. It has no rows.
        """
        if (self.width, self.space) != (other.width, other.space):
            raise EraserError(f"Widths or spaces differ: {self.width} and {other.width}.")
        one, two = (other, self) if self.space == "text" else (self, other)
        crossed = two.proj_right - (two.proj_right @ one.proj_left) @ one.proj_right
        left = torch.cat([one.proj_left, two.proj_left], dim=1)
        right = torch.cat([one.proj_right, crossed], dim=0)
        if left.shape[1] > self.width:
            left, right = left @ right, torch.eye(self.width, dtype=left.dtype, device=left.device)
        return LayerEraser(left, right, space=self.space)

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

    forget: AnchorSet
    """The concepts' anchors."""

    retain: AnchorSet
    """Those of their neighbours, empty if there were none."""

    edit: Edit
    """Which projections the method edits."""

    model: ModelIdentity
    """The model that it was fitted on."""

    created: str
    """ISO date."""

    plugin_version: str

    trajectory: Trajectory | None = None
    """How the activations were captured that it was fitted on; None for methods that capture
    none, or if several erasers with different ones were combined."""

    contribution: dict[str, float] = field(default_factory=dict)
    """Layer -> share of the forget rows' energy that its E changes; empty if not known."""

    def __post_init__(self) -> None:
        require_one_of("edit", self.edit, EDITS, EraserError)

    @property
    def concepts(self) -> tuple[str, ...]:
        """The names of the concepts that it erases."""
        return self.forget.concepts

    @property
    def title(self) -> str:
        """The concepts for messages: the first one, and how many more."""
        more = len(self.concepts) - 1
        first = f"'{self.concepts[0]}'" if self.concepts else "nothing"
        return f"{first} and {more} more" if more > 0 else first


@dataclass(frozen=True, eq=False)
class Eraser:
    """A concept's eraser: one `LayerEraser` per cross-attention layer.

    It holds no model weights, so it fits every fine-tune of the architecture it was made on.
    """

    layers: dict[str, LayerEraser]
    """Name of the site -> eraser of that layer. In text space most methods make the same
    edit in all layers: then they are one and the same object."""

    provenance: Provenance

    strength: float = 1.0
    """How far to go: 1 erases as fitted, 0 changes nothing, below 0 amplifies the concept. The
    layers are those of strength 1."""

    edit: Edit | None = None
    """Which projections to edit; None for those that the method edits."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise EraserError(f"strength: expected a number, got {self.strength}.")
        if self.edit is not None:
            require_one_of("edit", self.edit, EDITS, EraserError)
        if not self.layers:
            raise EraserError("An eraser needs at least one layer, got none.")
        if len({layer.rows is None for layer in self.layers.values()}) > 1:
            raise EraserError("Some layers of the eraser have rows and others have none.")
        if len({layer.space for layer in self.layers.values()}) > 1:
            raise EraserError("Some layers of the eraser are meant for text and others are not.")

    @property
    def edited(self) -> Edit:
        """Which projections are edited."""
        return self.edit or self.provenance.edit

    @property
    def roles(self) -> tuple[Role, ...]:
        """The same as the projections' roles."""
        return ROLES[self.edited]

    @property
    def joinable(self) -> bool:
        """Whether it holds the rows that joining with other erasers needs."""
        return all(layer.rows is not None for layer in self.layers.values())

    @property
    def space(self) -> Space:
        """What its layers multiply."""
        return next(iter(self.layers.values())).space

    @property
    def widths(self) -> dict[str, int]:
        """Layer -> d: the architecture it fits, by the widths of its space."""
        return {name: layer.width for name, layer in self.layers.items()}

    @property
    def ranks(self) -> dict[str, int]:
        """Layer -> r."""
        return {name: layer.rank for name, layer in self.layers.items()}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over layer names, shapes and float32 factors: the same fit everywhere."""
        digest = hashlib.sha256()
        for name in sorted(self.layers):
            layer = self.layers[name].to("cpu", torch.float32)
            space = "" if layer.space == "activations" else f" {layer.space}"
            digest.update(f"{name} {layer.width} {layer.rank}{space}\n".encode())
            digest.update(layer.proj_left.contiguous().numpy().tobytes())
            digest.update(layer.proj_right.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def applied(self, strength: float = 1.0, edit: Edit | None = None) -> Eraser:
        """The same at a multiple of its strength, and editing other projections if asked to."""
        return replace(self, strength=self.strength * strength, edit=edit or self.edit)

    def limited(self, max_rank: int) -> Eraser:
        """At most `max_rank` directions a layer, those in which the forget rows change most.

        Raises:
            EraserError: `max_rank` below 1.
        """
        if max_rank < 1:
            raise EraserError(f"max_rank: expected 1 or more, got {max_rank}.")
        if max(self.ranks.values()) <= max_rank:
            return self
        limited = replace(self, layers=self._each(lambda layer: layer.limited(max_rank)))
        made = replace(
            self.provenance,
            settings=self.provenance.settings | {"max_rank": max_rank},
            contribution=contribution(limited.layers),
        )
        return replace(limited, provenance=made).without_rows()

    def without_rows(self) -> Eraser:
        """The same, smaller; it cannot be joined with others any more."""
        return replace(self, layers=self._each(lambda layer: replace(layer, rows=None)))

    def to(self, *args: Any, **kwargs: Any) -> Eraser:
        """Every factor moved or cast as `Tensor.to` does."""
        return replace(self, layers=self._each(lambda layer: layer.to(*args, **kwargs)))

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
