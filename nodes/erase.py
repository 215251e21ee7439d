"""PURE_EraseConcept: the whole way in one node."""

from typing import Any

from comfy_api.latest import io

from ..pure_core.concepts import PromptError, anchors_for
from ..pure_core.errors import require_one_of
from ..pure_core.fitting import fit
from ..pure_core.methods import METHODS
from ..pure_core.report import FitReport
from ..pure_core.trajectory import Trajectory
from .defaults import MAX_RANK
from .host.capture import remembered_capture, remembered_shares
from .host.patch import patch
from .host.progress import progress
from .host.sites import Sites
from .report import pictured, shown
from .types import (
    CATEGORY,
    Eraser,
    advanced,
    clip_input,
    concept_input,
    kind_input,
    length_input,
    max_rank_input,
    method_input,
    model_input,
    neighbours_input,
    optional,
    schema,
    strength_input,
    templates_input,
    trajectory_inputs,
)

FEWER = (
    "\nCaptured by {0} x {0} cells instead of {1} x {1}, which would take too much memory. For "
    "more cells use fewer latents or neighbours."
)


class EraseConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_EraseConcept",
            display_name="PURE Erase Concept",
            category=CATEGORY,
            search_aliases=[
                "erase concept",
                "remove concept",
                "unlearn",
                "forget",
                "concept erasure",
                "remove style",
                "remove character",
                "censor",
                "nsfw",
                "safe",
            ],
            description=(
                "Erases a concept, or several, from the model and keeps the neighbours: writes "
                "the prompts, captures, fits and patches with the settings that measured best. "
                "Put it after all LoRAs. For the paper's method choose pure; for every setting "
                "use the other PURE nodes."
            ),
            inputs=[
                model_input(),
                clip_input(),
                concept_input(),
                neighbours_input(),
                kind_input(),
                method_input(),
                strength_input(multiplies=False),
                *(advanced(optional(widget)) for widget in trajectory_inputs()),
                advanced(templates_input()),
                max_rank_input(MAX_RANK),
                length_input(),
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
                io.String.Output(
                    display_name="summary", tooltip="The report in words, and what was patched."
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
        max_rank: int = MAX_RANK,
        **trajectory: Any,
    ) -> io.NodeOutput:
        anchors = anchors_for(concept, kind, neighbours, templates)
        require_one_of("method", method, METHODS)
        if METHODS[method].needs_retain and not anchors.retain:
            raise PromptError(
                f"neighbours: the method {method} sends the concept to its neighbours, expected at "
                "least one line, got none. List some, or choose the method pure."
            )
        Sites.of(model).require_plain_weights()  # before sampling, not after
        cells = METHODS[method].cells
        wanted = Trajectory(**trajectory)._replace(cells=cells)
        forget, retain = remembered_capture(model, clip, anchors, wanted)
        eraser = fit(method, forget, retain, progress())
        if max_rank:
            eraser = eraser.limited(max_rank)
        shares = remembered_shares(model, clip, eraser)
        report = FitReport.of(eraser, forget, retain, progress(), shares)
        applied = eraser.applied(strength)
        patched = patch(model, applied)
        used = forget.trajectory.cells
        fewer = "" if cells == used else FEWER.format(used, cells)
        words = f"{report.summary()}\n{patched.summary}{fewer}"
        return io.NodeOutput(patched.model, applied, pictured(report), words, ui=shown(report))
