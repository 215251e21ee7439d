"""How well the unedited models draw what they are asked, by the judge.

    python -m testbed.pictures.measure unet|wan|sd3|hunyuan [COUNT [WEIGHTS]]

WEIGHTS is a folder of compact weights, for those that are not finished.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path

from testbed.world.measure import Rate, World

from . import prompts
from .judge import read
from .narrow import MODELS, WEIGHTS, sampler
from .vocabulary import DEVELOPMENT, HELD_OUT, KINDS

PICTURES = World(prompts, read, {"development": DEVELOPMENT, "held-out": HELD_OUT})
"""The world of real pictures."""


def any_concept(rates: Mapping[str, Rate]) -> Rate:
    """Over all kinds but style."""
    own = (rate for kind, rate in rates.items() if kind in KINDS and kind != "style")
    return functools.reduce(Rate.__add__, own)


def main(name: str, count: int, weights: Path) -> None:
    """Print the rates by name and by description, with their 95 % intervals."""
    sample = sampler(name, weights)
    for by_name in (True, False):
        rates = PICTURES.rates(sample, count, by_name)
        print("by name" if by_name else "by description")
        for attribute, rate in {"any concept": any_concept(rates), **rates}.items():
            low, high = rate.interval()
            print(f"  {attribute:15} {rate.value:.3f} ({low:.2f} to {high:.2f}) of {rate.total}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3, 4) or sys.argv[1] not in MODELS:
        sys.exit(f"usage: python -m testbed.pictures.measure {'|'.join(MODELS)} [COUNT [WEIGHTS]]")
    main(
        sys.argv[1],
        int(sys.argv[2]) if len(sys.argv) > 2 else 500,
        Path(sys.argv[3]) if len(sys.argv) > 3 else WEIGHTS,
    )
