"""PURE_Patch: a model with the concept erased."""

from typing import Any

from comfy_api.latest import io

from ..pure_core import eraser as core
from .defaults import STRENGTH
from .host.patch import patch
from .types import CATEGORY, edit_input, eraser_input, strength_input


class Patch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_Patch",
            display_name="PURE Patch",
            category=CATEGORY,
            description=(
                "Multiplies the cross-attention weights by the eraser. The incoming model stays "
                "as it is, sampling costs nothing extra. Put it last: LoRAs before it are erased "
                "too, LoRAs after it are not and can bring the concept back."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model of the architecture that the eraser was fitted on.",
                ),
                eraser_input(),
                strength_input(STRENGTH),
                edit_input(),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: Any, eraser: core.Eraser, strength: float, edit: str) -> io.NodeOutput:
        return io.NodeOutput(patch(model, eraser, strength, edit))
