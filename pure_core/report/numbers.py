"""The fit report's numbers: what an eraser does to the rows it was fitted on.

All shares are of energy, the squared norm summed over rows. Activations have a large mean that
a concept shares with everything else, so little of the forget energy has to go for the concept
to go; what tells the concept apart is its gap to the neighbours' mean at the same latent and
step, and the gap is reported on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from textwrap import shorten

import torch
from torch import Tensor

from ..activations import Activations
from ..bases import fit_basis
from ..combine import why_not_joinable
from ..eraser import Eraser, LayerEraser, Provenance, require_same_widths
from ..fitting import require_comparable
from ..methods import METHODS
from ..methods.method import LayerRows
from ..methods.targets import targets
from ..progress import Progress, no_progress

SPECTRUM_ENERGY = 0.99
"""The spectra are shown at least up to this share of the energy."""

ENOUGH_REMOVED = 0.5
"""Below this shift towards the neighbours, the summary warns that the concept will remain.

On the development concepts of the small model most of it did, below; between here and 1 the
methods differ too much for a warning (pure erased some concepts at 0.6, ridge left some at 1), and
from 1.7 on hardly a picture showed the concept.
"""

ENOUGH_KEPT = 0.85
"""Below this share of the retain energy kept, the summary warns that neighbours change.

On the development concepts of the small model neighbours were still drawn at 0.87.
"""


@dataclass(frozen=True)
class Spectrum:
    """How the energy of a layer's rows spreads over their leading directions."""

    cumulative: tuple[float, ...]
    """Share of the energy in the first 1, 2, .. directions."""

    energy: float
    """The share that was asked for, or `SPECTRUM_ENERGY` where the method asks for none."""

    @property
    def rank(self) -> int:
        """How many directions hold `energy`."""
        return min(sum(share < self.energy for share in self.cumulative) + 1, len(self.cumulative))


@dataclass(frozen=True)
class LayerReport:
    """One layer of the report. What needs rows to keep, of neighbours or of a replacement, is None
    without them."""

    name: str
    width: int
    """d."""

    rank: int
    """Of E - I, or of each head's block of it."""

    forget_spectrum: Spectrum
    retain_spectrum: Spectrum | None

    forget_removed: float
    """1 - |E H_F|^2 / |H_F|^2. Below 0 if E amplifies."""

    mean_removed: float
    """The same for the mean h of the forget rows: 1 - |E h|^2 / |h|^2."""

    mean_protected: float | None
    """|P_F P_R h|^2 / |h|^2: what PURE leaves of the forget mean inside the forget subspace,
    because the retain subspace holds it. None for other methods, and head by head."""

    shift: float | None
    """<H_F - E H_F, H_F - T_F> / |H_F - T_F|^2, with T_F the mean of the retain prompts at the
    same latent and step: how far E takes the forget rows towards the neighbours, 0 not at all, 1
    to their mean, above 1 beyond it. With a replacement T_F are its rows: see `targets.py`."""

    gap_closed: float | None
    """1 - |E H_F - T_F|^2 / |H_F - T_F|^2: 1 if forget rows end exactly where the neighbours' mean
    is, 0 if they come no closer; going beyond it counts against."""

    retain_kept: float | None
    """1 - |E H_R - H_R|^2 / |H_R|^2, with the replacement's rows among H_R."""

    @property
    def forget_rank(self) -> int:
        """Directions that hold the forget energy asked for."""
        return self.forget_spectrum.rank

    @property
    def retain_rank(self) -> int | None:
        """Directions that hold the retain energy asked for."""
        return None if self.retain_spectrum is None else self.retain_spectrum.rank


@dataclass(frozen=True)
class FitReport:
    """An eraser against the rows it was fitted on."""

    eraser: Eraser
    layers: tuple[LayerReport, ...]

    arrives: Mapping[str, float] = field(default_factory=dict)
    """Layer -> share of its change that arrives in the model, where it was measured: see
    `arrival.py`."""

    @property
    def provenance(self) -> Provenance:
        """How the eraser came to be."""
        return self.eraser.provenance

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        eraser: Eraser,
        forget: Activations,
        retain: Activations | None,
        progress: Progress = no_progress,
        arrives: Mapping[str, float] | None = None,
        replacement: Activations | None = None,
    ) -> FitReport:
        """Measure an eraser on forget and retain rows; progress is reported in layers.

        Args:
            arrives: What was measured in the model, see the field.
            replacement: What the concept becomes, if it was fitted with one.

        Raises:
            EraserError: the eraser's layers are not those of the activations.
            FitError: rows were captured in different ways.
        """
        require_same_widths(eraser.widths, forget.widths)
        require_comparable(forget, retain)
        require_comparable(forget, replacement, "replacement")
        forget, retain = forget.pooled(), retain and retain.pooled()
        replacement = replacement and replacement.pooled()
        layers = []
        for name, layer in eraser.to("cpu", torch.float32).layers.items():
            rows = LayerRows(name, forget, retain, replacement)
            layers.append(_report_layer(layer, eraser.provenance, rows))
            progress(len(layers), len(eraser.layers))
        return cls(eraser, tuple(layers), dict(arrives or {}))

    def mean(self, value: Callable[[LayerReport], float | None]) -> float | None:
        """The mean of a number over all layers, or None where it was not measured."""
        values = [value(layer) for layer in self.layers]
        known = [each for each in values if each is not None]
        return sum(known) / len(known) if known else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before trusting the eraser, with what to change."""
        return tuple(
            warning
            for warning in (
                self._missing_neighbours(),
                self._little_removed(),
                self._little_kept(),
            )
            if warning
        )

    def summary(self) -> str:
        """The report as a few lines of text."""
        lines = [
            *_made(self.eraser),
            f"{_sizes(self.eraser)}. Mean over layers, at strength 1:",
            _line(
                "removed, of the concept's energy", self.mean(lambda layer: layer.forget_removed)
            ),
            _line(
                "removed, of the energy of the concept's mean",
                self.mean(lambda layer: layer.mean_removed),
            ),
            _line(f"shift towards the {self._target}", self.mean(lambda layer: layer.shift)),
            _line(f"kept, of {self._keeps} energy", self.mean(lambda layer: layer.retain_kept)),
            self._arriving(),
            _line(
                "protected by the neighbours' directions, of the concept's mean",
                self.mean(lambda layer: layer.mean_protected),
            ),
            *(f"Warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(line for line in lines if line)

    def _arriving(self) -> str:
        """How much of the change arrives in the model."""
        what = "  arrives in the model, of the change"
        if all(layer.by_head for layer in self.eraser.layers.values()):
            return f"{what}: all of it, as each head is changed by itself"
        if not self.arrives:
            return f"{what}: not measured (PURE Fit measures it with model and clip connected)"
        shares = self.arrives.values()
        mean = sum(shares) / len(shares)
        return f"{what}: {mean:.1%} (by layer {min(shares):.0%} to {max(shares):.0%})"

    @property
    def _target(self) -> str:
        """Where the concept is sent, in words."""
        return "replacement" if self.provenance.replacement else "neighbours"

    @property
    def _keeps(self) -> str:
        """Whose energy is kept, in words."""
        made = self.provenance
        sides = [(made.retain, "the neighbours'"), (made.replacement, "the replacement's")]
        return " and ".join(words for anchors, words in sides if anchors)

    def _missing_neighbours(self) -> str:
        if self.provenance.retain:
            return ""
        if self.provenance.replacement:
            return (
                "Fitted without neighbours: beside the replacement nothing is kept on purpose, so "
                "things like the concept may change. List neighbours (PURE Fit: connect their "
                "activations to 'retain')."
            )
        return (
            "Fitted without neighbours. The edit also removes what the concept shares with "
            "everything else, so unrelated pictures will be damaged. List neighbours "
            "(PURE Fit: connect their activations to 'retain')."
        )

    def _little_removed(self) -> str:
        shift = self.mean(lambda layer: layer.shift)
        if shift is None:
            removed = self.mean(lambda layer: layer.forget_removed) or 0.0
            finding = f"Only {removed:.0%} of the concept's energy is removed"
        else:
            removed = shift
            finding = f"The concept's shift towards its {self._target} is only {shift:.0%}"
        if removed >= ENOUGH_REMOVED:
            return ""
        remedies = METHODS[self.provenance.method].remedies
        remedy = remedies.little_removed
        if not self.provenance.retain and remedies.without_retain:
            remedy = remedies.without_retain
        if "max_rank" in self.provenance.settings:
            remedy = f"Raise max_rank (now {{max_rank}}). {remedy}"
        return f"{finding}: expect it to remain. {self._with_values(remedy)}"

    def _little_kept(self) -> str:
        kept = self.mean(lambda layer: layer.retain_kept)
        if kept is None or kept >= ENOUGH_KEPT:
            return ""
        remedy = self._with_values(METHODS[self.provenance.method].remedies.little_kept)
        return f"Only {kept:.0%} of {self._keeps} energy is kept: they will change. {remedy}"

    def _with_values(self, remedy: str) -> str:
        """A method's advice with its settings' values."""
        return remedy.format(**self.provenance.settings)


def summary(eraser: Eraser) -> str:
    """What an eraser is, in a few lines of text."""
    layers = {id(layer): layer for layer in eraser.layers.values()}.values()
    factors = sum(2 * 4 * layer.rank * layer.width for layer in layers)
    both = factors + sum(4 * layer.rows.numel() for layer in layers if layer.rows is not None)
    sizes, why = _sizes(eraser), why_not_joinable(eraser)
    return "\n".join(
        [
            *_made(eraser),
            f"{sizes}; as a file {factors / 1e6:.1f} MB.",
            f"It cannot be joined with others, only combined in sequence: {why}."
            if why
            else f"It can be joined with others; saved with 'joinable' on: {both / 1e6:.1f} MB.",
        ]
    )


def named(made: Provenance, most: int = 3) -> str:
    """The concepts by name, the first few of many, and what they become if that was chosen."""
    names = [shorten(name, 40) for name in made.concepts]
    more = len(names) - most
    shown = ", ".join(names[:most]) or "nothing"
    shown = f"{shown} and {more} more" if more > 0 else shown
    becomes = " or ".join(shorten(name, 40) for name in made.replacement.concepts)
    verb = "becomes" if len(names) == 1 else "become"
    return f"{shown}, which {verb} {becomes}" if becomes else shown


def _made(eraser: Eraser) -> list[str]:
    made = eraser.provenance
    settings = ", ".join(f"{name} {value}" for name, value in made.settings.items())
    count = "" if len(made.concepts) == 1 else f"{len(made.concepts)} concepts: "
    erases = "Erases" if any(eraser.ranks.values()) else "Erases nothing (rank 0), made for"
    replacing = len(made.replacement)
    replaced = f", {replacing} replacement prompts" if replacing else ""
    strength = "" if eraser.strength == 1 else f" at strength {eraser.strength:g}"
    return [
        f"{erases} {count}{named(made, 10)}{strength}.",
        f"Method {made.method} ({settings}); edits {eraser.edited}; fitted on {made.model.name}.",
        f"{len(made.forget)} forget prompts, {len(made.retain)} retain prompts{replaced}.",
    ]


def _sizes(eraser: Eraser) -> str:
    """Ranks by width, or by a head's width."""
    found: dict[str, list[int]] = {}
    for layer in eraser.layers.values():
        heads = f" in each of {layer.heads} heads" if layer.by_head else ""
        found.setdefault(f"{layer.width // layer.heads}{heads}", []).append(layer.rank)
    parts = ", ".join(
        f"{min(ranks)} to {max(ranks)} of {room}"
        for room, ranks in sorted(found.items(), key=lambda each: int(each[0].split()[0]))
    )
    return f"{len(eraser.layers)} layers, ranks {parts}"


def _line(label: str, share: float | None) -> str:
    return "" if share is None else f"  {label}: {share:.1%}"


def _report_layer(
    layer: LayerEraser,
    made: Provenance,
    found: LayerRows,
) -> LayerReport:
    rows = found.forget_rows
    edited = layer(rows)
    mean = rows.mean(dim=0)
    forget_basis, forget_spectrum = _spectrum(rows, made.settings.get("forget_energy"))
    alone = LayerReport(
        name=found.layer,
        width=layer.width,
        rank=layer.rank,
        forget_spectrum=forget_spectrum,
        retain_spectrum=None,
        forget_removed=1 - _share(edited, rows),
        mean_removed=1 - _share(layer(mean), mean),
        mean_protected=None,
        shift=None,
        gap_closed=None,
        retain_kept=None,
    )
    if found.retain is None and found.replacement is None:
        return alone
    keep = found.kept_rows
    target = targets(found, by_phrasing=False).float()
    retain_basis, retain_spectrum = _spectrum(keep, made.settings.get("retain_energy"))
    dense_pure = made.method == "pure" and not layer.by_head
    protected = _project(_project(mean.double(), retain_basis), forget_basis)
    return replace(
        alone,
        retain_spectrum=retain_spectrum,
        mean_protected=_share(protected, mean) if dense_pure else None,
        shift=_shift(rows, edited, target),
        gap_closed=1 - _share(edited - target, rows - target),
        retain_kept=1 - _share(layer(keep) - keep, keep),
    )


def _spectrum(rows: Tensor, asked: float | str | None) -> tuple[Tensor, Spectrum]:
    """The directions (d, r) that hold the energy asked for, and the spectrum around them."""
    energy = asked if isinstance(asked, float) else SPECTRUM_ENERGY
    basis = fit_basis(rows, max(energy, SPECTRUM_ENERGY))
    spectrum = Spectrum(tuple(basis.cumulative.tolist()), energy)
    return basis.vectors[:, : spectrum.rank], spectrum


def _project(row: Tensor, vectors: Tensor) -> Tensor:
    """P h = V V^T h."""
    return vectors @ (vectors.T @ row)


def _shift(rows: Tensor, edited: Tensor, target: Tensor) -> float:
    """How far the rows go towards the target, as a share of the distance to it."""
    gap = rows - target
    return float(((rows - edited) * gap).sum() / gap.square().sum().clamp(min=1e-30))


def _share(part: Tensor, whole: Tensor) -> float:
    """|part|^2 / |whole|^2, and 0 of nothing."""
    return float(part.square().sum() / whole.square().sum().clamp(min=1e-30))
