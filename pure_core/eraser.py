"""The eraser: one low-rank change of the identity per cross-attention layer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from .anchors import NO_ANCHORS, AnchorSet
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

AtShared = Literal["left alone", "in the weights", "while sampling"]
"""What is done where text and picture share their projections. left alone: nothing. in the weights:
the values of both are multiplied by E. while sampling: those of the text alone are, which no weight
can do, so it cannot be exported."""

AT_SHARED: tuple[AtShared, ...] = get_args(AtShared)

USUALLY: AtShared = "while sampling"
"""In the graph, if nothing is said."""

IN_FILES: AtShared = "in the weights"
"""What files get instead of what they cannot hold."""

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
    that E carries to another head is weighted by that head's attention instead of its own. So an
    E of one block a head arrives exactly: its factors hold the blocks one after the other, and
    everything here works on all of them at once.

    An eraser in text space is meant for the vectors c that the layer reads. Then d is
    their width, and keys and values of E c are (W E) c.
    """

    proj_left: Tensor
    """L of shape (d, r), or (heads, d / heads, r) with a block for each head."""

    proj_right: Tensor
    """R of shape (r, d), or (heads, r, d / heads)."""

    rows: Tensor | None = None
    """X of shape (m, d) with X^T X = H_F^T H_F / n_F, the second moment of the forget rows, which
    joining with other concepts needs. None where it is not known."""

    space: Space = "activations"

    def __post_init__(self) -> None:
        left, right = tuple(self.proj_left.shape), tuple(self.proj_right.shape)
        if len(left) not in (2, 3) or left != (*right[:-2], right[-1], right[-2]) or 0 in left[:-1]:
            raise EraserError(
                "Expected proj_left of shape (d, r) and proj_right of shape (r, d), or (heads, "
                f"d / heads, r) and (heads, r, d / heads), got {left} and {right}."
            )
        if self.rows is not None and (self.rows.ndim != 2 or self.rows.shape[1] != self.width):
            raise EraserError(
                f"Expected rows of shape (m, {self.width}), got {tuple(self.rows.shape)}."
            )
        if self.by_head and self.space == "text":
            raise EraserError("The text has no heads: expected factors (d, r) and (r, d).")

    @classmethod
    def of_heads(cls, blocks: Sequence[LayerEraser], rows: Tensor | None = None) -> LayerEraser:
        """One block for each head, of the same width; ranks may differ."""
        rank = max(block.rank for block in blocks)
        lefts = [pad(block.proj_left, (0, rank - block.rank)) for block in blocks]
        rights = [pad(block.proj_right, (0, 0, 0, rank - block.rank)) for block in blocks]
        return cls(torch.stack(lefts), torch.stack(rights), rows)

    @property
    def by_head(self) -> bool:
        """Whether every head is changed by itself."""
        return self.proj_left.ndim == 3

    @property
    def heads(self) -> int:
        """How many blocks E has: the layer's heads, or 1 where it may mix them."""
        return self.proj_left.shape[0] if self.by_head else 1

    @property
    def width(self) -> int:
        """d, the number of channels of the layer's outputs or of the text."""
        return self.heads * self.proj_left.shape[-2]

    @property
    def rank(self) -> int:
        """r, an upper bound of the rank of E - I, or of each head's block of it."""
        return self.proj_left.shape[-1]

    @property
    def total_rank(self) -> int:
        """An upper bound of the rank of all of E - I."""
        return self.heads * self.rank

    @property
    def P(self) -> Tensor:
        """E as a dense (d, d) matrix. For tests and reports: d is up to 2048."""
        eye = torch.eye(self.width, dtype=self.proj_left.dtype, device=self.proj_left.device)
        dense = self.dense()
        return eye - dense.proj_left @ dense.proj_right

    def dense(self) -> LayerEraser:
        """The same with factors (d, heads r) and (heads r, d), most of them zero."""
        if not self.by_head:
            return self
        left, right = _block_diagonal(self.proj_left), _block_diagonal(self.proj_right)
        return replace(self, proj_left=left, proj_right=right)

    def head(self, number: int) -> LayerEraser:
        """One head's block as an eraser of its own, with that head's columns of the rows."""
        rows = None if self.rows is None else self._blocks(self.rows)[..., number, :]
        return replace(
            self, proj_left=self.proj_left[number], proj_right=self.proj_right[number], rows=rows
        )

    def _blocks(self, x: Tensor) -> Tensor:
        """x (..., d) as (..., heads, d / heads)."""
        return rearrange(x, "... (head d) -> ... head d", head=self.heads)

    def _weight_blocks(self, weight: Tensor) -> Tensor:
        """A weight (d, in) as (heads, d / heads, in)."""
        return rearrange(weight, "(head d) into -> head d into", head=self.heads)

    def _columns(self, rows: Tensor) -> Tensor:
        """Rows (m, d) as columns of what the right factor multiplies: (d, m), or by heads."""
        return self._blocks(rows).permute(1, 2, 0) if self.by_head else rows.T

    def __call__(self, x: Tensor) -> Tensor:
        """E x for activations or text vectors of shape (..., d)."""
        if not self.by_head:
            return x - (x @ self.proj_right.T) @ self.proj_left.T
        seen = torch.einsum("...hd,hrd->...hr", self._blocks(x), self.proj_right)
        return x - torch.einsum("...hr,hdr->...hd", seen, self.proj_left).flatten(-2)

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
        wide, factors = weight.to(dtype), self.to(weight.device, dtype)
        if self.by_head:
            blocks = self._weight_blocks(wide)
            seen = factors.proj_right @ blocks
            edited = torch.baddbmm(blocks, factors.proj_left, seen, alpha=-strength)
            return edited.flatten(0, 1).to(weight.dtype)
        up, down = factors.change(wide)
        return torch.addmm(wide, up, down, alpha=strength).to(weight.dtype)

    def change(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The thin factors of E W - W, or W E - W: the LoRA's up (out, r) and down (r, in).

        Of an E by heads, r is the total rank.
        """
        if self.space == "text":
            return -(weight @ self.proj_left), self.proj_right
        if self.by_head:
            down = self.proj_right @ self._weight_blocks(weight)
            return -_block_diagonal(self.proj_left), down.flatten(0, 1)
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
            left, right = self.proj_left[..., :0], self.proj_right[..., :0, :]
            return replace(self, proj_left=left, proj_right=right)
        return replace(self, proj_left=self.proj_left * strength)

    def then(self, other: LayerEraser) -> LayerEraser:
        """Both edits of a weight, this one first, of rank r_self + r_other, at most d.

        E_other E_self W, or W E_self E_other in text space, with
        (I - L2 R2)(I - L1 R1) = I - [L1, L2] [R1; R2 - (R2 L1) R1]. It has no rows. It is by
        heads if both are.
        """
        if (self.width, self.space) != (other.width, other.space):
            raise EraserError(f"Widths or spaces differ: {self.width} and {other.width}.")
        one, two = (other, self) if self.space == "text" else (self, other)
        if one.heads != two.heads:
            one, two = one.dense(), two.dense()
        crossed = two.proj_right - (two.proj_right @ one.proj_left) @ one.proj_right
        left = torch.cat([one.proj_left, two.proj_left], dim=-1)
        right = torch.cat([one.proj_right, crossed], dim=-2)
        size = left.shape[-2]
        if left.shape[-1] > size:
            eye = torch.eye(size, dtype=left.dtype, device=left.device)
            left, right = left @ right, eye.expand(*left.shape[:-2], size, size)
        return LayerEraser(left, right, space=self.space)

    def limited(self, max_rank: int) -> LayerEraser:
        """The eraser of at most that rank, or in each head, that comes closest to E on the rows.

        It minimises |X (E - E')^T| over all E' = I - L' R' of the rank: L' holds the leading
        directions U of what E changes in the rows, and R' = U^T L R. So what E keeps exactly, E'
        keeps exactly. Without rows the change itself, L R, is what is approximated.
        """
        if self.rank <= max_rank:
            return self
        frame, inner = torch.linalg.qr(self.proj_left.double())
        right = self.proj_right.double()
        seen = right if self.rows is None else right @ self._columns(self.rows.double())
        directions, _, _ = torch.linalg.svd(inner @ seen, full_matrices=False)
        leading = directions[..., :max_rank]
        dtype = self.proj_left.dtype
        left, right = (frame @ leading).to(dtype), (leading.mT @ inner @ right).to(dtype)
        return replace(self, proj_left=left, proj_right=right)

    def share_changed(self) -> float | None:
        """|X - X E^T|^2 / |X|^2: how much of the forget rows' energy E changes."""
        if self.rows is None:
            return None
        changed = self.rows - self(self.rows)
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

    replacement: AnchorSet = NO_ANCHORS
    """The anchors of what the concepts become; empty where nothing was chosen for that."""

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

    at_shared: AtShared | None = None
    """What to do where text and picture share their projections; None for the usual."""

    def __post_init__(self) -> None:
        if self.at_shared is not None:
            require_one_of("shared", self.at_shared, AT_SHARED, EraserError)
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
        """Layer -> r, in each head where it is by heads."""
        return {name: layer.rank for name, layer in self.layers.items()}

    @property
    def heads(self) -> dict[str, int]:
        """Layer -> heads, of the layers that are by heads."""
        return {name: layer.heads for name, layer in self.layers.items() if layer.by_head}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over layer names, shapes and float32 factors: the same fit everywhere."""
        digest = hashlib.sha256()
        for name in sorted(self.layers):
            layer = self.layers[name].to("cpu", torch.float32)
            space = "" if layer.space == "activations" else f" {layer.space}"
            heads = f" {layer.heads} heads" if layer.by_head else ""
            digest.update(f"{name} {layer.width} {layer.rank}{space}{heads}\n".encode())
            digest.update(layer.proj_left.contiguous().numpy().tobytes())
            digest.update(layer.proj_right.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def applied(
        self, strength: float = 1.0, edit: Edit | None = None, at_shared: AtShared | None = None
    ) -> Eraser:
        """The same at a multiple of its strength, and editing otherwise if asked to."""
        return replace(
            self,
            strength=self.strength * strength,
            edit=edit or self.edit,
            at_shared=at_shared or self.at_shared,
        )

    @property
    def shared(self) -> AtShared:
        """What is done in the graph where text and picture share their projections."""
        return self.at_shared or USUALLY

    @property
    def shared_in_files(self) -> AtShared:
        """The same in files."""
        return IN_FILES if self.shared == "while sampling" else self.shared

    def limited(self, max_rank: int) -> Eraser:
        """At most `max_rank` directions a layer, or a head, those in which the rows change most.

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


def _block_diagonal(blocks: Tensor) -> Tensor:
    """(heads, a, b) as a matrix (heads a, heads b), zero but for the blocks."""
    heads = torch.arange(len(blocks), device=blocks.device)
    spread = blocks.new_zeros(len(blocks), blocks.shape[1], len(blocks), blocks.shape[2])
    spread[heads, :, heads] = blocks
    return spread.flatten(2, 3).flatten(0, 1)


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
