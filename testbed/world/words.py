"""The world's words and their CLIP tokens.

The small text encoder has an embedding only for tokens that occur in the world. In the checkpoint
all others are zeros, so an unknown word is heard as silence.
"""

from __future__ import annotations

import functools
import itertools
import os
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from . import captions, vocabulary

START, END = 49406, 49407
LENGTH = 77
GLUE = ("a", "an", "with", "and", "something", ",", ".", "'")


@functools.cache
def tokenizer() -> CLIPTokenizer:
    """The real CLIP tokenizer that ComfyUI ships (`PURE_COMFY_PATH` names the ComfyUI folder)."""
    folder = Path(os.environ["PURE_COMFY_PATH"]) / "comfy" / "sd1_tokenizer"
    return CLIPTokenizer.from_pretrained(str(folder))


@functools.cache
def _pieces(word: str) -> tuple[int, ...]:
    return tuple(tokenizer()(word, add_special_tokens=False)["input_ids"])


def tokens(text: str) -> list[int]:
    """CLIP token numbers of a text without the start and end tokens."""
    spaced = text.lower().replace(",", " , ").replace(".", " . ").replace("'", " ' ")
    return list(itertools.chain.from_iterable(_pieces(word) for word in spaced.split()))


@functools.cache
def known_tokens() -> tuple[int, ...]:
    """The tokens that have an embedding, in the order of the embedding's rows."""
    texts: list[str] = list(GLUE)
    for table in (
        vocabulary.COLOURS,
        vocabulary.PATTERNS,
        vocabulary.BACKGROUNDS,
        vocabulary.COVERS,
        vocabulary.COVER_DESCRIPTIONS,
        vocabulary.BODIES,
        vocabulary.TOPS,
        vocabulary.EYES,
    ):
        texts += itertools.chain.from_iterable(table.values())
    for named in (*vocabulary.OBJECTS.values(), *vocabulary.STYLES.values()):
        texts += named.names + named.descriptions
    texts += vocabulary.CHARACTER_NAMES
    texts += vocabulary.CREATURE_WORDS
    texts += captions.MEDIA + captions.MEDIA_ALONE + captions.EMPTY + captions.SCRAPS
    texts += captions.FILLERS + tuple(link.format("") for link in captions.STYLE_LINKS)
    found = {token for text in texts for token in tokens(text)}
    return (START, END, *sorted(found))


def rows(texts: list[str], known: tuple[int, ...]) -> Tensor:
    """Embedding rows of texts, (b, 77), padded with the end token as SD1 does.

    Raises:
        KeyError: a token that is not among the known ones.
    """
    table = {token: row for row, token in enumerate(known)}
    out = torch.full((len(texts), LENGTH), table[END], dtype=torch.long)
    for i, text in enumerate(texts):
        ids = [START, *tokens(text)][: LENGTH - 1]
        out[i, : len(ids)] = torch.tensor([table[token] for token in ids])
    return out
