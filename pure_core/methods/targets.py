"""Where a concept's rows are sent, and which rows are kept: what methods with a target share.

The concept becomes its neighbours, or a replacement: one concept that stands for it from then on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..activations import neighbour_means
from ..errors import FitError
from .method import LayerRows


def targets(rows: LayerRows, by_phrasing: bool) -> Tensor:
    """T_F (n_F, d), float64: for every forget row, where it is sent.

    With a replacement that is its row in the same phrasing, at the same latent, step and cell.
    Without one it is the mean of the neighbours' rows there. Of several counterparts it is the
    mean, and of prompts written by hand all are counterparts: see `AnchorSet.same_phrasing`.

    Args:
        by_phrasing: Whether neighbours count in the same phrasing only, or in all.
    """
    if rows.replacement is None and not by_phrasing:
        assert rows.retain is not None
        return neighbour_means(rows.forget, rows.retain, rows.layer)
    others = rows.retain if rows.replacement is None else rows.replacement
    assert others is not None
    grid = others.grid(rows.layer).double()
    pairs = rows.forget.anchors.same_phrasing(others.anchors)
    return torch.stack([grid[each].mean(dim=0) for each in pairs]).flatten(0, 2)


def kept(rows: LayerRows) -> Tensor:
    """H_R (n_R, d), float64: the neighbours' rows and those of the replacement.

    Raises:
        FitError: every row is zero, so nothing holds E back.
    """
    found = rows.kept_rows
    if not bool(found.any()):
        raise FitError(f"Layer {rows.layer}: every retain activation is zero, nothing to fit to.")
    return found.double()
