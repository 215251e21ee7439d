"""Settings that follow from the rows: what is left out says how a fit carries over.

A least-squares eraser (`least_squares.py`) has a damping and an overshoot, whose right values
depend on how a model's vectors are spread. Here both are chosen by cross-validation. With

    N = M A^-1,  A = C_F + balance C_R + damping tau I,  E = I - s N

(M = (H_F - T_F)^T H_F / n_F, C = H^T H / n, tau = tr C_R / d) every group of the concept's rows, as
a rule a phrasing, is left out in turn, and so is every neighbour, and of what was left out is read

    reach  r = <N h, h - t> / |h - t|^2    how far the concept's rows go towards their targets,
    energy q = |N h|^2 / |h - t|^2         how far they go at all,
    moved  m = |N h_R|^2 / |h - t|^2       how far a neighbour goes that was not listed,

as means over rows. s = 1 / r takes rows that were left out to their targets, no further: that is
all the overshoot there is. The damping is the one at which, at that s, the error is least,

    |E h - t|^2 + balance |E h_R - h_R|^2,  in shares of |h - t|^2:  q / r^2 - 1 + balance m / r^2.

All of this stays the same if rows are scaled, rotated, or neighbours repeated.

The left-out errors need moments only: one eigendecomposition of A for each group that is left out
gives all dampings. In spaces wider than `MOST` the moments are those of the rows in their
`MOST` leading directions.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .method import Setting

BALANCE = Setting(
    "balance",
    10.0,
    "What moving a neighbour counts against leaving as much of the concept. Higher keeps "
    "neighbours better, lower erases more in prompts that were not given. It has no unit.",
    least=0.1,
    most=1000,
    step=0.1,
)

DAMPINGS = tuple(10.0 ** (power / 2) for power in range(-8, 7))
"""Those that are tried, 0.0001 to 1000: tau is smaller where most of the width is empty."""

MOST = 256
"""The widest space in which moments are taken."""

FARTHEST = 3.0
"""The most that an eraser is scaled by. Dampings that would need more are not chosen."""

NEARLY = 0.9
"""Where all would, the eraser does not carry over, and one that reaches nearly as far as any is
chosen: this share of it."""


class Chosen(NamedTuple):
    """What the left-out rows say is best."""

    damping: float
    overshoot: float

    reach: float
    """r, before the overshoot; the share of the way to its target that a left-out row goes."""

    moved: float
    """sqrt(m) at that overshoot: how far a left-out neighbour is moved, in the concept's way."""

    def rounded(self) -> dict[str, float]:
        """For the report, to three digits."""
        return {name: float(f"{value:.3g}") for name, value in self._asdict().items()}


@dataclass(frozen=True, eq=False)
class Groups:
    """One block's rows, in groups that are left out in turn.

    A block is what E may mix: the text's space, a layer, or one head of a layer.
    """

    forget: Sequence[Tensor]
    """Of every group (n, d), float64: the concept's rows."""

    others: Sequence[Tensor]
    """Of every group (j, n, d): what stands for each row, of each neighbour, whose mean is the
    target; or of what the concept becomes, with j = 1."""

    kept: Sequence[Tensor]
    """Of every neighbour (m, d): all of its rows."""

    always: Tensor
    """(m, d): rows that are kept whatever is left out, such as the empty prompt's. May be none."""

    shifting: bool = True
    """Whether a neighbour that is left out of what is kept is missing from the targets, too."""


class _Moments(NamedTuple):
    """Sums over the rows of groups, each (groups, d, d) if nothing else is said."""

    seen: Tensor
    """F^T F, of the concept's groups."""

    sent: Tensor
    """(F - T)^T F."""

    kept: Tensor
    """R^T R, of the neighbours, then of what is always kept."""

    shift: Tensor
    """What leaving out a neighbour adds to the sum of `sent`."""

    forget_rows: Tensor
    """(groups,): how many there are."""

    kept_rows: Tensor
    gap: float
    """Sum of |h - t|^2."""

    tau: float


def numbers_by(keys: Iterable[Hashable]) -> list[list[int]]:
    """The numbers of equal keys, in the order in which each comes first."""
    found: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key, []).append(number)
    return list(found.values())


def calibrate(blocks: Sequence[Groups], balance: float) -> Chosen:
    """The damping and overshoot for blocks that share them, such as the heads of a layer.

    A block of which nothing differs from the targets does not count.
    """
    counted = [moments for moments in map(_moments, blocks) if moments.gap > 0]
    if not counted:
        return Chosen(DAMPINGS[-1], 1.0, 1.0, 0.0)
    gap = sum(moments.gap for moments in counted)
    totals = torch.stack([_left_out(moments, balance) for moments in counted]).sum(0) / gap
    reach, energy, moved = totals.clamp(min=1e-9)
    at_target = (energy + balance * moved) / reach.square()
    within = reach >= min(1 / FARTHEST, NEARLY * float(reach.max()))
    best = int(torch.where(within, at_target, torch.inf).argmin())
    overshoot = min(1 / float(reach[best]), FARTHEST)
    return Chosen(
        DAMPINGS[best],
        overshoot,
        float(reach[best]),
        overshoot * float(moved[best]) ** 0.5,
    )


def _moments(groups: Groups) -> _Moments:
    basis = _basis(groups)
    forget = [each @ basis for each in groups.forget]
    others = [each @ basis for each in groups.others]
    kept = [each @ basis for each in (*groups.kept, groups.always)]
    targets = [each.mean(0) for each in others]
    gaps = [rows - target for rows, target in zip(forget, targets, strict=True)]
    sent = torch.stack([gap.T @ rows for gap, rows in zip(gaps, forget, strict=True)])
    count = len(groups.kept)
    shift = torch.zeros(count, *sent.shape[1:], dtype=sent.dtype)
    if groups.shifting and count > 1:
        for number in range(count):
            parts = zip(others, targets, forget, strict=True)
            moved = [(each[number] - mean).T @ rows for each, mean, rows in parts]
            shift[number] = torch.stack(moved).sum(0) / (count - 1)
    every = torch.cat([*groups.kept, groups.always])
    return _Moments(
        torch.stack([rows.T @ rows for rows in forget]),
        sent,
        torch.stack([rows.T @ rows for rows in kept]),
        shift,
        torch.tensor([len(rows) for rows in forget], dtype=sent.dtype),
        torch.tensor([len(rows) for rows in kept], dtype=sent.dtype),
        float(sum(gap.square().sum() for gap in gaps)),
        float(every.square().mean()),
    )


def _basis(groups: Groups) -> Tensor:
    """(d, k): orthonormal directions of all rows, the leading ones where there are many."""
    forget, kept = torch.cat(list(groups.forget)), torch.cat([*groups.kept, groups.always])
    if kept.shape[1] <= MOST:
        return torch.eye(kept.shape[1], dtype=kept.dtype)
    rows = torch.cat([forget / len(forget) ** 0.5, kept / len(kept) ** 0.5])
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    leading: Tensor = directions[:MOST].T
    return leading


def _left_out(moments: _Moments, balance: float) -> Tensor:
    """(3, dampings): the sums of reach, energy and moved over everything that is left out."""
    count, neighbours = len(moments.seen), len(moments.shift)
    seen, sent, kept = moments.seen.sum(0), moments.sent.sum(0), moments.kept.sum(0)
    rows, kept_rows = moments.forget_rows.sum(), moments.kept_rows.sum()
    found = torch.zeros(3, len(DAMPINGS), dtype=kept.dtype)
    for number in range(count):
        rest = rows - moments.forget_rows[number] if count > 1 else rows
        own_seen, own_sent = moments.seen[number], moments.sent[number]
        out = float(count > 1)  # there is no other that a single one could be left out of
        inner = (seen - out * own_seen) / rest + balance * kept / kept_rows
        applied = _applied(inner, (sent - out * own_sent) / rest, moments.tau, own_seen, own_sent)
        found[:2] += torch.stack(applied)
    for number in range(neighbours):
        own_kept, out = moments.kept[number], float(neighbours > 1)
        rest = kept_rows - out * moments.kept_rows[number]
        inner = seen / rows + balance * (kept - out * own_kept) / rest
        without = (sent + moments.shift[number]) / rows
        _, energy = _applied(inner, without, moments.tau, own_kept, sent)
        found[2] += energy * rows / moments.kept_rows[:neighbours].sum()
    return found


def _applied(
    inner: Tensor, sent: Tensor, tau: float, seen: Tensor, towards: Tensor
) -> tuple[Tensor, Tensor]:
    """<N, towards> and <N seen, N> for every damping, with N = sent (inner + damping tau I)^-1."""
    values, vectors = torch.linalg.eigh(inner)
    dampings = torch.tensor(DAMPINGS, dtype=inner.dtype)[:, None]
    inverse = 1 / (values.clamp(min=0) + dampings * tau)
    turned = sent @ vectors
    along = (turned * (towards @ vectors)).sum(0)
    spread = (turned.T @ turned) * (vectors.T @ seen @ vectors)
    return inverse @ along, torch.einsum("gi,ij,gj->g", inverse, spread, inverse)
