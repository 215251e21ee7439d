"""The trajectory in ComfyUI's terms: starting noise, noise levels and sampler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import comfy.sample
import comfy.samplers
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pure_core.errors import require_one_of
from ....pure_core.trajectory import Trajectory
from ..conditioning import Encoded, stack
from ..sites import Sites
from .batches import Row
from .error import CaptureError

FREE_STEP_SAMPLERS = ("dpm_fast", "dpm_adaptive")
"""Samplers that choose their own steps, so that none belongs to a row."""

SAMPLERS = tuple(
    name for name in comfy.samplers.KSampler.SAMPLERS if name not in FREE_STEP_SAMPLERS
)
SCHEDULERS = tuple(comfy.samplers.KSampler.SCHEDULERS)


def for_model(trajectory: Trajectory, model: ModelPatcher, sites: Sites) -> Trajectory:
    """The trajectory with the model's usual picture size where none was given, checked.

    Raises:
        TrajectoryError, CaptureError: a setting out of its range.
    """
    velocity = model.model.model_type == ModelType.V_PREDICTION
    resolved = trajectory.resolved(sites.family.usual_size(sites.net, velocity))
    if sites.family.guides_itself(sites.net):
        resolved = resolved._replace(cfg=1.0)
    resolved.check()
    geometry = sites.family.latent(sites.net)
    multiple, least = geometry.multiple, max(geometry.multiple, geometry.least_pixels)
    for name in ("width", "height"):
        pixels = getattr(resolved, name)
        if pixels < least or pixels % multiple:
            smallest = f" from {least} on" if least > multiple else ""
            raise CaptureError(
                f"{name}: expected a multiple of {multiple} pixels{smallest}, or 0 for the "
                f"model's usual size, got {pixels}."
            )
    _require_length(resolved.length, geometry.frames)
    if resolved.sampler_name not in SAMPLERS:
        raise CaptureError(
            f"sampler_name: expected a sampler that follows the schedule's steps, got "
            f"'{resolved.sampler_name}'. Use for example euler."
        )
    require_one_of("scheduler", resolved.scheduler, SCHEDULERS, CaptureError)
    return resolved


def _require_length(length: int, frames: int) -> None:
    """Raise CaptureError unless there are clips of so many frames."""
    if length > 1 and not frames:
        raise CaptureError(f"length: this model makes pictures: expected 1 frame, got {length}.")
    if length > 1 and (length - 1) % frames:
        raise CaptureError(
            f"length: expected one frame more than a multiple of {frames}, such as 1 or "
            f"{1 + 4 * frames}, got {length}."
        )


def starting_noise(model: ModelPatcher, sites: Sites, trajectory: Trajectory) -> Tensor:
    """(latents, channels, height, width) in cells, or (latents, channels, frames, height, width).

    Latent j is the same whatever their number.
    """
    geometry = sites.family.latent(sites.net)
    cells = geometry.cells(trajectory.width, trajectory.height, trajectory.length)
    empty = torch.zeros(trajectory.latents, *cells)
    latent = comfy.sample.fix_empty_latent_channels(model, empty)
    numbers = list(range(trajectory.latents))
    noise: Tensor = comfy.sample.prepare_noise(latent, trajectory.seed, numbers)
    return noise


def noise_levels(model: ModelPatcher, trajectory: Trajectory) -> Tensor:
    """(run_steps + 1,) sigmas: the beginning of the full schedule.

    Raises:
        CaptureError: the scheduler gives fewer steps than asked.
    """
    schedule: Tensor = comfy.samplers.KSampler(
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


def sample(
    model: ModelPatcher,
    trajectory: Trajectory,
    batch: list[Row],
    noise: Tensor,
    encoded: Sequence[Encoded],
    empty: Encoded,
    sigmas: Tensor,
    step: Callable[..., object],
) -> Tensor:
    """Run the model along the noise levels, with a prompt and a latent in every row of a batch.

    Returns:
        The latents at the last of these levels, of the noise's shape with a row for each of the
        batch's.
    """
    own = noise[[row.latent for row in batch]]
    latents: Tensor = comfy.sample.sample_custom(
        model,
        own,
        trajectory.cfg,
        sampler_for(model, trajectory, batch, noise),
        sigmas,
        stack([encoded[row.anchor] for row in batch]),
        stack([empty]),
        torch.zeros_like(own),
        callback=step,
        disable_pbar=True,
        seed=trajectory.seed,
    )
    return latents


def sampler_for(
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
