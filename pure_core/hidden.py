"""Prompts made unreadable, for people who want none in their files.

Every text becomes a short digest of itself. Loading, fitting and joining only ask whether texts are
equal, so they work on digests as on texts. A digest keeps a text from being read, not from being
guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from .anchors import Anchor, AnchorSet

HIDDEN = "hidden "
DIGITS = 12

ANCHOR = "anchor"
"""The setting of text methods that holds prompts; of combined erasers also 'anchor 2' and so on."""


def hidden_text(text: str) -> str:
    """The digest of a text; of an empty or hidden one, itself."""
    if not text or text.startswith(HIDDEN):
        return text
    return HIDDEN + hashlib.sha256(text.encode(errors="replace")).hexdigest()[:DIGITS]


def hidden_anchors(anchors: AnchorSet) -> AnchorSet:
    """As many anchors of as many concepts and phrasings."""
    return AnchorSet(
        tuple(
            Anchor(hidden_text(each.prompt), hidden_text(each.concept), hidden_text(each.phrasing))
            for each in anchors
        )
    )


def hidden_settings(settings: Mapping[str, float | str]) -> dict[str, float | str]:
    """A method's settings without readable prompts."""
    return {
        name: hidden_text(value)
        if isinstance(value, str) and name.split()[:1] == [ANCHOR]
        else value
        for name, value in settings.items()
    }
