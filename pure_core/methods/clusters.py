"""k-means for a handful of centres."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 100


def centres(points: Tensor, count: int, seed: int = 0) -> Tensor:
    """The centres of `count` clusters, by Lloyd's algorithm from k-means++ seeds.

    Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007. A cluster that
    loses all its points keeps its centre.

    Args:
        points: (n, D), float64; n >= 1.
        count: k; points are taken more than once where there are fewer different ones.
        seed: Of the seeding.

    Returns:
        (k, D).
    """
    random = torch.Generator().manual_seed(seed)
    found = points[torch.randint(len(points), (1,), generator=random)]
    while len(found) < count:
        apart = torch.cdist(points, found).min(dim=1).values.square()
        weights = apart if bool(apart.sum() > 0) else torch.ones_like(apart)
        chosen = torch.multinomial(weights, 1, generator=random)
        found = torch.cat([found, points[chosen]])
    for _ in range(ROUNDS):
        owner = torch.cdist(points, found).argmin(dim=1)
        moved = torch.stack(
            [
                points[owner == number].mean(dim=0) if bool((owner == number).any()) else centre
                for number, centre in enumerate(found)
            ]
        )
        if torch.equal(moved, found):
            break
        found = moved
    return found
