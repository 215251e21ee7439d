"""How well the unedited models draw what they are asked, by the judge.

    python -m testbed.pictures.measure unet|wan [COUNT]

The four numbers of an erasure are those of `testbed.world.measure`; `prompts.py` has the prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import Tensor

from pure_core.evaluation.rates import Rate

from .judge import read
from .narrow import MODELS, sampler
from .prompts import everything_prompts
from .vocabulary import KINDS

Sampler = Callable[[list[str]], Tensor]
"""Prompts to pictures (b, 3, 64, 64) in [0, 1]."""


def model_rates(sample: Sampler, count: int, by_name: bool, seed: int = 0) -> dict[str, Rate]:
    """How often the unedited model draws what it is asked for, by attribute and kind.

    "concept" is all kinds but style together.
    """
    prompts = everything_prompts(count, by_name, seed)
    rates: dict[str, Rate] = {}
    for prompt, reading in zip(prompts, read(sample([p.text for p in prompts])), strict=True):
        for attribute in prompt.asks:
            hit = Rate(int(prompt.met(reading, attribute)), 1)
            keys = [attribute]
            if attribute in KINDS and attribute != "style":
                keys.append("concept")
            for key in keys:
                rates[key] = rates.get(key, Rate(0, 0)) + hit
    return rates


def main(name: str, count: int) -> None:
    """Print the rates by name and by description."""
    sample = sampler(name)
    for by_name in (True, False):
        rates = model_rates(sample, count, by_name)
        print("by name" if by_name else "by description")
        for attribute, rate in rates.items():
            print(f"  {attribute:15} {rate.value:.3f} of {rate.total}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in MODELS:
        sys.exit("usage: python -m testbed.pictures.measure unet|wan [COUNT]")
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 500)
