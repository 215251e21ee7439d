"""HunyuanDiT. The sites read CLIP's vectors and, behind them, those of mT5, made as wide.

Methods on the text would edit what CLIP says and leave what mT5 says of the same words.
"""

from __future__ import annotations

from .site import LatentGeometry
from .transformer import CrossTransformer
from .transformer_file import FileNames, Pattern, Spelling

FAMILY = CrossTransformer(
    name="hunyuan_dit",
    models="HunyuanDiT",
    classes=("HunYuanDiT",),
    names=FileNames(
        "hunyuan_dit",
        (
            Spelling((Pattern("blocks.#.attn2", "kv_proj", "kv_proj", "halves"),)),
            Spelling(
                (Pattern("blocks.#.attn2", "to_k", "to_v", parts=("to_k", "to_v")),),
                mark="text_embedding_padding",
            ),
        ),
    ),
    out="out_proj",
    heads="num_heads",
    geometry=lambda net: LatentGeometry(channels=4, pixels_per_cell=8, patch=2),
    size=lambda net: 1024,
    other_texts=("conditioning_mt5xl",),
)
