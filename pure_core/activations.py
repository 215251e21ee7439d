"""Activations: what every cross-attention layer put out for a set of prompts.

A row is the post-attention activation `h` of one layer, before its output projection, averaged
over the spatial positions (PURE, arXiv 2605.25765, step 1 "collect"). There is one row per
prompt, latent and denoising step, so each layer has a matrix H of shape (n, d).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from .errors import ActivationError


@dataclass(frozen=True)
class CaptureSettings:
    """How rows were captured. Rows are comparable only if all but the source's name agree."""

    steps: int
    """Length of the sampling schedule."""

    run_steps: int
    """How many of these steps were run and captured, counted from the noisy end."""

    latents: int
    """Starting latents per prompt."""

    cfg: float
    """Guidance scale of the trajectory."""

    seed: int
    """Seed of the starting latents. The same for every prompt."""

    width: int
    """Image width in pixels."""

    height: int
    """Image height in pixels."""

    sampler_name: str
    scheduler: str

    source_name: str
    """Name of the model, for people."""

    source_fingerprint: str
    """Identifies the model's weights."""

    source_sketch: dict[str, float] = field(default_factory=dict)
    """Layer -> sketch of the weights of the model's file: see `sketch.py`."""

    cells: int = 1
    """Rows are averages over the parts of a grid of cells x cells; 1 is over the whole picture."""

    @property
    def per_prompt(self) -> int:
        """How many rows every prompt has."""
        return self.latents * self.run_steps * self.cells**2

    def differences(self, other: CaptureSettings) -> list[str]:
        """The settings in which two captures differ, as 'width 512 / 768'.

        The source's name is not compared: the same model may lie under two file names. Nor is
        its sketch: the fingerprint tells more.
        """
        pairs = (
            (each.name, getattr(self, each.name), getattr(other, each.name))
            for each in fields(self)
            if each.name not in ("source_name", "source_sketch")
        )
        return [f"{name} {mine} / {theirs}" for name, mine, theirs in pairs if mine != theirs]

    def trajectory(self) -> dict[str, float | str]:
        """The settings without the model: what was sampled, not on what."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if not each.name.startswith("source_")
            and (each.name, self.cells) != ("cells", 1)  # older erasers do not say it
        }


@dataclass(frozen=True, eq=False)
class Activations:
    """Rows of every layer for a list of prompts, and how they were made."""

    rows: dict[str, Tensor]
    """Layer -> H of shape (n, d), float32 on the CPU, n = prompts x latents x run_steps x cells^2.

    Ordered by prompt, then latent, then step, then cell.
    """

    prompts: tuple[str, ...]
    settings: CaptureSettings

    concepts: tuple[int, ...] = ()
    """How many of the prompts belong to each concept, in their order. Empty: all to one."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ActivationError("Activations need at least one prompt, got none.")
        if sum(self.groups) != len(self.prompts) or min(self.groups) < 1:
            raise ActivationError(
                f"The concepts have {self.groups} prompts, expected {len(self.prompts)} in all and "
                "at least one each."
            )
        if not self.rows:
            raise ActivationError("Activations need at least one layer, got none.")
        for layer, rows in self.rows.items():
            self._check(layer, rows)

    def _check(self, layer: str, rows: Tensor) -> None:
        expected = len(self.prompts) * self.settings.per_prompt
        if rows.ndim != 2 or rows.shape[0] != expected or rows.shape[1] == 0:
            raise ActivationError(
                f"Layer {layer}: expected {expected} rows ({len(self.prompts)} prompts x "
                f"{self.settings.latents} latents x {self.settings.run_steps} steps x "
                f"{self.settings.cells**2} cells) of one width, got shape {tuple(rows.shape)}."
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
    def groups(self) -> tuple[int, ...]:
        """How many prompts each concept has."""
        return self.concepts or (len(self.prompts),)

    def split(self, prompts: int) -> tuple[Activations, Activations | None]:
        """The first prompts and the rest, None if there is none; each counts as one concept."""
        cut = prompts * self.settings.per_prompt

        def part(names: tuple[str, ...], rows: slice) -> Activations:
            return Activations(
                # Copies: a slice would keep the rows of the other part in memory.
                {layer: each[rows].clone() for layer, each in self.rows.items()},
                names,
                self.settings,
            )

        rest = self.prompts[prompts:]
        first = part(self.prompts[:prompts], slice(cut))
        return first, part(rest, slice(cut, None)) if rest else None

    def grid(self, layer: str) -> Tensor:
        """The rows of one layer as (prompts, latents, run_steps x cells^2, d)."""
        rows = self.rows[layer]
        return rows.view(len(self.prompts), self.settings.latents, -1, rows.shape[1])

    def pooled(self) -> Activations:
        """The same averaged over the whole picture, as PURE's are."""
        if self.settings.cells == 1:
            return self
        parts = self.settings.cells**2
        rows = {
            name: each.view(-1, parts, each.shape[1]).mean(1) for name, each in self.rows.items()
        }
        return replace(self, rows=rows, settings=replace(self.settings, cells=1))

    def concatenate(self, *others: Activations) -> Activations:
        """These prompts followed by the others', which are other concepts.

        Raises:
            ActivationError: they were captured with different settings, from different models, or
                at different layers.
        """
        for other in others:
            self._require_alike(other)
        every = (self, *others)
        return Activations(
            {layer: torch.cat([each.rows[layer] for each in every]) for layer in self.rows},
            tuple(prompt for each in every for prompt in each.prompts),
            self.settings,
            tuple(prompts for each in every for prompts in each.groups),
        )

    def _require_alike(self, other: Activations) -> None:
        differences = self.settings.differences(other.settings)
        if differences:
            raise ActivationError(
                "Activations captured in different ways cannot be joined. They differ in: "
                + "; ".join(differences)
                + ". Capture both with the same settings and model."
            )
        if self.widths != other.widths:
            raise ActivationError(
                "Activations of different layers cannot be joined: "
                f"{len(self.rows)} layers of widths {sorted(set(self.widths.values()))} and "
                f"{len(other.rows)} of widths {sorted(set(other.widths.values()))}."
            )


class ActivationCollector:
    """Accumulates rows in whatever order and batches the sampler produces them.

    Every place of the grid (layer, prompt, latent, step) has to be written exactly once;
    anything else means that a hook was bypassed or ran twice, and is an error.
    """

    def __init__(
        self, layers: Mapping[str, int], prompts: Sequence[str], settings: CaptureSettings
    ) -> None:
        """`layers` maps each layer's name to its width d."""
        self.prompts = tuple(prompts)
        self.settings = settings
        grid = (len(self.prompts), settings.latents, settings.run_steps)
        parts = settings.cells**2
        self._rows = {layer: torch.zeros(*grid, parts, d) for layer, d in layers.items()}
        self._written = {layer: torch.zeros(grid, dtype=torch.bool) for layer in layers}

    def add(self, layer: str, prompt: int, latent: int, step: int, row: Tensor) -> None:
        """Add one row of shape (d,)."""
        self.add_rows(layer, step, torch.tensor([prompt]), torch.tensor([latent]), row[None])

    def add_rows(
        self, layer: str, step: int, prompt_index: Tensor, latent_index: Tensor, rows: Tensor
    ) -> None:
        """Add the rows of one layer at one step.

        Args:
            layer: One of the names the collector was made with.
            step: Which of the run steps, from 0.
            prompt_index: (b,) integers, which prompt each row belongs to.
            latent_index: (b,) integers, which latent each row belongs to.
            rows: (b, d), or (b, cells^2, d), any floating type and device.

        Raises:
            ActivationError: unknown layer, wrong shape, place outside the grid, or a place
                written before.
        """
        if layer not in self._rows:
            raise ActivationError(
                f"Layer {layer} is not one of the {len(self._rows)} layers being captured."
            )
        grid, written = self._rows[layer], self._written[layer]
        if self.settings.cells == 1:
            rows = rows.unsqueeze(1)
        expected = (len(prompt_index), *grid.shape[-2:])
        if tuple(rows.shape) != expected or len(latent_index) != len(prompt_index):
            raise ActivationError(
                f"Layer {layer}, step {step}: expected rows of shape {expected}, one per prompt "
                f"and latent index, got {tuple(rows.shape)} and {len(latent_index)} latents."
            )
        prompt_index, latent_index = prompt_index.cpu().long(), latent_index.cpu().long()
        places = torch.stack([prompt_index, latent_index, torch.full_like(prompt_index, step)], 1)
        if bool((places < 0).any() or (places >= torch.tensor(written.shape)).any()):
            raise ActivationError(
                f"Layer {layer}, step {step}: a row lies outside the {written.shape[0]} prompts x "
                f"{written.shape[1]} latents x {written.shape[2]} steps being captured."
            )
        at = (prompt_index, latent_index, step)
        if bool(written[at].any()) or len(set(map(tuple, places.tolist()))) < len(places):
            raise ActivationError(
                f"Layer {layer}, step {step}: a row was captured twice for the same prompt and "
                "latent. Another extension may run the model more than once per step."
            )
        grid[at] = rows.detach().to("cpu", torch.float32)
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
        return Activations(rows, self.prompts, self.settings)
