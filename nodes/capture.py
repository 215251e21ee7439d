"""PURE_Capture: what the model's cross-attention puts out for a list of prompts."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from .defaults import Trajectory
from .host.capture import capture
from .prompts import lines, paragraphs
from .types import (
    STEPS,
    Activations,
    cells_input,
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
                io.Model.Input("model", tooltip="A U-Net model: SD 1.x, SD 2.x, SDXL and alike."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip=(
                        "Prompts to capture, one a line, at least one. An empty line begins the "
                        "prompts of another concept: reports and files then name each."
                    ),
                ),
                *trajectory_inputs(),
                cells_input(),
            ],
            outputs=[Activations.Output(display_name="activations")],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, prompts: str, cells: int = 1, **trajectory: Any
    ) -> io.NodeOutput:
        concepts = paragraphs(prompts)
        captured = capture(model, clip, lines(prompts), Trajectory(**trajectory), cells)
        return io.NodeOutput(replace(captured, concepts=tuple(map(len, concepts))))
