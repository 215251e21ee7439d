"""The pictures that the training sees: drawn once, kept in a folder outside the checkout."""

from __future__ import annotations

import concurrent.futures
import functools
import json
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np

from .render import Painter
from .scene import Scene, random_scene, strange_scene

TRAIN_SCENES, TEST_SCENES, STRANGE_SCENES, CHUNK = 30_000, 3_000, 4_000, 1_000


@functools.cache
def _painter(icons: Path) -> Painter:
    return Painter(icons)


def _draw_chunk(icons: Path, number: int) -> tuple[np.ndarray, list[dict[str, str]]]:
    rng = Random(2_000_003 + number)
    painter = _painter(icons)
    draw = random_scene if number < (TRAIN_SCENES + TEST_SCENES) // CHUNK else strange_scene
    scenes: list[Scene] = []
    while len(scenes) < CHUNK:
        scene = draw(rng)
        if painter.can(scene):
            scenes.append(scene)
    return np.stack([painter.paint(scene, rng) for scene in scenes]), [asdict(s) for s in scenes]


def make_data(work: Path, icons: Path) -> None:
    """Draw the scenes and keep pictures (n, 64, 64, 3) and what they show."""
    if (work / "scenes.json").exists():
        return
    chunks = range((TRAIN_SCENES + TEST_SCENES + STRANGE_SCENES) // CHUNK)
    with concurrent.futures.ProcessPoolExecutor() as pool:
        drawn = list(pool.map(_draw_chunk, [icons] * len(chunks), chunks, chunksize=4))
    np.save(work / "pictures.npy", np.concatenate([pictures for pictures, _ in drawn]))
    (work / "scenes.json").write_text(json.dumps([s for _, scenes in drawn for s in scenes]))
