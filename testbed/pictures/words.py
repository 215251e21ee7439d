"""The words of these pictures as CLIP tokens; any other word is heard as silence."""

from __future__ import annotations

import functools
import itertools

from testbed.world.words import END, START, rows, tokens

from . import captions, vocabulary

__all__ = ["END", "START", "known_tokens", "rows", "tokens"]

GLUE = "a an the with and of in on by , . ' s".split()


@functools.cache
def known_tokens() -> tuple[int, ...]:
    """The tokens that have an embedding, in the order of the embedding's rows."""
    texts: list[str] = [*GLUE, *captions.MEDIA, *captions.ALONE, *captions.FILLERS]
    texts += [text.format(subject="", place="", style="") for text in captions.SENTENCES]
    texts += [link.format("") for link in captions.STYLE_LINKS]
    texts += captions.GENERIC.values()
    texts += itertools.chain.from_iterable(vocabulary.BACKGROUNDS.values())
    for named in (*vocabulary.CONCEPTS.values(), *vocabulary.HANDS.values()):
        texts += named.names + named.descriptions
    found = {token for text in texts for token in tokens(text)}
    return (START, END, *sorted(found))
