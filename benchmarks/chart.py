"""The erasure table as a picture: a row of bars for every kind and model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.report.canvas import Canvas
from comfyui_pure.pure_core.report.picture import FAINT, FORGET, GAP, INK, MUTED, RETAIN

from benchmarks.rows import Row

ROW, TOP, LEFT, BAR, GUTTER = 22, 56, 250, 110, 20
COLUMNS = (
    ("by name", FORGET),
    ("by description", FORGET),
    ("neighbours", RETAIN),
    ("everything else", RETAIN),
    ("harmonic mean", GAP),
)


def draw_table(file: Path, rows: Sequence[Row]) -> None:
    """Write the picture."""
    kinds = len({row.kind for row in rows})
    width = LEFT + len(COLUMNS) * (BAR + GUTTER + 34)
    canvas = Canvas(width, TOP + ROW * (len(rows) + kinds) + 16)
    for column, (title, _) in enumerate(COLUMNS):
        canvas.text((_left(column), TOP - 22), title, 13, MUTED)
    canvas.text((16, TOP - 22), "low is erased: red; high is kept: green", 12, MUTED)
    y, last = TOP, ""
    for kind, method, total, means, _ in rows:
        scores = total.scores
        if kind != last:
            y += ROW if last else 0
            canvas.line([(16, y - ROW / 2), (width - 16, y - ROW / 2)], FAINT)
            canvas.text((16, y), kind, 13, INK)
            last = kind
        canvas.text((LEFT - 20, y), method, 13, INK, "rm")
        rates = scores.four()
        values = [rate.value for rate in rates] + [scores.harmonic_mean]
        for column, value in enumerate(values):
            left = _left(column)
            canvas.box((left, y - 7), (left + BAR, y + 7), FAINT, 3)
            if value > 0.01:
                canvas.box((left, y - 7), (left + BAR * value, y + 7), COLUMNS[column][1], 3)
            canvas.text((left + BAR + 6, y), f"{value:.2f}", 12, INK)
        ends = [_left(len(COLUMNS) - 1) + BAR * mean for mean in (min(means), max(means))]
        canvas.line([(ends[0], y), (ends[1], y)], INK, 1.5)
        y += ROW
    Image.fromarray(canvas.pixels()).save(file)


def _left(column: int) -> float:
    return LEFT + column * (BAR + GUTTER + 34)
