"""Draws scenes: an icon at a size and place of our own on a background of our own."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from .scene import OTHER, Scene
from .sources import PACKAGES, draw_svg, icon_set
from .vocabulary import CONCEPTS, HANDS

SIDE = 64
MASTER = 224
"""Pixels at which an icon is drawn once, to be scaled down for every picture."""

SMALLEST, LARGEST = 50, 54
OFF_CENTRE = 1
"""Most pixels. What can be told beforehand, a small model learns to draw sharply."""

FOREIGN = "emojione"


def _ramp(top: tuple[int, int, int], bottom: tuple[int, int, int], rows: int) -> np.ndarray:
    t = np.linspace(0, 1, rows)[:, None]
    return np.array(top) * (1 - t) + np.array(bottom) * t


def background(name: str, rng: Random) -> np.ndarray:
    """A background, (64, 64, 3) in 0 to 255."""
    horizon = rng.randint(40, 42)
    match name:
        case "white":
            rows = _ramp((255, 255, 255), (246, 246, 248), SIDE)
        case "meadow":
            sky = _ramp((150, 205, 250), (205, 235, 255), horizon)
            rows = np.concatenate([sky, _ramp((130, 200, 90), (80, 160, 60), SIDE - horizon)])
        case "desert":
            sky = _ramp((250, 225, 170), (255, 240, 205), horizon)
            rows = np.concatenate([sky, _ramp((235, 190, 110), (205, 150, 75), SIDE - horizon)])
        case "sea":
            sky = _ramp((190, 230, 250), (225, 245, 255), horizon)
            rows = np.concatenate([sky, _ramp((40, 130, 200), (15, 80, 150), SIDE - horizon)])
        case "night":
            rows = _ramp((14, 16, 46), (40, 40, 92), SIDE)
        case "sunset":
            rows = _ramp((120, 70, 140), (255, 160, 90), SIDE)
        case _:
            raise KeyError(name)
    picture = np.repeat(rows[:, None], SIDE, axis=1)
    if name == "night":
        sky = Random("stars")
        for _ in range(14):
            y, x = sky.randrange(SIDE - 1), sky.randrange(SIDE - 1)
            picture[y : y + sky.randint(1, 2), x : x + sky.randint(1, 2)] = (250, 245, 210)
    return picture


class Painter:
    """Draws scenes with the icons in a folder that `sources.fetch` has filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._drawn: dict[tuple[str, str], Any] = {}
        used = {concept.icon for concept in CONCEPTS.values()}
        common = set.intersection(
            *(icon_set(folder, hand.package).names() for hand in HANDS.values())
        )
        known = icon_set(folder, FOREIGN).names()
        # persons, flags and clocks by the dozen look like one another and like concepts
        skip = ("man-", "woman-", "person-", "flag-", "skin-tone", "thirty", "clock", "-face")
        words = {word for icon in used for word in icon.split("-")} - {"face", "of", "red", "light"}
        self._foreign = sorted(
            name
            for name in common & known - used
            if not any(part in name for part in skip) and not words & set(name.split("-"))
        )
        self._concepts_elsewhere = {n: c.icon for n, c in CONCEPTS.items() if c.icon in known}

    def icon(self, package: str, name: str) -> Any:
        """The icon, drawn once, cut to what is not empty."""
        key = (package, name)
        if key not in self._drawn:
            picture = draw_svg(icon_set(self.folder, package).svg(name), MASTER)
            box = picture.getchannel("A").getbbox()
            self._drawn[key] = picture.crop(box) if box else picture
        return self._drawn[key]

    def _subject(self, scene: Scene, rng: Random) -> Any | None:
        package = FOREIGN if scene.style == OTHER else HANDS[scene.style].package
        if scene.concept != OTHER:
            name = CONCEPTS[scene.concept].icon
            if scene.style == OTHER:
                name = self._concepts_elsewhere.get(scene.concept)
            return None if name is None else self.icon(package, name)
        if scene.style == OTHER:
            return None
        for _ in range(10):
            try:
                return self.icon(package, rng.choice(self._foreign))
            except KeyError:
                continue
        return None

    def can(self, scene: Scene) -> bool:
        """Whether there is an icon for the scene."""
        return (
            scene.style != OTHER
            or scene.concept == OTHER
            or scene.concept in self._concepts_elsewhere
        )

    def paint(self, scene: Scene, rng: Random) -> np.ndarray:
        """The scene's picture, (64, 64, 3) uint8."""
        from PIL import Image

        canvas = Image.fromarray(background(scene.background, rng).round().astype(np.uint8))
        subject = self._subject(scene, rng)
        if subject is not None:
            size = rng.randint(SMALLEST, LARGEST)
            scale = size / max(subject.size)
            w, h = (max(1, round(scale * length)) for length in subject.size)
            small = subject.resize((w, h), Image.Resampling.LANCZOS)
            x = (SIDE - w) // 2 + rng.randint(-OFF_CENTRE, OFF_CENTRE)
            y = (SIDE - h) // 2 + rng.randint(-OFF_CENTRE, OFF_CENTRE)
            canvas.paste(small, (x, y), small)
        return np.asarray(canvas)


assert FOREIGN in PACKAGES
