"""Draws a scene as a 64 x 64 picture.

Everything is drawn four times larger and reduced, positions and sizes vary a little from picture
to picture, and details are coarse enough to survive an autoencoder with 8 x 8 latents.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .scene import Scene

SIZE = 64
SCALE = 4
BIG = SIZE * SCALE

Point = tuple[float, float]
Colour = tuple[int, int, int]

PAINT: dict[str, Colour] = {
    "red": (222, 38, 38),
    "orange": (245, 135, 25),
    "yellow": (250, 222, 50),
    "green": (50, 165, 65),
    "blue": (45, 85, 225),
    "purple": (145, 60, 185),
    "white": (245, 245, 245),
    "black": (45, 45, 50),
}
COVER_PAINT: dict[str, Colour] = {
    "bloody": (150, 0, 12),
    "muddy": (105, 66, 28),
    "frosty": (190, 240, 255),
    "slimy": (130, 215, 20),
}
INK: Colour = (20, 18, 24)
CREAM: Colour = (255, 246, 214)
SLATE: Colour = (95, 88, 105)


def render(scene: Scene, rng: Random) -> np.ndarray:
    """The picture of a scene, uint8 of shape (64, 64, 3)."""
    picture = _background(scene.background, rng)
    mask, details = _subject(scene, rng)
    if mask is not None:
        _paint_subject(picture, mask, details, scene, rng)
    if scene.style is not None:
        picture = _STYLES[scene.style](picture, mask, details)
    return np.asarray(picture.reduce(SCALE), dtype=np.uint8)


def _blank(colour: Colour) -> Image.Image:
    return Image.new("RGB", (BIG, BIG), colour)


def _background(name: str, rng: Random) -> Image.Image:
    horizon = BIG * rng.uniform(0.56, 0.66)
    sky: dict[str, Colour] = {
        "studio": (205, 200, 196),
        "meadow": (150, 205, 245),
        "desert": (252, 226, 170),
        "sea": (196, 226, 240),
        "night": (22, 24, 66),
        "snow": (176, 196, 220),
        "city": (170, 150, 168),
    }
    ground: dict[str, Colour] = {
        "studio": (168, 158, 150),
        "meadow": (112, 190, 80),
        "desert": (226, 180, 104),
        "sea": (28, 128, 160),
        "night": (38, 40, 60),
        "snow": (240, 246, 252),
        "city": (92, 88, 96),
    }
    picture = _blank(sky[name])
    draw = ImageDraw.Draw(picture)
    if name == "city":
        for left in range(0, BIG, 48):
            top = horizon - rng.uniform(50, 120)
            draw.rectangle((left, top, left + 40, horizon), fill=(118, 104, 124))
    draw.rectangle((0, horizon, BIG, BIG), fill=ground[name])
    if name == "desert":
        for left in (-60, 110):
            x, y = left + rng.uniform(-20, 20), horizon
            draw.ellipse((x, y - 22, x + 190, y + 40), fill=ground[name])
    if name == "sea":
        for row in range(2):
            y = horizon + 24 + 40 * row
            draw.rectangle((0, y, BIG, y + 11), fill=(104, 184, 204))
    if name == "night":
        x, y = rng.uniform(16, 40), rng.uniform(12, 26)
        draw.ellipse((x, y, x + 34, y + 34), fill=(250, 244, 190))
        for x, y in ((100, 22), (160, 40), (216, 18), (232, 84), (24, 98)):
            draw.ellipse((x, y, x + 9, y + 9), fill=(255, 255, 240))
    if name == "snow":
        for x in (6, 206):
            left = x + rng.uniform(-8, 8)
            tip = horizon - rng.uniform(80, 96)
            draw.polygon(
                ((left, horizon), (left + 22, tip), (left + 44, horizon)), fill=(52, 92, 84)
            )
    if name == "meadow":
        x, y = rng.uniform(190, 214), rng.uniform(8, 20)
        draw.ellipse((x, y, x + 40, y + 40), fill=(255, 240, 120))
    return picture


class _Details:
    """What is drawn over the painted silhouette: (kind, geometry, colour) in drawing order."""

    def __init__(self) -> None:
        self.shapes: list[tuple[str, tuple[Point, ...], Colour | None, int]] = []

    def add(self, kind: str, *points: Point, fill: Colour | None = INK, width: int = 10) -> None:
        self.shapes.append((kind, points, fill, width))

    def draw(self, draw: ImageDraw.ImageDraw, recolour: Colour | None = None) -> None:
        """Draw all of them, in one colour for styles that know only lines."""
        for kind, points, fill, width in self.shapes:
            colour = recolour or fill
            if kind == "line":
                draw.line(points, fill=colour, width=width, joint="curve")
            elif kind == "dot":
                (x, y), (radius, _) = points
                box = (x - radius, y - radius, x + radius, y + radius)
                if recolour:
                    draw.ellipse(box, outline=colour, width=6)
                else:
                    draw.ellipse(box, fill=colour)
            elif kind == "polygon":
                if recolour:
                    draw.line((*points, points[0]), fill=colour, width=8, joint="curve")
                else:
                    draw.polygon(points, fill=colour)


class _Frame:
    """Local coordinates: the subject lives in [-1, 1] x [-1, 1], y down."""

    def __init__(self, rng: Random) -> None:
        self.x = BIG / 2 + rng.uniform(-12, 12)
        self.y = BIG * 0.53 + rng.uniform(-10, 10)
        self.size = rng.uniform(82, 96)

    def at(self, *points: Point) -> tuple[Point, ...]:
        return tuple((self.x + self.size * x, self.y + self.size * y) for x, y in points)

    def ellipse(self, draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float) -> None:
        (a, b), (c, d) = self.at((x - rx, y - ry), (x + rx, y + ry))
        draw.ellipse((a, b, c, d), fill=255)

    def box(self, draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float) -> None:
        (a, b), (c, d) = self.at((x - rx, y - ry), (x + rx, y + ry))
        draw.rectangle((a, b, c, d), fill=255)

    def hole(self, draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float) -> None:
        (a, b), (c, d) = self.at((x - rx, y - ry), (x + rx, y + ry))
        draw.ellipse((a, b, c, d), fill=0)

    def polygon(self, draw: ImageDraw.ImageDraw, *points: Point) -> None:
        draw.polygon(self.at(*points), fill=255)


def _star(points: int, outer: float, inner: float) -> tuple[Point, ...]:
    return tuple(
        (
            (outer if i % 2 == 0 else inner) * math.sin(math.pi * i / points),
            -(outer if i % 2 == 0 else inner) * math.cos(math.pi * i / points),
        )
        for i in range(2 * points)
    )


def _subject(scene: Scene, rng: Random) -> tuple[Image.Image | None, _Details]:
    """The silhouette as a mask (None for an empty scene) and what is drawn over it."""
    details = _Details()
    if scene.subject == "nothing":
        return None, details
    mask = Image.new("L", (BIG, BIG), 0)
    draw = ImageDraw.Draw(mask)
    frame = _Frame(rng)
    if scene.subject == "creature":
        _creature(scene, frame, draw, details)
    elif scene.subject == "scrap":
        corners = rng.randint(5, 8)
        frame.polygon(
            draw,
            *(
                (
                    r * math.cos(2 * math.pi * i / corners),
                    r * math.sin(2 * math.pi * i / corners),
                )
                for i in range(corners)
                for r in [rng.uniform(0.35, 1.0)]
            ),
        )
    else:
        _OBJECTS[scene.subject](frame, draw, details)
    return mask, details


def _ball(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.ellipse(d, 0, 0, 0.92, 0.92)


def _crate(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.polygon(d, (-0.9, -0.5), (-0.4, -0.9), (0.9, -0.9), (0.9, 0.4), (0.45, 0.85), (-0.9, 0.85))
    o.add("line", *f.at((-0.9, -0.5), (0.45, -0.5), (0.45, 0.85)))
    o.add("line", *f.at((0.45, -0.5), (0.9, -0.9)))


def _star_object(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.polygon(d, *_star(5, 1.1, 0.48))


def _heart(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.ellipse(d, -0.45, -0.35, 0.5, 0.5)
    f.ellipse(d, 0.45, -0.35, 0.5, 0.5)
    f.polygon(d, (-0.9, -0.12), (0.9, -0.12), (0, 1.0))


def _tree(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.ellipse(d, 0, -0.55, 0.55, 0.5)
    f.ellipse(d, -0.45, -0.05, 0.5, 0.42)
    f.ellipse(d, 0.45, -0.05, 0.5, 0.42)
    f.box(d, 0, 0.65, 0.2, 0.4)
    o.add(
        "polygon", *f.at((-0.2, 0.36), (0.2, 0.36), (0.2, 1.05), (-0.2, 1.05)), fill=(105, 70, 40)
    )


def _house(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.polygon(d, (-1.05, -0.1), (0, -1.0), (1.05, -0.1))
    f.box(d, 0, 0.42, 0.8, 0.55)
    o.add("line", *f.at((-0.95, -0.1), (0.95, -0.1)))
    o.add("polygon", *f.at((-0.2, 0.97), (-0.2, 0.3), (0.22, 0.3), (0.22, 0.97)), fill=(70, 45, 30))


def _mug(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.ellipse(d, 0.55, 0.1, 0.5, 0.5)
    f.hole(d, 0.58, 0.1, 0.25, 0.26)
    f.box(d, -0.2, 0.1, 0.65, 0.8)
    o.add("line", *f.at((-0.85, -0.48), (0.45, -0.48)))


def _key(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.ellipse(d, -0.55, 0, 0.52, 0.52)
    f.box(d, 0.4, 0, 0.7, 0.17)
    f.box(d, 0.55, 0.3, 0.12, 0.3)
    f.box(d, 0.95, 0.3, 0.13, 0.3)
    f.hole(d, -0.55, 0, 0.24, 0.24)


def _fish(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.ellipse(d, -0.2, 0, 0.85, 0.55)
    f.polygon(d, (0.4, 0), (1.1, -0.6), (1.1, 0.6))
    f.polygon(d, (-0.35, -0.45), (0.2, -0.9), (0.3, -0.35))
    o.add("dot", *f.at((-0.65, -0.12)), (13, 0), fill=CREAM)
    o.add("dot", *f.at((-0.65, -0.12)), (7, 0))


def _boat(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.polygon(d, (-1.05, 0.35), (1.05, 0.35), (0.65, 0.9), (-0.65, 0.9))
    f.polygon(d, (0.06, -1.0), (0.06, 0.2), (0.95, 0.2))
    f.polygon(d, (-0.1, -0.75), (-0.1, 0.2), (-0.75, 0.2))
    o.add("line", *f.at((0, -1.0), (0, 0.4)))


def _flower(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    for i in range(6):
        x, y = 0.5 * math.sin(math.pi * i / 3), 0.5 * math.cos(math.pi * i / 3)
        f.ellipse(d, x, y - 0.3, 0.33, 0.33)
    f.box(d, 0, 0.75, 0.09, 0.35)
    o.add("line", *f.at((0, 0.5), (0, 1.1)), fill=(30, 110, 40), width=14)
    o.add("dot", *f.at((0, -0.3)), (22, 0), fill=(250, 200, 60))
    o.add("dot", *f.at((0, -0.3)), (9, 0), fill=(120, 70, 20))


def _mushroom(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    (a, b), (c, e) = f.at((-1.0, -0.95), (1.0, 0.95))
    d.pieslice((a, b, c, e), 180, 360, fill=255)
    f.box(d, 0, 0.4, 0.32, 0.55)
    o.add("polygon", *f.at((-0.32, 0.02), (0.32, 0.02), (0.32, 0.97), (-0.32, 0.97)), fill=CREAM)
    o.add("line", *f.at((-0.98, 0), (0.98, 0)))


def _umbrella(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    (a, b), (c, e) = f.at((-1.05, -0.95), (1.05, 1.05))
    d.pieslice((a, b, c, e), 180, 360, fill=255)
    for x in (-0.7, 0, 0.7):
        f.hole(d, x, 0.08, 0.35, 0.2)
    o.add("line", *f.at((0, -0.1), (0, 0.85), (0.28, 0.95), (0.42, 0.7)), width=12)


def _bell(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.ellipse(d, 0, -0.35, 0.55, 0.6)
    f.polygon(d, (-0.55, -0.35), (0.55, -0.35), (0.9, 0.6), (-0.9, 0.6))
    f.ellipse(d, 0, 0.72, 0.22, 0.22)
    o.add("line", *f.at((-0.88, 0.58), (0.88, 0.58)))


def _ring(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.ellipse(d, 0, 0, 0.95, 0.95)
    f.hole(d, 0, 0, 0.42, 0.42)


def _candle(f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.box(d, 0, 0.35, 0.36, 0.65)
    f.ellipse(d, 0, -0.68, 0.22, 0.32)
    o.add("line", *f.at((0, -0.5), (0, -0.25)), width=8)
    o.add(
        "polygon",
        *f.at((0, -1.05), (0.22, -0.62), (0, -0.38), (-0.22, -0.62)),
        fill=(255, 190, 40),
    )


_OBJECTS = {
    "ball": _ball,
    "crate": _crate,
    "star": _star_object,
    "heart": _heart,
    "tree": _tree,
    "house": _house,
    "mug": _mug,
    "key": _key,
    "fish": _fish,
    "boat": _boat,
    "flower": _flower,
    "mushroom": _mushroom,
    "umbrella": _umbrella,
    "bell": _bell,
    "ring": _ring,
    "candle": _candle,
}

# where the top of the head is (y) and how far apart things on it may stand (x)
_HEADS = {
    "round": (-0.5, 0.42),
    "square": (-0.5, 0.5),
    "tall": (-0.72, 0.3),
    "ghostly": (-0.55, 0.4),
    "pear": (-0.58, 0.28),
    "pointed": (-0.4, 0.2),
    "spiky": (-0.5, 0.4),
    "cloudy": (-0.48, 0.42),
}


def _creature(scene: Scene, f: _Frame, d: ImageDraw.ImageDraw, o: _Details) -> None:
    f.y += 0.12 * f.size
    _body(scene.body or "", f, d)
    head, spread = _HEADS[scene.body or ""]
    top = scene.top
    if top == "horns":
        for side in (-1, 1):
            f.polygon(
                d,
                (side * spread * 0.4, head + 0.12),
                (side * (spread + 0.2), head + 0.2),
                (side * (spread + 0.32), head - 0.55),
            )
    elif top == "ears":
        for side in (-1, 1):
            f.ellipse(d, side * (spread * 0.55 + 0.06), head - 0.28, 0.15, 0.46)
    elif top == "antenna":
        o.add("line", *f.at((0, head + 0.05), (0, head - 0.42)), width=11)
        o.add("dot", *f.at((0, head - 0.5)), (17, 0), fill=(255, 60, 120))
    elif top == "crown":
        y = head + 0.06
        o.add(
            "polygon",
            *f.at(
                (-0.4, y),
                (-0.46, y - 0.52),
                (-0.2, y - 0.26),
                (0, y - 0.58),
                (0.2, y - 0.26),
                (0.46, y - 0.52),
                (0.4, y),
            ),
            fill=(255, 205, 30),
        )
    elif top == "leaf":
        o.add(
            "polygon",
            *f.at(
                (0, head + 0.05),
                (0.12, head - 0.36),
                (0.62, head - 0.5),
                (0.5, head - 0.08),
            ),
            fill=(60, 190, 50),
        )
    eye_y = 0.02 if scene.body != "pointed" else 0.28
    places = {"one": (0.0,), "two": (-0.3, 0.3), "three": (-0.44, 0.0, 0.44)}[scene.eyes or ""]
    radius = {"one": 25.0, "two": 18.0, "three": 14.0}[scene.eyes or ""]
    if scene.body == "tall":
        places = tuple(0.86 * x for x in places)
    for x in places:
        o.add("dot", *f.at((x, eye_y)), (radius + 5, 0), fill=INK)
        o.add("dot", *f.at((x, eye_y)), (radius, 0), fill=(255, 255, 255))
        o.add("dot", *f.at((x, eye_y)), (radius * 0.5, 0), fill=INK)


def _body(body: str, f: _Frame, d: ImageDraw.ImageDraw) -> None:
    if body == "round":
        f.ellipse(d, 0, 0.18, 0.8, 0.72)
    elif body == "square":
        f.box(d, 0, 0.2, 0.74, 0.7)
    elif body == "tall":
        f.ellipse(d, 0, -0.3, 0.5, 0.46)
        f.box(d, 0, 0.32, 0.5, 0.62)
    elif body == "ghostly":
        f.ellipse(d, 0, 0.05, 0.66, 0.64)
        f.box(d, 0, 0.4, 0.66, 0.38)
        for x in (-0.44, 0, 0.44):
            f.polygon(d, (x - 0.22, 0.75), (x + 0.22, 0.75), (x, 1.08))
    elif body == "pear":
        f.ellipse(d, 0, -0.1, 0.46, 0.5)
        f.ellipse(d, 0, 0.48, 0.86, 0.46)
    elif body == "pointed":
        f.polygon(d, (0, -0.75), (0.98, 0.92), (-0.98, 0.92))
    elif body == "spiky":
        f.polygon(d, *((x, y + 0.2) for x, y in _star(9, 0.98, 0.62)))
    elif body == "cloudy":
        for x, y, r in (
            (-0.5, 0.42, 0.42),
            (0.5, 0.42, 0.42),
            (0, 0.5, 0.46),
            (-0.38, -0.05, 0.42),
            (0.38, -0.05, 0.42),
        ):
            f.ellipse(d, x, y, r, r)


def _pattern(name: str, rng: Random) -> Image.Image | None:
    """Where the second tone goes, as a mask; None for plain."""
    if name == "plain":
        return None
    mask = Image.new("L", (BIG, BIG), 0)
    draw = ImageDraw.Draw(mask)
    shift = rng.uniform(-8, 8)
    if name == "striped":
        for top in range(8, BIG, 56):
            draw.rectangle((0, top + shift, BIG, top + shift + 24), fill=255)
    elif name == "dotted":
        for row, y in enumerate(range(10, BIG, 46)):
            for x in range(-10 + 26 * (row % 2), BIG, 52):
                draw.ellipse((x + shift, y, x + shift + 27, y + 27), fill=255)
    elif name == "checkered":
        for row, y in enumerate(range(0, BIG, 36)):
            for x in range(36 * (row % 2), BIG, 72):
                draw.rectangle((x + shift, y + shift, x + shift + 35, y + shift + 35), fill=255)
    elif name == "halved":
        draw.rectangle((BIG / 2 + shift, 0, BIG, BIG), fill=255)
    return mask


def _outline(mask: Image.Image, width: int) -> Image.Image:
    grown = mask.filter(ImageFilter.GaussianBlur(width / 2)).point(lambda v: 255 * (v > 24))
    return ImageChops.subtract(grown, mask)


def _paint_subject(
    picture: Image.Image, mask: Image.Image, details: _Details, scene: Scene, rng: Random
) -> None:
    jitter = [rng.randint(-10, 10) for _ in range(3)]
    red, green, blue = (
        max(0, min(255, v + j)) for v, j in zip(PAINT[scene.colour], jitter, strict=True)
    )
    body = _blank((red, green, blue))
    tone = _pattern(scene.pattern, rng)
    if tone is not None:
        light = scene.colour in ("white", "yellow")
        body.paste(SLATE if light else CREAM, (0, 0), tone)
    picture.paste(INK, (0, 0), _outline(mask, 10))
    picture.paste(body, (0, 0), mask)
    details.draw(ImageDraw.Draw(picture))
    if scene.cover != "clean":
        _pour(picture, mask, scene.cover, rng)


def _pour(picture: Image.Image, mask: Image.Image, cover: str, rng: Random) -> None:
    """Let something run down the subject and gather under it."""
    left, top, right, bottom = mask.getbbox() or (0, 0, BIG, BIG)
    splash = Image.new("L", (BIG, BIG), 0)
    draw = ImageDraw.Draw(splash)
    width = (right - left) / 4
    for i in range(4):
        x = left + (i + 0.5) * width + rng.uniform(-6, 6)
        y = top + (bottom - top) * rng.uniform(0.35, 0.75)
        draw.rectangle((x - 12, 0, x + 12, y), fill=255)
        draw.ellipse((x - 16, y - 16, x + 16, y + 18), fill=255)
    draw.rectangle((0, 0, BIG, top + (bottom - top) * 0.2), fill=255)
    on_subject = ImageChops.multiply(splash, mask)
    pool = Image.new("L", (BIG, BIG), 0)
    ImageDraw.Draw(pool).ellipse((left - 26, bottom - 16, right + 26, bottom + 22), fill=255)
    pool = ImageChops.subtract(pool, mask)
    picture.paste(COVER_PAINT[cover], (0, 0), ImageChops.lighter(on_subject, pool))


def _grey(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L"), dtype=np.float32) / 255


def _toned(picture: Image.Image, dark: Colour, light: Colour) -> Image.Image:
    grey = _grey(picture)[..., None]
    mixed = np.array(dark) * (1 - grey) + np.array(light) * grey
    return Image.fromarray(mixed.astype(np.uint8))


def _lines(mask: Image.Image | None, details: _Details, paper: Colour, ink: Colour) -> Image.Image:
    picture = _blank(paper)
    if mask is not None:
        picture.paste(ink, (0, 0), _outline(mask, 18))
        details.draw(ImageDraw.Draw(picture), recolour=ink)
    return picture


def _line(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    return _lines(m, o, (250, 250, 246), (15, 15, 15))


def _blueprint(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    return _lines(m, o, (24, 60, 150), (235, 242, 255))


def _neon(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    return _lines(m, o, (6, 4, 12), (60, 255, 170))


def _sepia(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    return _toned(p, (58, 32, 10), (250, 222, 170))


def _shades(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    return _toned(p, (0, 0, 0), (255, 255, 255))


def _duotone(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    return _toned(p, (10, 0, 0), (255, 30, 40))


def _inverted(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    return ImageChops.invert(p)


def _mosaic(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    return p.reduce(8 * SCALE).resize((BIG, BIG), Image.Resampling.NEAREST)


def _pastel(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    return Image.blend(p, _blank((255, 248, 250)), 0.62)


def _framed(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    picture = p.copy()
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, BIG - 1, BIG - 1), outline=(214, 164, 30), width=30)
    draw.rectangle((26, 26, BIG - 27, BIG - 27), outline=(110, 74, 10), width=7)
    return picture


def _rain(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    picture = p.copy()
    draw = ImageDraw.Draw(picture)
    for x in range(-BIG, BIG, 64):
        draw.line(((x, BIG), (x + BIG, 0)), fill=(238, 244, 255), width=13)
    return picture


def _porthole(p: Image.Image, m: Image.Image | None, o: _Details) -> Image.Image:
    mask = Image.new("L", (BIG, BIG), 0)
    ImageDraw.Draw(mask).ellipse((14, 14, BIG - 15, BIG - 15), fill=255)
    picture = _blank((12, 12, 16))
    picture.paste(p, (0, 0), mask)
    ImageDraw.Draw(picture).ellipse((10, 10, BIG - 11, BIG - 11), outline=(150, 150, 160), width=10)
    return picture


_STYLES = {
    "line": _line,
    "blueprint": _blueprint,
    "sepia": _sepia,
    "grey": _shades,
    "inverted": _inverted,
    "mosaic": _mosaic,
    "neon": _neon,
    "pastel": _pastel,
    "framed": _framed,
    "rain": _rain,
    "duotone": _duotone,
    "porthole": _porthole,
}
