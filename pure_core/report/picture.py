"""The fit report's picture: a row of bars per layer, and the spectra beside them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..families import family_named
from .canvas import Canvas, Colour, Point
from .numbers import FitReport, LayerReport, Spectrum, named

INK: Colour = (31, 36, 48)
MUTED: Colour = (107, 114, 128)
FAINT: Colour = (229, 231, 235)
STRIPE: Colour = (247, 248, 250)
NOTE: Colour = (255, 244, 222)
FORGET: Colour = (200, 70, 84)
GAP: Colour = (226, 150, 52)
RETAIN: Colour = (38, 139, 128)

WIDTH, MARGIN = 1024, 32
TITLE_HEIGHT, NOTE_LINE, NOTE_LETTERS = 112, 20, 150
HEAD_HEIGHT, ROW_HEIGHT, LEGEND_LINE = 44, 24, 18
TABLE_RIGHT = 666
BAR_LENGTH = 84
PLOT_LEFT, PLOT_RIGHT = 742, 992
PLOT_TOP, PLOT_HEIGHT, PLOT_PITCH = 48, 166, 262


class Ranks(NamedTuple):
    """A column of numbers, right-aligned."""

    title: str
    right: float
    value: Callable[[LayerReport], int | None]


class Bars(NamedTuple):
    """A column of shares, drawn as bars."""

    title: str
    left: float
    colour: Colour
    value: Callable[[LayerReport], float | None]


RANKS = (
    Ranks("forget\nrank", 196, lambda layer: layer.forget_rank),
    Ranks("retain\nrank", 242, lambda layer: layer.retain_rank),
    Ranks("edit\nrank", 284, lambda layer: layer.rank),
)
BARS = (
    Bars("forget energy\nremoved", 310, FORGET, lambda layer: layer.forget_removed),
    Bars("shift towards\nneighbours", 432, GAP, lambda layer: layer.shift),
    Bars("retain energy\nkept", 554, RETAIN, lambda layer: layer.retain_kept),
)


def draw(report: FitReport) -> npt.NDArray[np.uint8]:
    """The report as a picture.

    Returns:
        (height, 1024, 3) RGB; the height follows from the number of layers.
    """
    notes = [line for warning in report.warnings for line in textwrap.wrap(warning, NOTE_LETTERS)]
    top = TITLE_HEIGHT + (NOTE_LINE * len(notes) + 24 if notes else 0)
    table = HEAD_HEIGHT + ROW_HEIGHT * (len(report.layers) + 1) + LEGEND_LINE * 4
    canvas = Canvas(WIDTH, top + max(table, 2 * PLOT_PITCH - 24) + MARGIN)
    _draw_title(canvas, report)
    _draw_notes(canvas, notes)
    _draw_table(canvas, report, top)
    _draw_spectra(canvas, report, top)
    return canvas.pixels()


def short_name(layer: str, family: str) -> str:
    """A layer's name where there is little room, as its model's family has it."""
    known = family_named(family)
    return known.short_name(layer) if known else layer[:18]


def _draw_title(canvas: Canvas, report: FitReport) -> None:
    made = report.provenance
    settings = ", ".join(f"{name} {value}" for name, value in made.settings.items())
    replacing = f", {len(made.replacement)} replacement" if made.replacement else ""
    count = f"{len(made.forget)} forget{replacing} and {len(made.retain)} retain prompts"
    source = f"{count}, {len(report.layers)} layers of {made.model.name}, {made.created}"
    canvas.text((MARGIN, 36), textwrap.shorten(f"Erase: {named(made)}", 70), 24, INK)
    line = f"Method {made.method}: {settings}; edits {report.eraser.edited}"
    canvas.text((MARGIN, 67), textwrap.shorten(line, 125), 14, INK)
    canvas.text((MARGIN, 89), textwrap.shorten(source, 135), 13, MUTED)


def _draw_notes(canvas: Canvas, lines: Sequence[str]) -> None:
    if not lines:
        return
    bottom = TITLE_HEIGHT + NOTE_LINE * len(lines) + 8
    canvas.box((MARGIN - 8, TITLE_HEIGHT), (WIDTH - MARGIN + 8, bottom), NOTE, 6)
    for index, line in enumerate(lines):
        canvas.text((MARGIN, TITLE_HEIGHT + 14 + NOTE_LINE * index), line, 13, INK)


def _draw_table(canvas: Canvas, report: FitReport, top: float) -> None:
    _draw_head(canvas, "\nlayer", MARGIN, top, "lm")
    for ranks in RANKS:
        _draw_head(canvas, ranks.title, ranks.right, top, "rm")
    for bars in BARS:
        _draw_head(canvas, bars.title, bars.left, top, "lm")
    for index, layer in enumerate(report.layers):
        y = top + HEAD_HEIGHT + ROW_HEIGHT * index
        if index % 2 == 0:
            canvas.box((MARGIN - 8, y), (TABLE_RIGHT + 12, y + ROW_HEIGHT), STRIPE, 4)
        _draw_row(canvas, layer, report.provenance.model.family, y + ROW_HEIGHT / 2)
    y = top + HEAD_HEIGHT + ROW_HEIGHT * len(report.layers)
    _draw_legend(canvas, report, y + ROW_HEIGHT + LEGEND_LINE)
    canvas.line([(MARGIN - 8, y), (TABLE_RIGHT + 12, y)], MUTED)
    canvas.text((MARGIN, y + ROW_HEIGHT / 2), "mean", 13, INK)
    for bars in BARS:
        share = report.mean(bars.value)
        draw_bar(canvas, bars.left, y + ROW_HEIGHT / 2, bars.colour, share)


def _draw_legend(canvas: Canvas, report: FitReport, y: float) -> None:
    lines = ["Energy: squared length of the activations, their mean included. Below 0: it grew."]
    if report.mean(lambda layer: layer.shift) is not None:
        replaced = report.provenance.replacement
        target = "the replacement" if replaced else "the retain prompts' mean"
        lines.append(f"Shift: 100% is {target} at the same latent and step. Above: beyond it.")
    protected = report.mean(lambda layer: layer.mean_protected)
    if protected is not None:
        lines.append(f"The retain directions protect {protected:.0%} of the forget mean's energy.")
    for index, line in enumerate(lines):
        canvas.text((MARGIN, y + LEGEND_LINE * index), line, 12, MUTED)


def _draw_head(canvas: Canvas, title: str, x: float, top: float, anchor: str) -> None:
    for line, text in enumerate(title.split("\n")):
        canvas.text((x, top + 10 + 16 * line), text, 12, MUTED, anchor)


def _draw_row(canvas: Canvas, layer: LayerReport, family: str, y: float) -> None:
    canvas.text((MARGIN, y), short_name(layer.name, family), 13, INK)
    for ranks in RANKS:
        value = ranks.value(layer)
        canvas.text((ranks.right, y), "-" if value is None else str(value), 13, INK, "rm")
    for bars in BARS:
        draw_bar(canvas, bars.left, y, bars.colour, bars.value(layer))


def draw_bar(canvas: Canvas, left: float, y: float, colour: Colour, share: float | None) -> None:
    """A bar for a share from 0 to 1. What lies outside shows in the number only."""
    if share is None:
        canvas.text((left, y), "-", 13, MUTED)
        return
    length = BAR_LENGTH * min(max(share, 0.0), 1.0)
    canvas.box((left, y - 5), (left + BAR_LENGTH, y + 5), FAINT, 2)
    if length >= 1:
        canvas.box((left, y - 5), (left + length, y + 5), colour, 2)
    canvas.text((left + BAR_LENGTH + 5, y), f"{100 * share:.0f}%", 12, INK)


def _draw_spectra(canvas: Canvas, report: FitReport, top: float) -> None:
    forget = [layer.forget_spectrum for layer in report.layers]
    retain = [layer.retain_spectrum for layer in report.layers if layer.retain_spectrum]
    _draw_plot(canvas, "Forget rows", forget, FORGET, top)
    if retain:
        _draw_plot(canvas, "Retain rows", retain, RETAIN, top + PLOT_PITCH)


def _draw_plot(
    canvas: Canvas, title: str, spectra: Sequence[Spectrum], colour: Colour, top: float
) -> None:
    """Cumulative energy over the number of directions, one curve a layer.

    Earlier layers are lighter. The dashed line is the energy asked for, a dot where a layer
    reaches it.
    """
    energy = spectra[0].energy
    upper, lower = top + PLOT_TOP, top + PLOT_TOP + PLOT_HEIGHT
    most = max([2, *(len(spectrum.cumulative) for spectrum in spectra)])
    least = min([energy, *(share for spectrum in spectra for share in spectrum.cumulative[:1])])
    floor = math.floor(10 * least - 0.2) / 10

    def place(directions: int, share: float) -> Point:
        right = math.log(directions) / math.log(most)
        up = (share - floor) / (1 - floor)
        return PLOT_LEFT + (PLOT_RIGHT - PLOT_LEFT) * right, lower + (upper - lower) * up

    canvas.text((PLOT_LEFT - 34, top + 10), f"{title}: cumulative energy", 13, INK)
    canvas.text((PLOT_LEFT - 34, top + 27), "a curve per layer, lighter is earlier", 12, MUTED)
    for share in np.linspace(floor, 1, 3):
        _, y = place(1, share)
        canvas.line([(PLOT_LEFT, y), (PLOT_RIGHT, y)], FAINT)
        canvas.text((PLOT_LEFT - 6, y), f"{100 * share:.0f}%", 11, MUTED, "rm")
    for directions in (tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= most):
        canvas.text((place(directions, 0)[0], lower + 12), str(directions), 11, MUTED, "mm")
    canvas.text((PLOT_RIGHT, lower + 27), "directions", 11, MUTED, "rm")
    for index, spectrum in enumerate(spectra):
        shade = _lighter(colour, 0.6 * (1 - index / max(1, len(spectra) - 1)))
        curve = [place(count, share) for count, share in enumerate(spectrum.cumulative, 1)]
        canvas.line(curve, shade, 1.5)
        if curve:
            canvas.dot(curve[spectrum.rank - 1], 2.5, shade)
    _, y = place(1, energy)
    for x in range(PLOT_LEFT, PLOT_RIGHT, 8):
        canvas.line([(x, y), (x + 4, y)], INK)
    canvas.text((PLOT_LEFT + 4, y + 9), f"{energy:g}", 12, INK)


def _lighter(colour: Colour, share: float) -> Colour:
    """A colour mixed with white."""
    red, green, blue = (round(part + (255 - part) * share) for part in colour)
    return red, green, blue
