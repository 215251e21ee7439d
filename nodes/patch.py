"""PURE_Patch: a model with the concept erased."""

from typing import Any

from comfy_api.latest import io

from ..pure_core import eraser as core
from ..pure_core.selection import select
from .host.patch import USUAL, chosen_at_shared, chosen_edit, patch
from .types import (
    STEPS,
    Eraser,
    advanced,
    edit_input,
    eraser_input,
    schema,
    shared_input,
    strength_input,
)


class Patch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_Patch",
            display_name="PURE Patch",
            category=STEPS,
            search_aliases=["apply eraser", "erase", "patch model", "unlearn"],
            description=(
                "Multiplies the cross-attention weights by the eraser. The incoming model stays "
                "as it is. Sampling costs nothing extra, in Z-Image, Flux and others a little "
                "(see shared). Put it last: LoRAs before it are erased "
                "too, LoRAs after it are not and can bring the concept back."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model of the architecture that the eraser was fitted on.",
                ),
                eraser_input(),
                strength_input(),
                edit_input(),
                advanced(
                    io.String.Input(
                        "layers",
                        default="",
                        optional=True,
                        tooltip=(
                            "In which layers to erase: input, middle, output, or layer names with "
                            "* for anything (output_blocks.3.*), several with commas between "
                            "them. Empty: in all."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "contribution",
                        default=1.0,
                        min=0.01,
                        max=1.0,
                        step=0.01,
                        optional=True,
                        tooltip=(
                            "Erase only in the layers that do most: the fewest that together do "
                            "this share of what all do, 0.01 to 1; 1: in all. Measured as the "
                            "share of a layer's forget activations that it changes."
                        ),
                    )
                ),
                advanced(shared_input()),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                Eraser.Output(
                    display_name="eraser",
                    tooltip=(
                        "The eraser as applied: in the chosen layers, with this strength and edit. "
                        "For the saving nodes."
                    ),
                ),
                io.String.Output(
                    display_name="summary",
                    tooltip="What was patched, on top of what, and what its rounding loses.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        eraser: core.Eraser,
        *,
        strength: float,
        edit: str,
        layers: str = "",
        contribution: float = 1.0,
        shared: str = USUAL,
    ) -> io.NodeOutput:
        chosen = select(eraser, layers, contribution).applied(
            strength, chosen_edit(edit), chosen_at_shared(shared)
        )
        patched = patch(model, chosen)
        return io.NodeOutput(patched.model, chosen, patched.summary)
