"""Activations: what every cross-attention layer put out for a set of anchors.

A row is the post-attention activation `h` of one layer, before its output projection, averaged
over the spatial positions (PURE, arXiv 2605.25765, step 1 "collect"). There is one row per
anchor, latent and denoising step, so each layer has a matrix H of shape (n, d).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange, repeat
from torch import Tensor

from .anchors import AnchorSet
from .errors import ActivationError
from .model_identity import ModelIdentity
from .trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Activations:
    """Rows of every layer for a set of anchors, and how they were captured."""

    rows: dict[str, Tensor]
    """Layer -> H of shape (n, d), float32 on the CPU, n = anchors x latents x run_steps x cells^2.

    Ordered by anchor, then latent, then step, then cell.
    """

    anchors: AnchorSet
    trajectory: Trajectory
    model: ModelIdentity

    means: dict[str, Tensor] | None = None
    """Of activations by cells: layer -> the means over the whole picture, (anchors x latents x
    run_steps, d). Cells overlap where they do not divide a picture, so the mean over cells is not
    the mean over positions. None with one cell, whose rows are these means."""

    heads: dict[str, int] = field(default_factory=dict)
    """Layer -> heads side by side in its rows. Empty if that was not recorded."""

    def __post_init__(self) -> None:
        self.trajectory.check()
        if not self.anchors:
            raise ActivationError("Activations need at least one prompt, got none.")
        if not self.rows:
            raise ActivationError("Activations need at least one layer, got none.")
        if (self.means is None) != (self.trajectory.cells == 1) or (
            self.means is not None and self.means.keys() != self.rows.keys()
        ):
            raise ActivationError(
                "Activations by cells need the means over the whole picture for every layer, "
                "others have none."
            )
        for layer, rows in self.rows.items():
            self._check(layer, rows, self.trajectory.cells**2)
        for layer, rows in (self.means or {}).items():
            self._check(layer, rows, 1)
        for layer, heads in self.heads.items():
            if layer not in self.rows or heads < 1 or self.rows[layer].shape[1] % heads:
                raise ActivationError(
                    f"heads: {heads} for layer {layer}, which is not a number into which its "
                    f"{self.widths.get(layer, 0)} channels divide."
                )

    def _check(self, layer: str, rows: Tensor, cells: int) -> None:
        trajectory = self.trajectory
        expected = len(self.anchors) * trajectory.latents * trajectory.run_steps * cells
        if rows.ndim != 2 or rows.shape[0] != expected or rows.shape[1] == 0:
            raise ActivationError(
                f"Layer {layer}: expected {expected} rows ({len(self.anchors)} prompts x "
                f"{trajectory.latents} latents x {trajectory.run_steps} steps x {cells} cells) of "
                f"one width, got shape {tuple(rows.shape)}."
            )
        if rows.dtype != torch.float32 or rows.device.type != "cpu":
            raise ActivationError(
                f"Layer {layer}: expected float32 rows on the CPU, got {rows.dtype} on "
                f"{rows.device}."
            )
        bad = int((~torch.isfinite(rows)).any(dim=1).sum())
        if bad:
            raise ActivationError(
                f"Layer {layer}: {bad} of {expected} captured rows hold NaN or infinity. The "
                "model gives invalid numbers there: check that it samples a normal image, and "
                "try it in float32."
            )

    @property
    def widths(self) -> dict[str, int]:
        """Layer -> d."""
        return {layer: rows.shape[1] for layer, rows in self.rows.items()}

    @property
    def prompts(self) -> tuple[str, ...]:
        """The anchors' texts."""
        return self.anchors.prompts

    def split(self, anchors: int) -> tuple[Activations, Activations | None]:
        """The first anchors and the rest, None if there is none."""

        def part(own: AnchorSet, chosen: slice) -> Activations:
            def cut(each: Tensor) -> Tensor:
                per_anchor = len(each) // len(self.anchors)
                # A copy: a slice would keep the rows of the other part in memory.
                grid = rearrange(each, "(anchor row) d -> anchor row d", row=per_anchor)
                return rearrange(grid[chosen], "anchor row d -> (anchor row) d").clone()

            rows = {layer: cut(each) for layer, each in self.rows.items()}
            means = self.means and {layer: cut(each) for layer, each in self.means.items()}
            return replace(self, rows=rows, anchors=own, means=means)

        rest = self.anchors[anchors:]
        first = part(self.anchors[:anchors], slice(anchors))
        return first, part(rest, slice(anchors, None)) if rest else None

    def head(self, layer: str, number: int) -> Activations:
        """The rows of one head of one layer, (n, d / heads)."""

        def columns(rows: Tensor) -> Tensor:
            split = rearrange(rows, "n (head d) -> head n d", head=self.heads[layer])
            return split[number].contiguous()

        means = self.means and {layer: columns(self.means[layer])}
        return replace(self, rows={layer: columns(self.rows[layer])}, means=means, heads={})

    def grid(self, layer: str) -> Tensor:
        """The rows of one layer as (anchors, latents, run_steps x cells^2, d)."""
        return rearrange(
            self.rows[layer],
            "(anchor latent step) d -> anchor latent step d",
            anchor=len(self.anchors),
            latent=self.trajectory.latents,
        )

    def pooled(self) -> Activations:
        """The same averaged over the whole picture, as PURE's are."""
        if self.means is None:
            return self
        whole = self.trajectory._replace(cells=1)
        return replace(self, rows=self.means, means=None, trajectory=whole)

    def concatenate(self, *others: Activations) -> Activations:
        """These anchors followed by the others'.

        Raises:
            ActivationError: they were captured with different settings, from different models, or
                at different layers.
        """
        every = (self, *others)
        for other in others:
            self._require_comparable(other)
        rows = {layer: torch.cat([each.rows[layer] for each in every]) for layer in self.rows}
        means = None
        if self.means is not None:
            parts = [each.means or {} for each in every]
            means = {layer: torch.cat([each[layer] for each in parts]) for layer in self.rows}
        anchors = sum((each.anchors for each in others), self.anchors)
        return replace(self, rows=rows, anchors=anchors, means=means)

    def differences(self, other: Activations) -> list[str]:
        """In words, in what the two captures differ; empty if their rows are comparable."""
        found = self.trajectory.differences(other.trajectory)
        model = self.model.difference(other.model)
        return [*found, *([model] if model else [])]

    def _require_comparable(self, other: Activations) -> None:
        differences = self.differences(other)
        if differences:
            raise ActivationError(
                "Activations captured in different ways cannot be joined. They differ in: "
                + "; ".join(differences)
                + ". Capture both with the same settings and model."
            )
        if self.widths != other.widths or self.heads != other.heads:
            raise ActivationError(
                "Activations of different layers cannot be joined: "
                f"{len(self.rows)} layers of widths {sorted(set(self.widths.values()))} and "
                f"{len(other.rows)} of widths {sorted(set(other.widths.values()))}."
            )


class ActivationCollector:
    """Accumulates rows in whatever order and batches the sampler produces them.

    Every place of the grid (layer, anchor, latent, step) has to be written exactly once;
    anything else means that a hook was bypassed or ran twice, and is an error.
    """

    def __init__(
        self,
        layers: Mapping[str, int],
        anchors: AnchorSet,
        trajectory: Trajectory,
        model: ModelIdentity,
        heads: Mapping[str, int] | None = None,
    ) -> None:
        """`layers` maps each layer's name to its width d, `heads` to its number of heads."""
        self.anchors, self.trajectory, self.model = anchors, trajectory, model
        self.heads = dict(heads or {})
        grid = (len(anchors), trajectory.latents, trajectory.run_steps)
        parts = trajectory.cells**2
        self._rows = {layer: torch.zeros(*grid, parts, d) for layer, d in layers.items()}
        self._means = (
            {layer: torch.zeros(*grid, d) for layer, d in layers.items()} if parts > 1 else None
        )
        self._written = {layer: torch.zeros(grid, dtype=torch.bool) for layer in layers}

    def add_rows(
        self,
        layer: str,
        step: int,
        anchor_index: Tensor,
        latent_index: Tensor,
        rows: Tensor,
        means: Tensor | None = None,
    ) -> None:
        """Add the rows of one layer at one step.

        Args:
            layer: One of the names the collector was made with.
            step: Which of the run steps, from 0.
            anchor_index: (b,) integers, which anchor each row belongs to.
            latent_index: (b,) integers, which latent each row belongs to.
            rows: (b, cells^2, d), any floating type and device.
            means: (b, d), the means over the whole picture; with more than one cell only.

        Raises:
            ActivationError: unknown layer, wrong shape, place outside the grid, or a place
                written before.
        """
        if layer not in self._rows:
            raise ActivationError(
                f"Layer {layer} is not one of the {len(self._rows)} layers being captured."
            )
        grid, written = self._rows[layer], self._written[layer]
        expected = (len(anchor_index), *grid.shape[-2:])
        if tuple(rows.shape) != expected or len(latent_index) != len(anchor_index):
            raise ActivationError(
                f"Layer {layer}, step {step}: expected rows of shape {expected}, one per prompt "
                f"and latent index, got {tuple(rows.shape)} and {len(latent_index)} latents."
            )
        anchor_index, latent_index = anchor_index.cpu().long(), latent_index.cpu().long()
        places = torch.stack([anchor_index, latent_index, torch.full_like(anchor_index, step)], 1)
        if bool((places < 0).any() or (places >= torch.tensor(written.shape)).any()):
            raise ActivationError(
                f"Layer {layer}, step {step}: a row lies outside the {written.shape[0]} prompts x "
                f"{written.shape[1]} latents x {written.shape[2]} steps being captured."
            )
        at = (anchor_index, latent_index, step)
        if bool(written[at].any()) or len(set(map(tuple, places.tolist()))) < len(places):
            raise ActivationError(
                f"Layer {layer}, step {step}: a row was captured twice for the same prompt and "
                "latent. Another extension may run the model more than once per step."
            )
        grid[at] = rows.detach().to("cpu", torch.float32)
        if self._means is not None:
            if means is None or means.shape != rows[:, 0].shape:
                raise ActivationError(
                    f"Layer {layer}, step {step}: expected the means over the whole picture beside "
                    f"the {self.trajectory.cells**2} cells, of shape {tuple(rows[:, 0].shape)}."
                )
            self._means[layer][at] = means.detach().to("cpu", torch.float32)
        written[at] = True

    def finish(self) -> Activations:
        """The complete activations.

        Raises:
            ActivationError: a row is missing (the message lists layers and steps), or one is
                not finite.
        """
        missing = [
            f"{layer} step {step} ({int(absent)} of {written[..., 0].numel()} rows)"
            for layer, written in self._written.items()
            for step, absent in enumerate((~written).sum(dim=(0, 1)).tolist())
            if absent
        ]
        if missing:
            shown = "; ".join(missing[:8]) + ("; ..." if len(missing) > 8 else "")
            raise ActivationError(
                f"{len(missing)} layer and step pairs were not captured completely: {shown}. "
                "Something bypasses the model's cross-attention modules; remove model "
                "compilation or block-skipping patches before capturing."
            )
        rows = {layer: grid.flatten(0, 3) for layer, grid in self._rows.items()}
        means = self._means and {layer: grid.flatten(0, 2) for layer, grid in self._means.items()}
        return Activations(rows, self.anchors, self.trajectory, self.model, means, self.heads)


def neighbour_means(forget: Activations, retain: Activations, layer: str) -> Tensor:
    """For each forget row, the mean over the retain anchors at the same latent and step.

    Returns:
        T_F of shape (n_F, d), float64.
    """
    means = retain.grid(layer).double().mean(dim=0)
    return repeat(means, "latent step d -> (anchor latent step) d", anchor=len(forget.anchors))
