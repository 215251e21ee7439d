"""A small drawing surface: Pillow in the report's own units, with smooth lines and letters.

Pillow, which ComfyUI brings, is imported when the first picture is drawn and by nothing else.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Colour = tuple[int, int, int]
Point = tuple[float, float]

SCALE = 2
"""Everything is drawn this much larger and reduced at the end."""


class Canvas:
    """An RGB picture of a size in pixels, white at first."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.size = (width, height)
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), (255, 255, 255))
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self, at: Point, text: str, size: float = 13, colour: Colour = (0, 0, 0), anchor: str = "lm"
    ) -> None:
        """Text at a point; `anchor` as Pillow's: l, m, r and then a, m, s."""
        from PIL import ImageFont

        font = ImageFont.load_default(size * SCALE)
        self._draw.text(_large(at), printable(text), colour, font, anchor)

    def box(self, corner: Point, opposite: Point, colour: Colour, radius: float = 0) -> None:
        """A filled rectangle with round corners."""
        corners = [_large(corner), _large(opposite)]
        self._draw.rounded_rectangle(corners, radius * SCALE, colour)

    def line(self, points: Sequence[Point], colour: Colour, width: float = 1) -> None:
        """A line through points."""
        large = [_large(point) for point in points]
        self._draw.line(large, colour, round(width * SCALE), joint="curve")

    def dot(self, at: Point, radius: float, colour: Colour) -> None:
        """A filled circle."""
        self._draw.circle(_large(at), radius * SCALE, colour)

    def picture(self, corner: Point, size: tuple[int, int], pixels: npt.NDArray[np.uint8]) -> None:
        """A picture (height, width, 3), stretched to a size (width, height)."""
        from PIL import Image

        large = (size[0] * SCALE, size[1] * SCALE)
        drawn = Image.fromarray(pixels).resize(large, Image.Resampling.LANCZOS)
        self._image.paste(drawn, (round(corner[0] * SCALE), round(corner[1] * SCALE)))

    def pixels(self) -> npt.NDArray[np.uint8]:
        """(height, width, 3)."""
        from PIL import Image

        return np.asarray(self._image.resize(self.size, Image.Resampling.LANCZOS))


def printable(text: str) -> str:
    """Text in the letters that Pillow's built-in font has: accents go, the rest becomes '?'."""
    apart = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in apart if not unicodedata.combining(letter))
    return plain.encode("ascii", "replace").decode("ascii")


def _large(point: Point) -> Point:
    return point[0] * SCALE, point[1] * SCALE
