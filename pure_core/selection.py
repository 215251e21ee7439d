"""Erasing in some layers only: by block, by name, or where it does most."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from .eraser import Eraser
from .errors import EraserError
from .families import family_named


def select(eraser: Eraser, layers: str = "", contribution: float = 1.0) -> Eraser:
    """The eraser as the identity in every layer that is not chosen.

    Args:
        layers: Words with commas or spaces between them, each a block of the model's family (for
            U-Nets `input`, `middle`, `output`) or a pattern for layer names with `*` and `?`; a
            layer is chosen if one of them fits. Empty: all.
        contribution: Of the chosen layers keep the fewest that together do this share of what all
            of them do to the forget rows, in (0, 1].

    Raises:
        EraserError: a word that fits no layer, a share outside (0, 1], or an eraser that does not
            know what its layers contribute.
    """
    if not 0 < contribution <= 1:
        raise EraserError(
            f"contribution: expected a share above 0, up to 1 (all), got {contribution}."
        )
    words = [word for word in re.split(r"[,\s]+", layers) if word]
    if not words and contribution == 1:
        return eraser
    family = family_named(eraser.provenance.model.family)
    chosen = _named(list(eraser.layers), words, family.blocks if family else {})
    if contribution < 1:
        chosen = _strongest(chosen, _shares(eraser), contribution)
    settings = dict(eraser.provenance.settings)
    settings |= {"layers": " ".join(words)} if words else {}
    settings |= {"contribution": contribution} if contribution < 1 else {}
    kept = {
        name: layer if name in chosen else layer.scaled(0) for name, layer in eraser.layers.items()
    }
    shares = {
        name: share if name in chosen else 0.0
        for name, share in eraser.provenance.contribution.items()
    }
    made = replace(eraser.provenance, settings=settings, contribution=shares)
    return replace(eraser, layers=kept, provenance=made)


def _named(names: Sequence[str], words: Sequence[str], blocks: Mapping[str, str]) -> list[str]:
    """The layers that one of the words fits, all without words."""
    if not words:
        return list(names)

    def fits(name: str, word: str) -> bool:
        return name.startswith(blocks[word]) if word in blocks else fnmatchcase(name, word)

    fitting = {word: [name for name in names if fits(name, word)] for word in words}
    for word, found in fitting.items():
        if not found:
            raise EraserError(
                f"layers: '{word}' fits none of the {len(names)} layers. Expected "
                f"{', '.join(blocks)}, or patterns for names such as '{names[0]}', with * for "
                "anything."
            )
    return [name for name in names if any(name in found for found in fitting.values())]


def _shares(eraser: Eraser) -> Mapping[str, float]:
    shares = eraser.provenance.contribution
    if shares.keys() != eraser.layers.keys():
        raise EraserError(
            "contribution: the eraser does not say how much each of its layers does: it works on "
            "the text, was saved by an earlier version, or combined of such. Choose layers by "
            "name, or fit it again."
        )
    return shares


def _strongest(names: Sequence[str], shares: Mapping[str, float], wanted: float) -> list[str]:
    """The fewest of these layers whose shares sum to the wanted part of all of theirs."""
    ranked = sorted(names, key=lambda name: -shares[name])
    target, reached, count = wanted * sum(shares[name] for name in names), 0.0, 0
    while reached < target and count < len(ranked):
        reached += shares[ranked[count]]
        count += 1
    return ranked[:count]
