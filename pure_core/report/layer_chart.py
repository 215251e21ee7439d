"""A layer sweep's picture: a row of bars for each block or layer."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..layer_sweep import By, LayerSweep, Swept
from .canvas import Canvas, Colour
from .picture import (
    FORGET,
    GAP,
    HEAD_HEIGHT,
    INK,
    MARGIN,
    MUTED,
    NOTE,
    RETAIN,
    ROW_HEIGHT,
    draw_bar,
)

WIDTH, TOP = 680, 84
FIRST, PITCH = 260, 134
LETTERS = 28


class Bars(NamedTuple):
    """A column of shares."""

    title: str
    colour: Colour
    value: Callable[[Swept], float | None]


COLUMNS = (
    Bars("done by\nit alone", FORGET, lambda each: each.alone.share),
    Bars("lost\nwithout it", GAP, lambda each: each.lost),
    Bars("neighbours moved\nby it alone", RETAIN, lambda each: each.alone.moved),
)


def draw_layers(found: LayerSweep, by: By, concept: str) -> npt.NDArray[np.uint8]:
    """The sweep as a picture; chosen rows are marked.

    Returns:
        (height, 680, 3) RGB; the height follows from the number of rows.
    """
    rows = len(found.swept) + 2
    canvas = Canvas(WIDTH, TOP + HEAD_HEIGHT + ROW_HEIGHT * rows + 3 * MARGIN)
    canvas.text((MARGIN, 32), textwrap.shorten(f"Where it lives: {concept}", 52), 22, INK)
    canvas.text((MARGIN, 60), f"The {by}s that are chosen are marked", 13, MUTED)
    _draw_head(canvas, by)
    for index, each in enumerate(found.swept):
        _draw_row(canvas, each, each.unit in found.chosen, index)
    _draw_sums(canvas, found, TOP + HEAD_HEIGHT + ROW_HEIGHT * len(found.swept))
    return canvas.pixels()


def _left(column: int) -> float:
    return FIRST + PITCH * column


def _draw_head(canvas: Canvas, by: By) -> None:
    canvas.text((MARGIN, TOP + 26), by, 12, MUTED)
    for column, bars in enumerate(COLUMNS):
        for line, text in enumerate(bars.title.split("\n")):
            canvas.text((_left(column), TOP + 10 + 16 * line), text, 12, MUTED)


def _draw_row(canvas: Canvas, each: Swept, chosen: bool, index: int) -> None:
    y = TOP + HEAD_HEIGHT + ROW_HEIGHT * index
    if chosen:
        canvas.box((MARGIN - 8, y + 1), (WIDTH - MARGIN + 8, y + ROW_HEIGHT - 1), NOTE, 4)
        canvas.dot((MARGIN - 16, y + ROW_HEIGHT / 2), 3, INK)
    canvas.text((MARGIN, y + ROW_HEIGHT / 2), each.unit.label[-LETTERS:], 13, INK)
    for column, bars in enumerate(COLUMNS):
        draw_bar(canvas, _left(column), y + ROW_HEIGHT / 2, bars.colour, bars.value(each))


def _draw_sums(canvas: Canvas, found: LayerSweep, top: float) -> None:
    """What those that are chosen do together, beside the whole eraser."""
    canvas.line([(MARGIN - 8, top), (WIDTH - MARGIN + 8, top)], MUTED)
    first, last = COLUMNS[0], COLUMNS[-1]
    for line, (name, measured) in enumerate((("chosen", found.found), ("all", found.whole))):
        y = top + ROW_HEIGHT * (line + 0.5)
        canvas.text((MARGIN, y), name, 13, INK)
        draw_bar(canvas, _left(0), y, first.colour, measured.share)
        draw_bar(canvas, _left(len(COLUMNS) - 1), y, last.colour, measured.moved)
    for line, text in enumerate(
        (
            "Shares of what the whole eraser changes in the finished latents of the concept's",
            f"prompts. Asked for: {found.wanted:.0%}. Below 0: it changes them the other way.",
        )
    ):
        canvas.text((MARGIN, top + 2 * ROW_HEIGHT + 24 + 18 * line), text, 12, MUTED)
