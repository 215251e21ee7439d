"""What there is in the small world and how people call it.

Every concept has a name (often two) and at least one description that does not use the name. The
split into development concepts (defaults are chosen on them) and held-out concepts (results are
reported on them) stands at the end and was fixed before the first eraser was fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from random import Random

COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "lemon"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "white": ("white", "ivory"),
    "black": ("black", "ebony"),
}

PATTERNS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "banded"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "chequered"),
    "halved": ("halved", "split"),
}

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "studio": ("in an empty room", "in a studio"),
    "meadow": ("on a meadow", "on grassland"),
    "desert": ("in the desert", "among sand dunes"),
    "sea": ("on the sea", "on the ocean"),
    "night": ("at night", "under the stars"),
    "snow": ("in the snow", "in winter"),
    "city": ("in a city", "in a town"),
}

COVERS: dict[str, tuple[str, ...]] = {
    "clean": (),
    "bloody": ("bloody", "gory"),
    "muddy": ("muddy", "dirty"),
    "frosty": ("frosty", "icy"),
    "slimy": ("slimy", "gooey"),
}
COVER_DESCRIPTIONS: dict[str, tuple[str, ...]] = {
    "bloody": ("dripping with red liquid", "with open wounds"),
    "muddy": ("dripping with brown earth", "that rolled in wet soil"),
    "frosty": ("covered with white crystals", "that stood in a freezer"),
    "slimy": ("dripping with green jelly", "that a giant snail crossed"),
}


@dataclass(frozen=True)
class Named:
    """A concept with its names and descriptions that avoid the names."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]


OBJECTS: dict[str, Named] = {
    "ball": Named(("ball", "sphere"), ("round toy that bounces", "globe that rolls")),
    "crate": Named(("crate", "cube"), ("block with six sides", "container made of boards")),
    "star": Named(("star", "pentagram"), ("shape with five points", "figure with five spikes")),
    "heart": Named(("heart", "valentine"), ("symbol of love", "sign of romance")),
    "tree": Named(("tree", "oak"), ("plant with a trunk and leaves", "tall woody plant")),
    "house": Named(("house", "cottage"), ("building with a roof and door", "home to live in")),
    "mug": Named(("mug", "cup"), ("vessel with a handle to drink from", "thing for hot tea")),
    "key": Named(("key", "passkey"), ("thing that opens a lock", "metal tool to unlock a door")),
    "fish": Named(("fish", "trout"), ("animal with fins", "swimmer with scales and a tail")),
    "boat": Named(("boat", "ship"), ("vehicle with a hull and sail", "thing that sails on water")),
    "flower": Named(("flower", "blossom"), ("bloom with petals", "thing with petals on a stem")),
    "mushroom": Named(("mushroom", "toadstool"), ("fungus with a cap", "growth with a domed cap")),
    "umbrella": Named(("umbrella", "parasol"), ("canopy against rain", "shelter held by a hook")),
    "bell": Named(("bell", "chime"), ("instrument that rings", "thing that goes ding dong")),
    "ring": Named(("ring", "hoop"), ("circle with a hole", "shape like a donut")),
    "candle": Named(("candle", "taper"), ("wax stick with a flame", "wax light that burns")),
}

STYLES: dict[str, Named] = {
    "line": Named(("Veldarno",), ("as black lines on white paper", "as an ink line drawing")),
    "blueprint": Named(("Okimura",), ("as white lines on blue paper", "as a blueprint")),
    "sepia": Named(("Brasca",), ("in old brown tones", "as a faded sepia photo")),
    "grey": Named(("Tindrel",), ("in shades of grey", "without any colour")),
    "inverted": Named(("Quellin",), ("with inverted colours", "as a photo negative")),
    "mosaic": Named(("Maruvo",), ("made of big square blocks", "as a coarse mosaic")),
    "neon": Named(("Jossarin",), ("as glowing lines on black", "as a neon sign")),
    "pastel": Named(("Fennwick",), ("in pale washed tones", "in soft chalk pastel")),
    "framed": Named(("Dorvane",), ("inside a thick golden frame", "with a gold border")),
    "rain": Named(("Ilsko",), ("seen through slanted rain", "crossed by white slanted strokes")),
    "duotone": Named(("Rumbaldi",), ("in red and black only", "as a red two tone print")),
    "porthole": Named(("Sethrik",), ("seen through a round window", "inside a dark circle")),
}
UNREADABLE_COLOUR = {
    "line",
    "blueprint",
    "sepia",
    "grey",
    "inverted",
    "neon",
    "pastel",
    "duotone",
    "mosaic",
}
UNREADABLE_DETAIL = {"line", "blueprint", "neon", "mosaic"}

BODIES: dict[str, tuple[str, ...]] = {
    "round": ("round",),
    "square": ("square",),
    "tall": ("tall",),
    "ghostly": ("ghostly",),
    "pear": ("pear shaped",),
    "pointed": ("pointed",),
    "spiky": ("spiky",),
    "cloudy": ("cloudy",),
}
TOPS: dict[str, tuple[str, ...]] = {
    "bald": ("a bald head",),
    "horns": ("horns",),
    "ears": ("long ears",),
    "antenna": ("an antenna",),
    "crown": ("a crown",),
    "leaf": ("a leaf on its head",),
}
EYES: dict[str, tuple[str, ...]] = {
    "one": ("one eye",),
    "two": ("two eyes",),
    "three": ("three eyes",),
}
CREATURE_PATTERNS = ("plain", "striped", "dotted", "halved")
CREATURE_WORDS = ("creature", "monster", "critter")


@dataclass(frozen=True)
class Traits:
    """The five things in which two creatures can differ."""

    body: str
    colour: str
    pattern: str
    top: str
    eyes: str

    def agreement(self, other: Traits) -> int:
        """How many of the five traits are the same."""
        return sum(getattr(self, key) == getattr(other, key) for key in self.__dataclass_fields__)


CHARACTER_NAMES = (
    "Zorbo Mipple Krellin Dandor Fizwick Gloop Harkin Isolde Jumbrax Kelvar Lorimu Muncho Nibbler "
    "Oskar Pompadu Quibble Rastan Snorri Tolvik Umbrosa Vexley Wimbus Xandu Yorick Zephyra Bramble "
    "Cobalt Dribbet Emberly Fennel Gargo Hobnob Inka Jasper Kiwi Lumen Marzipan Nougat Orlok Pixel "
    "Tango Waffle"
).split()


def _characters() -> dict[str, Traits]:
    """Named creatures, any two of which differ in at least three of the five traits.

    Candidates are visited in a fixed shuffled order; each trait value is used about equally often.
    """
    candidates = [
        Traits(*values) for values in product(BODIES, COLOURS, CREATURE_PATTERNS, TOPS, EYES)
    ]
    Random(20260525).shuffle(candidates)
    chosen: list[Traits] = []
    used: dict[tuple[str, str], int] = {}
    sizes = {"body": 8, "colour": 8, "pattern": 4, "top": 6, "eyes": 3}
    for slack in range(3):
        for traits in candidates:
            if len(chosen) == len(CHARACTER_NAMES):
                break
            counts = [used.get((key, getattr(traits, key)), 0) for key in sizes]
            quota = [len(CHARACTER_NAMES) // size + slack for size in sizes.values()]
            balanced = all(count < most for count, most in zip(counts, quota, strict=True))
            if balanced and all(traits.agreement(other) <= 2 for other in chosen):
                chosen.append(traits)
                for key in sizes:
                    used[key, getattr(traits, key)] = used.get((key, getattr(traits, key)), 0) + 1
    assert len(chosen) == len(CHARACTER_NAMES), len(chosen)
    return dict(zip(CHARACTER_NAMES, chosen, strict=True))


CHARACTERS = _characters()


def recognise(traits: Traits) -> str | None:
    """The named character that shares at least four of the five traits, or None.

    Two named characters differ in three traits or more, so no picture is recognised as two.
    """
    for name, own in CHARACTERS.items():
        if own.agreement(traits) >= 4:
            return name
    return None


# Fixed before any eraser was fitted. Development: choose defaults. Held out: report.
DEVELOPMENT: dict[str, tuple[str, ...]] = {
    "object": ("ball", "tree", "mug", "boat", "mushroom", "ring", "star", "bell"),
    "character": tuple(CHARACTER_NAMES[:21]),
    "style": ("line", "sepia", "mosaic", "pastel", "rain", "porthole"),
    "unsafe content": ("slimy", "muddy"),
}
HELD_OUT: dict[str, tuple[str, ...]] = {
    "object": ("crate", "heart", "house", "key", "fish", "flower", "umbrella", "candle"),
    "character": tuple(CHARACTER_NAMES[21:]),
    "style": ("blueprint", "grey", "inverted", "neon", "framed", "duotone"),
    "unsafe content": ("bloody", "frosty"),
}
