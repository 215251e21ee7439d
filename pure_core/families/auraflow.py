"""AuraFlow and Pony 7: some blocks of two streams, then blocks of one.

Eight learned tokens stand before the text. They go through its projections, so they are its part.
"""

from __future__ import annotations

from .joint import JointTransformer, Kind
from .site import LatentGeometry, Stream
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (
        Pattern("double_layers.#.attn", "w1k", "w1v"),
        Pattern("single_layers.#.attn", "w1k", "w1v"),
    ),
    mark="cond_seq_linear.weight",
    entry="cond_seq_linear",
)
LIBRARY = Spelling(
    (
        Pattern("joint_transformer_blocks.#.attn", "add_k_proj", "add_v_proj"),
        Pattern("single_transformer_blocks.#.attn", "to_k", "to_v"),
    ),
    mark="register_tokens",
    entry="context_embedder",
)

FAMILY = JointTransformer(
    name="auraflow",
    models="AuraFlow",
    classes=("MMDiT",),
    names=FileNames("auraflow", (OWN, LIBRARY), LIBRARY, shared=(1,)),
    kinds=(
        Kind("double_layers.#.attn.w2o", "n_heads"),
        Kind("single_layers.#.attn.w1o", "n_heads"),
    ),
    stream=Stream("double_layers.-1", 0, "single_layers.0"),
    geometry=lambda net: LatentGeometry(channels=4, pixels_per_cell=8, patch=2),
    size=lambda net: 1024,
    blocks={"all": "", "double": "double_layers", "single": "single_layers"},
)
