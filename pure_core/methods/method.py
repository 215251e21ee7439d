"""What a method declares about itself.

A method is one file in this folder with one object `METHOD`: its name, its settings with their
ranges and help, what it edits, what it needs, and its formula for one layer. Everything else, from
range checks to the nodes' widgets, their tooltips and the table in the docs, follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..activations import Activations
from ..eraser import Edit, LayerEraser, Space
from ..errors import FitError, require_one_of

Value = float | int | str

Factors = tuple[Tensor, Tensor]
"""L (d, r) and R (r, d), float64, of E = I - L R."""


@dataclass(frozen=True)
class Setting:
    """A number or a choice that a person may set."""

    name: str
    """As the node's input. Methods that share a setting share its name, default and range."""

    default: Value

    help: str
    """For the widget's tooltip: what it does and in which direction to turn it."""

    least: float = -math.inf
    most: float = math.inf

    above: bool = False
    """Whether `least` itself is left out of the range."""

    step: float = 0.01
    """Of the widget."""

    choices: tuple[str, ...] = ()
    """For a choice, its options; the numbers above do not matter then."""

    advanced: bool = False
    """Whether the editor folds it away."""

    @property
    def whole(self) -> bool:
        """Whether it is a whole number."""
        return isinstance(self.default, int)

    @property
    def range(self) -> str:
        """In words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        kind = "a whole number, " if self.whole else ""
        least, most = number(self.least), number(self.most)
        return kind + (f"above {least}, up to {most}" if self.above else f"from {least} to {most}")

    def check(self, value: Value) -> None:
        """Raise FitError unless the value is in its range."""
        if self.choices:
            require_one_of(self.name, str(value), self.choices, FitError)
            return
        number = float(value)
        fits = self.least <= number <= self.most and not (self.above and number == self.least)
        if not fits or (self.whole and number != int(number)):
            raise FitError(f"{self.name}: expected {self.range}, got {value}.")


def number(value: Value) -> str:
    """A setting's value as people write it."""
    return value if isinstance(value, str) else f"{value:.10g}"


class Remedies(NamedTuple):
    """What to change when the report finds something wrong. `{setting}` becomes its value."""

    little_removed: str
    little_kept: str

    without_retain: str = ""
    """Instead of `little_removed` where there are no neighbours."""


@dataclass(frozen=True)
class Method:
    """What all methods declare."""

    name: str

    summary: str
    """One sentence for the tooltip of the choice and for the table in the docs."""

    source: str
    """Paper, or 'ours'."""

    edit: Edit
    """The projections it edits unless asked otherwise."""

    settings: tuple[Setting, ...]

    presets: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    """Name -> settings that belong together, for people to choose instead of single numbers."""

    preset_for_kind: Mapping[str, str] = field(default_factory=dict)
    """Kind of concept -> the preset that its authors use for concepts of that kind."""

    def values(self, given: Mapping[str, Value]) -> dict[str, Any]:
        """All its settings: those given, which are checked, and the defaults of the others.

        Raises:
            FitError: a value out of its range.
        """
        values = {each.name: given.get(each.name, each.default) for each in self.settings}
        for each in self.settings:
            each.check(values[each.name])
        return values


class LayerRows(NamedTuple):
    """What a method fits in one layer: the rows of that layer, and where they came from."""

    layer: str
    forget: Activations
    retain: Activations | None
    replacement: Activations | None = None
    """What the concept becomes; None where its neighbours say that."""

    by_head: bool = False
    """Whether the rows are those of a single head."""

    @property
    def sharing(self) -> int:
        """How many concepts share a head's few dimensions; 1 for a whole layer, which has room."""
        return len(self.forget.anchors.concepts) if self.by_head else 1

    def head(self, number: int) -> LayerRows:
        """The rows of one head, (n, d / heads)."""

        def part(each: Activations | None) -> Activations | None:
            return each and each.head(self.layer, number)

        forget = self.forget.head(self.layer, number)
        return self._replace(
            forget=forget, retain=part(self.retain), replacement=part(self.replacement)
        )

    @property
    def forget_rows(self) -> Tensor:
        """H_F (n_F, d), float32 as captured."""
        return self.forget.rows[self.layer]

    @property
    def retain_rows(self) -> Tensor | None:
        """H_R (n_R, d), float32 as captured; None without neighbours."""
        return None if self.retain is None else self.retain.rows[self.layer]

    @property
    def kept_rows(self) -> Tensor:
        """The rows (n, d) of the neighbours and of the replacement, float32 as captured."""
        sides = [each for each in (self.retain, self.replacement) if each is not None]
        return torch.cat([each.rows[self.layer] for each in sides])


class JoinTask(NamedTuple):
    """One layer of several concepts' erasers, to be joined."""

    layers: Sequence[LayerEraser]

    shares: Sequence[float]
    """Each eraser's share of all forget rows."""

    concepts: Sequence[int]
    """How many concepts each eraser has, of a single head; of a whole layer 1."""

    all_concepts: int
    """How many they have together, each counted once; of a whole layer 1."""

    retain: Tensor | None
    """H_R (n_R, d), rows to keep: those of the neighbours and of replacements."""

    settings: Mapping[str, Value]


@dataclass(frozen=True)
class ActivationMethod(Method):
    """A method that is fitted on captured activations, layer by layer."""

    solve: Callable[..., Factors] = field(kw_only=True)
    """(LayerRows, **settings) -> L and R."""

    remedies: Remedies = field(kw_only=True)

    join: Callable[[JoinTask], LayerEraser] | None = None
    """Several concepts' erasers as the one that fitting all at once gives, or None if they do not
    hold what that takes."""

    joins_own_retain: bool = False
    """Whether joining needs the very retain rows that every concept was fitted with."""

    has_target: bool = False
    """Whether it sends the concept somewhere, so that a replacement can be what it becomes. Then
    `solve` reads `LayerRows.replacement`: see `targets.py`."""

    needs_retain: bool = True
    """Whether it cannot be fitted without neighbours; one with a target can with a replacement."""

    by_head_up_to: float = 0
    """Up to how many concepts at once it did better fitted on each head by itself, so that this is
    its default."""

    cells: int = 1
    """With how many cells its activations are best captured; 1 for whole pictures, which is all
    that it is given."""


class TextEdit(NamedTuple):
    """What a method in text space found."""

    left: Tensor
    """L (d, r), float64."""

    right: Tensor
    """R (r, d)."""

    edited: Tensor
    """The concept's vectors that are edited (n, d)."""

    found: Mapping[str, float] = {}
    """What the method chose by itself, by name, for the report."""


@dataclass(frozen=True)
class TextMethod(Method):
    """A method that is fitted on encoded prompts, for one layer or for all at once."""

    solve: Callable[..., TextEdit] | None = None
    """(TextTask, Progress, **settings) -> the same edit of the text for all layers."""

    solve_layer: Callable[..., TextEdit] | None = None
    """(TextTask, layer, **settings) -> the edit of one layer."""

    space: Space = "text"
    """What the edit of `solve_layer` multiplies."""

    needs_retain: bool = False

    every_token: bool = False
    """Whether it edits each token of a prompt, so that what the concept becomes has to stand in the
    prompt's own phrasing; without an anchor the concept becomes its neighbours."""

    captions: tuple[str, ...] = ()
    """Ordinary prompts that it keeps, to be encoded for it as `TextTask.ordinary`."""
