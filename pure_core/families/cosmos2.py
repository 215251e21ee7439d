"""Cosmos-Predict2 and Anima.

Anima turns its text into vectors for the sites with an adapter (`llm_adapter`), which is a
transformer with attentions of its own. These belong to the text and are no sites.
"""

from __future__ import annotations

from .site import LatentGeometry
from .transformer import CrossTransformer
from .transformer_file import FileNames, Pattern, Spelling

LIBRARY = Spelling(
    (Pattern("transformer_blocks.#.attn2", "to_k", "to_v"),),
    mark="time_embed.t_embedder.linear_1.weight",
)

FAMILY = CrossTransformer(
    name="cosmos2",
    models="Cosmos-Predict2 and Anima",
    classes=("MiniTrainDIT",),
    names=FileNames(
        "cosmos2",
        (Spelling((Pattern("blocks.#.cross_attn", "k_proj", "v_proj"),)), LIBRARY),
        LIBRARY,
    ),
    out="output_proj",
    heads="n_heads",
    geometry=lambda net: LatentGeometry(channels=16, pixels_per_cell=8, frames=4, patch=2),
    size=lambda net: 1024,
)
