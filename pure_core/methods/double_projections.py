"""Double Projections: to the anchor's part of the concept, only where nothing retained is.

Zhang et al., "Closed-Form Concept Erasure via Double Projections", arXiv 2604.10032. Every token c
of the concept becomes its projection onto the anchor's tokens S (equation 9),

    c* = S (S^T S)^+ S^T c,

and the weights change only along what of c lies outside the span of the retained tokens: with
x = U2^T c and U2 their left null space, W' = W + W (c* - c) x^T U2^T / |x|^2. Keys and values of
all layers; tokens are edited one after the other, each on the weights so far.

As in the authors' code: the tokens of the words without start, end and padding; an anchor of a
single token is taken as it is, unprojected; without retain prompts the edit runs along c itself;
tokens that lie in the retained span (|x|^2 < 1e-10) are passed over; retained directions are those
with singular values above 1e-6. Differences: an empty anchor is the empty prompt's end token; and
of a concept's prompts one is edited, its bare name, or the shortest where none is just the name,
and so it is with what is retained, except for prompts written by hand, which all are. The authors
give bare names only. Prompts share their last token's direction, so that every later edit would
move the token of an earlier one off its target again, and the words of all phrasings would leave
little room outside of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..anchors import AnchorSet
from ..eraser import LayerEraser, product
from ..errors import FitError
from ..progress import Progress
from ..text import TextTask, TextVectors
from .method import TextEdit, TextMethod

OUTSIDE = 1e-10
"""Squared norm outside the retained span from which a token is edited."""

PRESENT = 1e-6
"""Singular value from which a retained direction counts."""


def solve(task: TextTask, progress: Progress) -> TextEdit:
    """One edit for keys and values of all layers.

    Raises:
        FitError: every token of the concept is among the retained ones.
    """
    outside = outside_of(None if task.retain is None else kept(task.retain).words)
    edits, read = [], []
    numbers = names(task.forget.anchors)
    for done, number in enumerate(numbers, start=1):
        anchor = task.anchor.words_of(number)
        if len(anchor) == 0:
            anchor = task.anchor.end_of(number)[None]
        tokens = task.forget.words_of(number)
        read.append(tokens)
        for token in tokens:
            free = outside(token)
            size = free @ free
            if size >= OUTSIDE:
                change = token - proxy(token, anchor)
                edits.append(LayerEraser(change[:, None], free[None] / size, space="text"))
        progress(done, len(numbers))
    if not edits:
        raise FitError(
            "Every token of the concept lies in the span of the retain prompts' tokens, so nothing "
            "can be erased without changing those. Use fewer retain prompts."
        )
    whole = product(edits)
    return TextEdit(whole.proj_left, whole.proj_right, torch.cat(read))


def names(anchors: AnchorSet) -> list[int]:
    """For every concept the number of the prompt that is its bare name, else of the shortest."""

    def rank(number: int) -> tuple[bool, int, int]:
        anchor = anchors[number]
        return anchor.prompt != anchor.concept, len(anchor.prompt.split()), len(anchor.prompt)

    of_concept: dict[str, list[int]] = {}
    for number, anchor in enumerate(anchors):
        of_concept.setdefault(anchor.concept, []).append(number)
    return [min(numbers, key=rank) for numbers in of_concept.values()]


def kept(retain: TextVectors) -> TextVectors:
    """The name of each concept in several phrasings, and every prompt that was written by hand."""
    chosen = names(retain.anchors)
    return retain.chosen(
        [n for n, each in enumerate(retain.anchors) if n in chosen or not each.phrasing]
    )


def proxy(token: Tensor, anchor: Tensor) -> Tensor:
    """c* (D,): the projection of c onto the anchor's tokens (k, D), or the one token itself."""
    if len(anchor) == 1:
        return anchor[0]
    projected: Tensor = anchor.T @ (torch.linalg.pinv(anchor.T) @ token)
    return projected


def outside_of(retain: Tensor | None) -> Callable[[Tensor], Tensor]:
    """c -> U2 U2^T c, what of it lies outside the span of the retained tokens (m, D)."""
    if retain is None:
        return lambda token: token
    _, values, vectors = torch.linalg.svd(retain, full_matrices=False)
    kept = vectors[values > PRESENT]
    return lambda token: token - kept.T @ (kept @ token)


METHOD = TextMethod(
    name="double projections",
    summary="Moves the concept's tokens to the anchor's part of them, outside what is retained.",
    source="Zhang et al., arXiv 2604.10032",
    edit="keys and values",
    settings=(),
    solve=solve,
)
