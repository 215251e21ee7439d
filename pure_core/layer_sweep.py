"""In which layers an eraser works, told from pictures.

SurgUn (arXiv 2603.00975) chooses the attention blocks that it trains by erasing in one at a time
and looking at the pictures: a concept can be suppressed nearly anywhere, its neighbours can be kept
in some blocks only. Here the erasers are given and nobody looks: latents of the finished pictures
say how far each goes. The same prompts and starting noises are sampled with the eraser in one block
alone, and in all blocks but this one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .errors import EraserError
from .families.site import Family

By = Literal["part", "block", "layer"]
"""What is swept. part: the family's named parts, such as input, middle and output. block: the
model's numbered blocks. layer: each layer by itself."""

BY: tuple[By, ...] = get_args(By)

NUMBERED = re.compile(r".*?\d+(?=\.|$)")
"""A path up to its first number: 'input_blocks.4' of 'input_blocks.4.1.transformer_blocks.0'."""

NOTHING = 1e-8
"""The whole change of the concept's latents, as a share of their size, below which it is none."""


class Unit(NamedTuple):
    """Layers that are erased together."""

    word: str
    """As `selection.select` takes it."""

    layers: tuple[str, ...]
    """Those of them that the eraser changes."""

    label: str


def units(names: Sequence[str], family: Family | None, by: By) -> list[Unit]:
    """The layers of these names in groups, in their order.

    Where a family names no parts, its blocks stand for them.
    """
    parts = {word: start for word, start in (family.blocks if family else {}).items() if start}
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(_group(name, by, parts), []).append(name)
    return [
        Unit(_word(group, layers, parts), tuple(layers), _label(group, layers, family))
        for group, layers in grouped.items()
    ]


def _group(name: str, by: By, parts: Mapping[str, str]) -> str:
    """What a layer belongs to."""
    if by == "layer":
        return name
    if by == "part":
        for word, start in parts.items():
            if name.startswith(start):
                return word
    numbered = NUMBERED.match(name)
    return numbered[0] if numbered else name


def _word(group: str, layers: Sequence[str], parts: Mapping[str, str]) -> str:
    """A part's name, a layer's, or a pattern for all names that begin with the group's."""
    return group if group in parts or list(layers) == [group] else f"{group}.*"


def _label(group: str, layers: Sequence[str], family: Family | None) -> str:
    return family.short_name(group) if family and list(layers) == [group] else group


class Latents(NamedTuple):
    """Finished latents, a row for each prompt."""

    concept: Tensor
    """(n, ...)."""

    neighbours: Tensor
    """(m, ...), m is 0 where there are none."""


Sample = Callable[[str | None], Latents]
"""Samples all prompts with the eraser in the layers that these words choose; "" is all layers, None
is without the eraser. Every time from the same noises."""


class Measured(NamedTuple):
    """What erasing somewhere does."""

    share: float
    """Of the whole eraser's change of the concept's latents: <z - z0, c> / <c, c> with c that
    change and z0 the unedited latents. 1 for the whole eraser, 0 for none."""

    moved: float | None
    """How far the neighbours' latents move, |z - z0| over the whole change |c| of the concept's, a
    root mean square over prompts each. None without neighbours."""


class Swept(NamedTuple):
    """One unit's measurements."""

    unit: Unit
    alone: Measured
    """Erased in this unit only."""

    without: Measured
    """Erased everywhere else."""

    @property
    def lost(self) -> float:
        """The share of the concept's change that is missing without this unit."""
        return 1 - self.without.share

    @property
    def worth(self) -> float:
        """What it adds as the first unit and as the last, on average; at least 0.

        These are the two ends of its Shapley value (L. S. Shapley, "A value for n-person games",
        1953), which averages over all orders in which units could be added.
        """
        return max(0.0, (self.alone.share + self.lost) / 2)

    @property
    def price(self) -> float:
        """How far it moves the neighbours by itself, 0 if there are none."""
        return self.alone.moved or 0.0


@dataclass(frozen=True)
class LayerSweep:
    """What a sweep found."""

    wanted: float
    """The share that was asked for."""

    swept: tuple[Swept, ...]
    """In the order of the model."""

    whole: Measured
    """Of the eraser in all layers."""

    chosen: tuple[Unit, ...]
    """In the order of the model."""

    found: Measured
    """Of the eraser in the chosen units, sampled."""

    @property
    def layers(self) -> str:
        """The choice as `selection.select` and `PURE_Patch` read it; empty if it is all."""
        return "" if self.is_all else words(self.chosen)

    @property
    def is_all(self) -> bool:
        """Whether no unit can be left out."""
        return len(self.chosen) == len(self.swept)

    def summary(self, by: By) -> str:
        """In words."""
        lines = [self._choice(by), self._extremes(by)]
        if self.whole.moved is None:
            lines.append("There were no neighbours, so what is kept was not measured.")
        return "\n".join(lines)

    def _choice(self, by: By) -> str:
        wanted, kept = f"{self.wanted:.0%}", ""
        if self.is_all:
            return (
                f"Erase in all {len(self.swept)} {by}s: with fewer, less than {wanted} of what the "
                "eraser does to the concept is left."
            )
        if self.whole.moved is not None and self.found.moved is not None:
            kept = (
                f" The neighbours' pictures move by {self.found.moved:.0%} of that change instead "
                f"of {self.whole.moved:.0%}."
            )
        return (
            f"Erase in {len(self.chosen)} of {len(self.swept)} {by}s: {self.layers}. This does "
            f"{self.found.share:.0%} of what the whole eraser does to the concept's pictures "
            f"(asked for: {wanted}).{kept}"
        )

    def _extremes(self, by: By) -> str:
        most = max(self.swept, key=lambda each: each.alone.share)
        missed = max(self.swept, key=lambda each: each.lost)
        return (
            f"The {by} that does most alone is {most.unit.label} ({most.alone.share:.0%}); most is "
            f"lost without {missed.unit.label} ({missed.lost:.0%})."
        )


def words(chosen: Sequence[Unit]) -> str:
    """Units as `selection.select` reads them."""
    return ", ".join(unit.word for unit in chosen)


def least_runs(count: int) -> int:
    """How often everything is sampled for so many units if the first choice does."""
    return 2 * count + 3


@torch.no_grad()
def sweep(found: Sequence[Unit], sample: Sample, wanted: float) -> LayerSweep:
    """Measure every unit, and find the fewest that do the wanted share together.

    Which those are is first reckoned from what each does alone and what is lost without it, then
    sampled. What units do does not simply add up: as long as the share falls short, the next ones
    are added, one, then two, then four, and it is sampled again.

    Raises:
        EraserError: fewer than two units, a share outside (0, 1], or an eraser that does not change
            the concept's pictures.
    """
    if not 0 < wanted <= 1:
        raise EraserError(f"share: expected a share above 0, up to 1, got {wanted}.")
    if len(found) < 2:
        raise EraserError(
            f"eraser: expected one that changes two blocks or more, to choose between, got "
            f"{len(found)}. Sweep by layer, or erase as it is."
        )
    ruler, known = Ruler.of(sample(None), sample("")), dict[str, Measured]()

    def measured(chosen: Sequence[Unit]) -> Measured:
        layers = words(chosen)
        if layers not in known:
            known[layers] = ruler.measure(sample(layers))
        return known[layers]

    swept = tuple(
        Swept(unit, measured([unit]), measured([each for each in found if each != unit]))
        for unit in found
    )
    taken, more = fewest(swept, wanted), 1
    while len(taken) < len(swept):
        chosen = tuple(swept[number].unit for number in sorted(taken))
        if measured(chosen).share >= wanted:
            return LayerSweep(wanted, swept, ruler.whole, chosen, measured(chosen))
        taken, more = taken | set(_left(swept, taken)[:more]), 2 * more
    return LayerSweep(wanted, swept, ruler.whole, tuple(found), ruler.whole)


class Ruler(NamedTuple):
    """What every measurement is held against."""

    plain: Latents
    """Without the eraser."""

    change: Tensor
    """c, the concept's latents with the whole eraser less those without, (n, ...)."""

    whole: Measured

    @classmethod
    def of(cls, plain: Latents, erased: Latents) -> Ruler:
        """From the latents without an eraser and with all of it.

        Raises:
            EraserError: they do not differ, or are not finite.
        """
        change = erased.concept.double() - plain.concept.double()
        size = change.square().sum()
        if not bool(torch.isfinite(size)):
            raise EraserError(
                "model: NaN or infinity in the pictures' latents. The checkpoint, a LoRA or the "
                "eraser is damaged, or the model needs more precision."
            )
        if size <= NOTHING**2 * plain.concept.double().square().sum():
            raise EraserError(
                "eraser: it does not change the pictures of these prompts, so there is nothing to "
                "look for. Check its strength, and that the prompts name the concept."
            )
        ruler = cls(plain, change, Measured(1.0, None))
        return ruler._replace(whole=ruler.measure(erased))

    def measure(self, latents: Latents) -> Measured:
        """What was done between the unedited latents and these."""
        size = self.change.square().sum()
        moved = latents.concept.double() - self.plain.concept.double()
        share = float((moved * self.change).sum() / size)
        if not len(self.plain.neighbours):
            return Measured(share, None)
        strayed = latents.neighbours.double() - self.plain.neighbours.double()
        mean = strayed.square().sum() / len(strayed)
        return Measured(share, float((mean / (size / len(self.change))).sqrt()))


def fewest(swept: Sequence[Swept], wanted: float) -> set[int]:
    """The numbers of the fewest units that should do this share, and move neighbours least.

    What units do together is reckoned as the sum of their worths, what they move as that of their
    prices. The worthiest ones are as few as can be; then one at a time is exchanged for the one
    that lowers the price most, while the share is still reached.
    """
    worth, price = [each.worth for each in swept], [each.price for each in swept]
    target = wanted * sum(worth) * (1 - 1e-9)  # sums of the same numbers differ in their last bits
    taken: set[int] = set()
    while sum(worth[number] for number in taken) < target:
        taken.add(_left(swept, taken)[0])
    taken = taken or {max(range(len(swept)), key=worth.__getitem__)}
    while True:
        spare = sum(worth[number] for number in taken) - target
        better = [
            (price[old] - price[new], old, new)
            for old in taken
            for new in range(len(swept))
            if new not in taken and price[new] < price[old] and worth[old] - worth[new] <= spare
        ]
        if not better:
            return taken
        _, old, new = max(better)
        taken = taken - {old} | {new}


def _left(swept: Sequence[Swept], taken: set[int]) -> list[int]:
    """The other units, worthiest first."""
    others = [number for number in range(len(swept)) if number not in taken]
    return sorted(others, key=lambda number: -swept[number].worth)
