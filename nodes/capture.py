"""PURE_Capture: what the model's cross-attention puts out for a list of prompts."""

from typing import Any

from comfy_api.latest import io

from ..pure_core.anchors import AnchorSet
from ..pure_core.trajectory import Trajectory
from .host.capture import capture
from .types import (
    STEPS,
    Activations,
    anchors_input,
    cells_input,
    clip_input,
    given_anchors,
    length_input,
    model_input,
    schema,
    trajectory_inputs,
)


class Capture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_Capture",
            display_name="PURE Capture",
            category=STEPS,
            search_aliases=[
                "collect activations",
                "cross-attention activations",
                "record activations",
            ],
            description=(
                "Samples the first steps for every prompt and keeps the mean output of every "
                "cross-attention layer. Use two with the same settings: one for forget, one for "
                "retain. LoRAs and attention patches upstream are part of the model that is "
                "captured."
            ),
            inputs=[
                model_input(),
                clip_input(),
                anchors_input(
                    "prompts",
                    "What to capture: connect forget or retain of PURE Concept, or type prompts, "
                    "one a line. An empty line begins another concept, which is called by its "
                    "first prompt.",
                ),
                *trajectory_inputs(),
                cells_input(),
                length_input(),
            ],
            outputs=[Activations.Output(display_name="activations")],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, prompts: AnchorSet | str, **trajectory: Any
    ) -> io.NodeOutput:
        anchors = given_anchors(prompts)
        return io.NodeOutput(capture(model, clip, anchors, Trajectory(**trajectory)))
