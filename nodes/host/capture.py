"""Capturing activations: run a short sampling and read every cross-attention layer on the way.

PURE (arXiv 2605.25765), step 1: at every cross-attention layer and step, the post-attention
activation h = softmax(Q K^T / sqrt(d_head)) V, averaged over the spatial positions. In ComfyUI h
is the input of `attn2.to_out`, so a forward pre-hook there reads it whatever attention backend,
LoRA or attention patch is in use. The hooks exist only while a batch is being sampled: all
clones of a MODEL share its modules.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ...pure_core.activations import ActivationCollector, Activations, CaptureSettings
from ...pure_core.errors import PureError, require_one_of
from ..defaults import Trajectory
from ..prompts import Anchors
from .conditioning import Encoded, encode, stack
from .fingerprint import fingerprint, sketches
from .layers import Layer, cross_attention_layers, display_name, widths

LATENT_PIXELS = 8
"""Pixels per latent cell, in every model that has cross-attention layers."""

MAX_ROWS = 64
"""Rows in one model call at most. More are not faster and make cancelling slow."""

MOST_MEMORY = 2 << 30
"""Bytes of rows that capturing anchors may take."""

MEMORY_MARGIN = 1.5
"""ComfyUI's own safety factor on its memory estimate."""

FREE_STEP_SAMPLERS = ("dpm_fast", "dpm_adaptive")
"""Samplers that choose their own steps, so that none belongs to a row."""

SAMPLERS = tuple(
    name for name in comfy.samplers.KSampler.SAMPLERS if name not in FREE_STEP_SAMPLERS
)
SCHEDULERS = tuple(comfy.samplers.KSampler.SCHEDULERS)


class CaptureError(PureError):
    """The activations could not be captured as asked."""


class Row(NamedTuple):
    """What one batch row samples."""

    prompt: int
    latent: int


def capture(
    model: ModelPatcher,
    clip: CLIP,
    prompts: Sequence[str],
    trajectory: Trajectory,
    cells: int = 1,
) -> Activations:
    """Capture every cross-attention layer for every prompt, latent and step.

    The starting latent j depends on the seed and j alone, so all prompts start from the same
    noise and a row does not depend on which rows it was sampled with.

    Args:
        cells: Rows are averages over the parts of a grid of cells x cells; 1 is over all.

    Raises:
        CaptureError: no prompts, settings out of range, invalid numbers in the model, or
            layers whose activations did not come by.
        ModelError: no cross-attention layers or no text encoder.
        InterruptProcessingException: the person cancelled.
    """
    _check(prompts, trajectory, cells)
    layers = cross_attention_layers(model)
    settings = CaptureSettings(
        **trajectory._asdict(),
        cells=cells,
        source_name=display_name(model),
        source_fingerprint=fingerprint(model),
        source_sketch=sketches(model, layers),
    )
    encoded = [encode(clip, prompt) for prompt in prompts]
    empty = encode(clip, "")
    noise = _noise(model, trajectory)
    sigmas = _sigmas(model, trajectory)
    batches = _batches(encoded, trajectory.latents, _rows_per_call(model, noise, trajectory.cfg))
    progress = comfy.utils.ProgressBar(len(batches) * trajectory.run_steps)
    grid = _Grid(cells, tuple(noise.shape[-2:]))
    collector = ActivationCollector(widths(layers), prompts, settings)
    for batch in batches:
        recorder = _Recorder(layers, sigmas[:-1].tolist(), len(batch), grid)
        with _recording(recorder, model) as recorded:
            comfy.sample.sample_custom(
                recorded,
                noise[[row.latent for row in batch]],
                trajectory.cfg,
                _sampler(model, trajectory, batch, noise),
                sigmas,
                stack([encoded[row.prompt] for row in batch]),
                stack([empty]),
                torch.zeros_like(noise[:1]).repeat(len(batch), 1, 1, 1),
                callback=lambda *_: progress.update(1),
                disable_pbar=True,
                seed=trajectory.seed,
            )
        prompt_index = torch.tensor([row.prompt for row in batch])
        latent_index = torch.tensor([row.latent for row in batch])
        for (layer, step), rows in recorder.finish().items():
            collector.add_rows(layer, step, prompt_index, latent_index, rows)
    return collector.finish()


def capture_anchors(
    model: ModelPatcher, clip: CLIP, prompts: Anchors, trajectory: Trajectory, cells: int = 1
) -> tuple[Activations, Activations | None]:
    """Capture forget and retain prompts in one run: fewer model calls and one progress bar.

    Args:
        cells: As for `capture`; lowered where the rows would not fit into `MOST_MEMORY`.

    Returns:
        The concepts' activations, and the neighbours', None if there are none.

    Raises:
        As `capture` does.
    """
    every = prompts.forget + prompts.retain
    while cells > 1 and _row_bytes(model, len(every), trajectory) * cells**2 > MOST_MEMORY:
        cells //= 2
    together = capture(model, clip, every, trajectory, cells)
    forget, retain = together.split(len(prompts.forget))
    return replace(forget, concepts=tuple(map(len, prompts.concepts))), retain


def _row_bytes(model: ModelPatcher, prompts: int, trajectory: Trajectory) -> int:
    """What the rows of all layers take with one cell."""
    numbers = sum(widths(cross_attention_layers(model)).values())
    return 4 * numbers * prompts * trajectory.latents * trajectory.run_steps


def _check(prompts: Sequence[str], trajectory: Trajectory, cells: int) -> None:
    if not prompts:
        raise CaptureError(
            "prompts: expected at least one line, got none. If this is the retain side of a "
            "concept without neighbours, leave it away and connect only forget to the fit."
        )
    if not 1 <= trajectory.run_steps <= trajectory.steps:
        raise CaptureError(
            f"run_steps: expected 1 to steps ({trajectory.steps}), got {trajectory.run_steps}. "
            "Lower run_steps or raise steps."
        )
    if cells < 1:
        raise CaptureError(f"cells: expected 1 or more, got {cells}.")
    if trajectory.latents < 1:
        raise CaptureError(f"latents: expected 1 or more, got {trajectory.latents}.")
    for name in ("width", "height"):
        pixels = getattr(trajectory, name)
        if pixels < LATENT_PIXELS or pixels % LATENT_PIXELS:
            raise CaptureError(
                f"{name}: expected a multiple of {LATENT_PIXELS} pixels, got {pixels}."
            )
    if trajectory.sampler_name not in SAMPLERS:
        raise CaptureError(
            f"sampler_name: expected a sampler that follows the schedule's steps, got "
            f"'{trajectory.sampler_name}'. Use for example euler."
        )
    require_one_of("scheduler", trajectory.scheduler, SCHEDULERS, CaptureError)


def _noise(model: ModelPatcher, trajectory: Trajectory) -> Tensor:
    """(latents, channels, height / 8, width / 8). Latent j is the same whatever their number."""
    size = (trajectory.height // LATENT_PIXELS, trajectory.width // LATENT_PIXELS)
    empty = torch.zeros(trajectory.latents, 4, *size)
    latent = comfy.sample.fix_empty_latent_channels(model, empty)
    return comfy.sample.prepare_noise(latent, trajectory.seed, list(range(trajectory.latents)))


def _sigmas(model: ModelPatcher, trajectory: Trajectory) -> Tensor:
    """(run_steps + 1,) noise levels: the beginning of the full schedule.

    Raises:
        CaptureError: the scheduler gives fewer steps than asked.
    """
    schedule = comfy.samplers.KSampler(
        model,
        steps=trajectory.steps,
        device=model.load_device,
        sampler=trajectory.sampler_name,
        scheduler=trajectory.scheduler,
    ).sigmas
    if len(schedule) <= trajectory.run_steps:
        raise CaptureError(
            f"run_steps: the scheduler '{trajectory.scheduler}' makes only {len(schedule) - 1} "
            f"of {trajectory.steps} steps, {trajectory.run_steps} were to be run. Use another "
            "scheduler or fewer run_steps."
        )
    return schedule[: trajectory.run_steps + 1]


def _rows_per_call(model: ModelPatcher, noise: Tensor, cfg: float) -> int:
    """As many rows as fit beside the whole model, by ComfyUI's own estimate."""
    device = model.load_device
    loaded = comfy.model_management.current_loaded_models
    alive = [each for each in loaded if each.device == device and each.model is not None]
    evictable = sum(each.model_loaded_memory() for each in alive)
    room = comfy.model_management.get_free_memory(device) + evictable - model.model_size()
    branches = 1 if math.isclose(cfg, 1.0) else 2
    a_row = model.model.memory_required([branches, *noise.shape[1:]]) * MEMORY_MARGIN
    return max(1, min(MAX_ROWS, int(room / a_row)))


def _batches(encoded: Sequence[Encoded], latents: int, size: int) -> list[list[Row]]:
    """Rows grouped by the prompts' token length, at most `size` in a batch."""
    batches = []
    for length in sorted({each.length for each in encoded}):
        prompts = [index for index, each in enumerate(encoded) if each.length == length]
        rows = [Row(prompt, latent) for prompt in prompts for latent in range(latents)]
        count = math.ceil(len(rows) / size)
        even = math.ceil(len(rows) / count)
        batches += [rows[start : start + even] for start in range(0, len(rows), even)]
    return batches


def _sampler(
    model: ModelPatcher, trajectory: Trajectory, batch: list[Row], noise: Tensor
) -> comfy.samplers.Sampler:
    """The named sampler. If it draws noise along the way, every latent has its own source.

    Otherwise the drawn noise would depend on a row's place in its batch.
    """
    sampler = comfy.samplers.sampler_object(trajectory.sampler_name)
    if "noise_sampler" not in inspect.signature(sampler.sampler_function).parameters:
        return sampler
    sources = {
        latent: torch.Generator().manual_seed((trajectory.seed + 1 + latent) % 2**63)
        for latent in sorted({row.latent for row in batch})
    }

    def draw(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        drawn = {
            latent: torch.randn(noise.shape[1:], generator=source)
            for latent, source in sources.items()
        }
        return torch.stack([drawn[row.latent] for row in batch]).to(model.load_device)

    sampler.extra_options = {**sampler.extra_options, "noise_sampler": draw}
    return sampler


class _Grid(NamedTuple):
    """Over which parts of the picture activations are averaged."""

    cells: int
    """So many by so many."""

    size: tuple[int, ...]
    """Height and width of the latent."""

    def pool(self, h: Tensor, layer: str) -> Tensor:
        """(b, positions, d) -> (b, d) for the whole picture, else (b, cells^2, d); float32.

        Raises:
            CaptureError: the positions are not those of the latent, halved some times.
        """
        if self.cells == 1:
            return h.mean(dim=1, dtype=torch.float32)
        positions = h.shape[1]
        height, width = self.size
        while height * width > positions and max(height, width) > 1:
            height, width = (height + 1) // 2, (width + 1) // 2
        if height * width != positions:
            raise CaptureError(
                f"cells: layer {layer} has {positions} positions, which are not those of the "
                "picture made smaller: a patch upstream merges or splits them. Capture before it, "
                "or set cells to 1."
            )
        picture = h.float().transpose(1, 2).unflatten(2, (height, width))
        parts = torch.nn.functional.adaptive_avg_pool2d(picture, self.cells)
        return parts.flatten(2).transpose(1, 2)


class _Window(NamedTuple):
    """The rows of the model call under way that are to be recorded."""

    step: int
    start: int
    rows: int
    """Conditional rows, from `start` on."""

    total: int
    """All rows of the call."""


class _Recorder:
    """Reads the rows of one batch.

    A step's rows come from the first conditional model call at the step's noise level. Samplers
    that look ahead (heun and others) evaluate a level once before they step to it; that first
    evaluation is what is recorded.
    """

    def __init__(self, layers: list[Layer], sigmas: list[float], batch: int, grid: _Grid) -> None:
        self.layers = layers
        self._grid = grid
        self._sigmas = sigmas
        self._batch = batch
        self._pending = list(range(len(sigmas)))
        self._window: _Window | None = None
        self._rows: dict[tuple[str, int], Tensor] = {}

    def call_model(
        self,
        inner: Callable[..., Tensor] | None,
        apply_model: Callable[..., Tensor],
        call: dict[str, Any],
    ) -> Tensor:
        """ComfyUI's model function wrapper; `inner` is the one that was there before."""
        self._window = self._open(call["cond_or_uncond"], float(call["timestep"][0]))
        try:
            if inner is not None:
                return inner(apply_model, call)
            return apply_model(call["input"], call["timestep"], **call["c"])
        finally:
            self._window = None

    def _open(self, cond_or_uncond: list[int], sigma: float) -> _Window | None:
        """Where the conditional rows (marked 0) are, if this call is the first of a step."""
        due = [i for i in self._pending if math.isclose(sigma, self._sigmas[i], rel_tol=1e-4)]
        if 0 not in cond_or_uncond or not due:
            return None
        self._pending.remove(due[0])
        start = cond_or_uncond.index(0) * self._batch
        return _Window(due[0], start, self._batch, len(cond_or_uncond) * self._batch)

    def read(self, layer: str, _module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of `to_out`: its input is h, (rows, positions, d)."""
        window = self._window
        if window is None or (layer, window.step) in self._rows:
            return
        h = inputs[0]
        if h.shape[0] != window.total:
            raise CaptureError(
                f"model: layer {layer} was run with {h.shape[0]} rows, expected "
                f"{window.total}. A patch upstream splits or repeats the batch: capture before it; "
                "or the model makes videos, whose frames cannot be captured as prompts."
            )
        rows = h[window.start : window.start + window.rows]
        self._rows[layer, window.step] = self._grid.pool(rows, layer)

    def finish(self) -> dict[tuple[str, int], Tensor]:
        """(layer, step) -> (rows, d) or (rows, cells^2, d), float32.

        Raises:
            CaptureError: a layer or step is missing, or a number is not finite.
        """
        places = [(layer.name, step) for layer in self.layers for step in range(len(self._sigmas))]
        missing = [place for place in places if place not in self._rows]
        if missing:
            raise CaptureError(
                f"model: {len(missing)} of {len(places)} captures are missing, first layer "
                f"{missing[0][0]} at step {missing[0][1]}. A compiled model or a patch that skips "
                "layers upstream hides them: capture before it."
            )
        for (layer, step), rows in self._rows.items():
            if not bool(torch.isfinite(rows).all()):
                raise CaptureError(
                    f"model: NaN or infinity in layer {layer} at step {step}. The checkpoint or a "
                    "LoRA is damaged, or the model needs more precision (start ComfyUI with "
                    "--force-fp32 or --force-upcast-attention)."
                )
        return self._rows


@contextmanager
def _recording(recorder: _Recorder, model: ModelPatcher) -> Iterator[ModelPatcher]:
    """A clone of the model that the recorder listens to, until the block is left in any way."""
    recorded = model.clone()
    inner = recorded.model_options.get("model_function_wrapper")
    recorded.set_model_unet_function_wrapper(partial(recorder.call_model, inner))
    with ExitStack() as hooks:
        for layer in recorder.layers:
            hook = partial(recorder.read, layer.name)
            hooks.callback(layer.module.to_out.register_forward_pre_hook(hook).remove)
        yield recorded
