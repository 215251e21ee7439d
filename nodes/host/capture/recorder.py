"""Reading every site while the model samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..sites import Sites
from .error import CaptureError
from .grid import Grid, Pooled

IN_PIECES = (
    "A patch upstream runs the model on one part of the picture after the other, as tiled "
    "diffusion does, and a part cannot be used for the whole. Connect the model as it is before "
    "that patch, and put the patch behind PURE."
)


class Window(NamedTuple):
    """The rows of the model call under way that are to be recorded."""

    step: int
    start: int
    rows: int
    """Conditional rows, from `start` on."""

    total: int
    """All rows of the call."""


class Recorder:
    """Reads the rows of one batch.

    A step's rows come from the first conditional model call at the step's noise level. Samplers
    that look ahead (heun and others) evaluate a level once before they step to it; that first
    evaluation is what is recorded.
    """

    def __init__(self, sites: Sites, sigmas: list[float], batch: int, grid: Grid) -> None:
        self.sites = sites
        self._grid = grid
        self._sigmas = sigmas
        self._batch = batch
        self._pending = list(range(len(sigmas)))
        self._window: Window | None = None
        self._rows: dict[tuple[str, int], Pooled] = {}
        self._joint = {each.name for each in sites.sites if each.part != "cross"}
        patch = sites.family.latent(sites.net).patch
        self._positions = grid.frames * math.prod(-(-side // patch) for side in grid.size)

    def call_model(
        self,
        inner: Callable[..., Tensor] | None,
        apply_model: Callable[..., Tensor],
        call: dict[str, Any],
    ) -> Tensor:
        """ComfyUI's model function wrapper; `inner` is the one that was there before."""
        window = self._open(call["cond_or_uncond"], float(call["timestep"][0]))
        size = tuple(call["input"].shape[-2:])
        if window is not None and size != self._grid.size:
            raise CaptureError(
                f"model: it was called with {_size(size)} cells of the latent, expected all "
                f"{_size(self._grid.size)}. {IN_PIECES}"
            )
        self._window = window
        try:
            if inner is not None:
                return inner(apply_model, call)
            return apply_model(call["input"], call["timestep"], **call["c"])
        finally:
            self._window = None

    def _open(self, cond_or_uncond: list[int], sigma: float) -> Window | None:
        """Where the conditional rows (marked 0) are, if this call is the first of a step."""
        due = [i for i in self._pending if math.isclose(sigma, self._sigmas[i], rel_tol=1e-4)]
        if 0 not in cond_or_uncond or not due:
            return None
        self._pending.remove(due[0])
        start = cond_or_uncond.index(0) * self._batch
        return Window(due[0], start, self._batch, len(cond_or_uncond) * self._batch)

    def rows(self, site: str, total: int) -> slice | None:
        """The conditional rows of the model call under way, or None if it is not recorded."""
        window = self._window
        if window is None:
            return None
        if (site, window.step) in self._rows:
            raise CaptureError(f"model: layer {site} ran twice in one model call. {IN_PIECES}")
        if total != window.total:
            raise CaptureError(
                f"model: layer {site} was run with {total} rows, expected "
                f"{window.total}. A patch upstream splits or repeats the batch: capture before it; "
                "or the model makes videos, whose frames cannot be captured as prompts."
            )
        return slice(window.start, window.start + window.rows)

    def hear(self, site: str, h: Tensor) -> None:
        """One site's h of these rows, (rows, positions, d).

        Where text and picture share an attention, the picture may be filled up with other tokens.
        """
        assert self._window is not None
        if site in self._joint:
            h = h[:, : self._positions]
        self._rows[site, self._window.step] = self._grid.pool(h, site)

    def finish(self) -> dict[tuple[str, int], Pooled]:
        """(site, step) -> the averaged rows.

        Raises:
            CaptureError: a layer or step is missing, or a number is not finite.
        """
        steps = range(len(self._sigmas))
        places = [(site.name, step) for site in self.sites.sites for step in steps]
        missing = [place for place in places if place not in self._rows]
        if missing:
            raise CaptureError(
                f"model: {len(missing)} of {len(places)} captures are missing, first layer "
                f"{missing[0][0]} at step {missing[0][1]}. A compiled model or a patch that skips "
                "layers upstream hides them: capture before it."
            )
        for (layer, step), rows in self._rows.items():
            if not bool(torch.isfinite(rows.cells).all()):
                raise CaptureError(
                    f"model: NaN or infinity in layer {layer} at step {step}. The checkpoint or a "
                    "LoRA is damaged, or the model needs more precision (start ComfyUI with "
                    "--force-fp32 or --force-upcast-attention)."
                )
        return self._rows


def _size(cells: tuple[int, ...]) -> str:
    return " x ".join(map(str, cells))


@contextmanager
def recording(recorder: Recorder, model: ModelPatcher) -> Iterator[ModelPatcher]:
    """A clone of the model that the recorder listens to, until the block is left in any way."""
    recorded = model.clone()
    inner = recorded.model_options.get("model_function_wrapper")
    recorded.set_model_unet_function_wrapper(partial(recorder.call_model, inner))
    family, net = recorder.sites.family, recorder.sites.net
    options = recorded.model_options.setdefault("transformer_options", {})
    stop = family.listen(net, recorder.sites.sites, recorder, options)
    try:
        yield recorded
    finally:
        stop()
