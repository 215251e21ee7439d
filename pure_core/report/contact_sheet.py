"""A contact sheet: small pictures with a label over each column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .canvas import Canvas
from .picture import INK

SIDE, GAP, LABEL, LETTERS = 160, 8, 24, 24
"""Pixels: the longer side of a picture, between pictures, a label's height; letters of a label."""

COLUMNS = 6


class Column(NamedTuple):
    """Pictures of one size that belong together, one below the other."""

    label: str
    pictures: tuple[npt.NDArray[np.uint8], ...]
    """(height, width, 3)."""


def contact_sheet(columns: Sequence[Column]) -> npt.NDArray[np.uint8]:
    """Columns with as many pictures of the same size each, six beside each other.

    Returns:
        (height, width, 3) RGB.
    """
    height, width, _ = columns[0].pictures[0].shape
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    across = min(COLUMNS, len(columns))
    deep = LABEL + len(columns[0].pictures) * (size[1] + GAP)
    lines = -(-len(columns) // COLUMNS)
    canvas = Canvas(GAP + across * (SIDE + GAP), GAP + lines * deep)
    for number, column in enumerate(columns):
        left, top = GAP + number % COLUMNS * (SIDE + GAP), GAP + number // COLUMNS * deep
        canvas.text((left, top + LABEL / 2), column.label[-LETTERS:], 12, INK)
        for row, pixels in enumerate(column.pictures):
            canvas.picture((left, top + LABEL + row * (size[1] + GAP)), size, pixels)
    return canvas.pixels()
