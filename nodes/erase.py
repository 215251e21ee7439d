"""PURE_EraseConcept: the whole way in one node."""

from typing import Any

from comfy_api.latest import io

from ..pure_core.methods import METHODS, fit
from ..pure_core.report import FitReport, draw
from .defaults import METHOD, STRENGTH, Fitting, Trajectory
from .host.capture import capture_groups
from .host.patch import AS_FITTED, patch
from .host.pictures import to_image
from .prompts import PromptError, anchors
from .types import (
    CATEGORY,
    Eraser,
    advanced,
    concept_input,
    kind_input,
    method_input,
    neighbours_input,
    optional,
    strength_input,
    templates_input,
    trajectory_inputs,
)

NEEDS_NEIGHBOURS = ("ridge",)


class EraseConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_EraseConcept",
            display_name="PURE Erase Concept",
            category=CATEGORY,
            description=(
                "Erases a concept from the model and keeps its neighbours: writes the prompts, "
                "captures, fits and patches with the settings that measured best. Put it after "
                "all LoRAs. For the paper's method choose pure; for every setting use the other "
                "PURE nodes."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A U-Net model: SD 1.x, SD 2.x, SDXL and alike."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                concept_input(),
                neighbours_input(),
                kind_input(),
                method_input(list(METHODS), METHOD),
                strength_input(STRENGTH),
                *(advanced(optional(widget)) for widget in trajectory_inputs()),
                advanced(templates_input()),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model without the concept."),
                Eraser.Output(
                    display_name="eraser",
                    tooltip="What was changed, for PURE Patch and the saving nodes.",
                ),
                io.Image.Output(
                    display_name="report", tooltip="What was removed and kept in every layer."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        *,
        concept: str,
        neighbours: str,
        kind: str,
        method: str,
        strength: float,
        templates: str = "",
        **trajectory: Any,
    ) -> io.NodeOutput:
        prompts = anchors(concept, kind, neighbours, templates)
        if method in NEEDS_NEIGHBOURS and not prompts.retain:
            raise PromptError(
                f"neighbours: the method {method} sends the concept to its neighbours, expected at "
                "least one line, got none. List some, or choose the method pure."
            )
        groups = [group for group in prompts if group]
        forget, *rest = capture_groups(model, clip, groups, Trajectory(**trajectory))
        retain = rest[0] if rest else None
        eraser = fit(method, forget, retain, **Fitting()._asdict())
        report = to_image(draw(FitReport.of(eraser, forget, retain)))
        return io.NodeOutput(patch(model, eraser, strength, AS_FITTED), eraser, report)
