"""What a capture computes beside the model's own calls, in operations, at Flux's full width.

    python3 dev.py run --comfy 0.30.0 benchmarks/operations.py

Where text and picture are read together, a capture asks the same attention once more, for the
picture's queries. Operations do not depend on the machine. They are counted by torch in models of
few blocks, with random weights; a block of either kind costs what one block more adds, from which
follows the whole model's 19 and 38. The table goes to operations.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from testbed.comfy import inprocess

inprocess.enter()

from comfy.model_patcher import ModelPatcher

from benchmarks.common import RESULTS, markdown
from testbed.comfy.full_size import MODELS, fill
from testbed.comfy.transformer_measures import as_captured, captured
from testbed.comfy.transformers import CPU, built, encodings

NAME = "Flux.1 dev 12B"
SIZES = (512, 1024)


class Counted(NamedTuple):
    """Operations of one step of one prompt."""

    step: float
    capture: float

    def __add__(self, other: object) -> Counted:
        assert isinstance(other, Counted)
        return Counted(self.step + other.step, self.capture + other.capture)

    def __sub__(self, other: Counted) -> Counted:
        return self + other * -1

    def __mul__(self, times: object) -> Counted:
        assert isinstance(times, int)
        return Counted(self.step * times, self.capture * times)

    @property
    def ratio(self) -> float:
        """A capture's as a multiple of the step's."""
        return self.capture / self.step


@torch.no_grad()
def counted(pixels: int, double: int, single: int) -> Counted:
    """Of a model with so many blocks of two streams and of one."""
    kind = MODELS[NAME]
    model = built(kind, torch.float32, depth=double, depth_single_blocks=single)
    fill(model.diffusion_model)
    patcher = ModelPatcher(model, CPU, CPU)
    prompts = encodings(kind, 2)
    run = {"width": pixels, "height": pixels, "latents": 1, "run_steps": 1}
    with FlopCounterMode(display=False) as plain:
        as_captured(NAME, patcher, prompts, **run)
    with FlopCounterMode(display=False) as heard:
        captured(NAME, patcher, prompts, **run)
    return Counted(plain.get_total_flops(), heard.get_total_flops())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    net = MODELS[NAME].net
    rows = []
    for pixels in SIZES:
        one, more_double, more_single = (
            counted(pixels, *blocks) for blocks in ((1, 1), (2, 1), (1, 2))
        )
        double, single = more_double - one, more_single - one
        rest = one - double - single
        whole = rest + double * net["depth"] + single * net["depth_single_blocks"]
        ratios = (f"{each.ratio:.3f}" for each in (double, single, whole))
        rows.append((f"{pixels} x {pixels}", f"{whole.step:.3g}", *ratios))
        print(*rows[-1], flush=True)
    heads = ("picture", "operations of a step", "double block", "single block", "whole model")
    (args.out / "operations.md").write_text(markdown(heads, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
