"""Draws thumbnails from a run: python3 dev.py run testbed/comfy/thumbnails.py -- TEMPLATE ...

Before and after, of the first two pictures, or of the first of each comparison if there are two.
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from testbed.comfy.examples import FOLDER, load, upstream
from testbed.comfy.server import ComfyServer
from testbed.comfy.small_wan import SETTINGS, TEMPLATE

SIZE, SIDE = (512, 560), 240
LEFT, TOP = (10, 262), (46, 302)
BACKGROUND, WORDS = (24, 24, 26), ("before", "after")


def pairs(server: ComfyServer, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two pictures before and after, from a run of a template on the small models."""
    prompt = load(FOLDER / "api" / f"{name}.json")
    if name == TEMPLATE:
        for node in prompt.values():
            node["inputs"].update(SETTINGS.get(node["class_type"], {}))
    comparisons = [key for key, node in prompt.items() if node["class_type"] == "PURE_Compare"]
    needed = {key: node for each in comparisons for key, node in upstream(prompt, each).items()}
    run = server.run(needed)
    assert run.error is None, run.error
    shown = []
    for each in comparisons:
        sides = (run.outputs[each][f"pure_{word}"] for word in WORDS)
        shown.append(list(zip(*map(server.pictures, sides), strict=True)))
    return shown[0][:2] if len(shown) == 1 else [each[0] for each in shown[:2]]


def thumbnail(rows: list[tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    """Rows of before and after, with these words above."""
    whole = Image.new("RGB", SIZE, BACKGROUND)
    draw = ImageDraw.Draw(whole)
    font = ImageFont.load_default(23)
    for left, word in zip(LEFT, WORDS, strict=True):
        draw.text((left + SIDE / 2, TOP[0] / 2 + 1), word, "white", font, anchor="mm")
    for top, row in zip(TOP, rows, strict=True):
        for left, picture in zip(LEFT, row, strict=True):
            large = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            whole.paste(large, (left, top))
    return whole


def main() -> None:
    with ComfyServer() as server:
        for name in sys.argv[1:]:
            thumbnail(pairs(server, name)).save(FOLDER / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
