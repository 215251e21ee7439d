"""PURE_EraseConcept: the whole way in one node."""

from typing import Any

from comfy_api.latest import io

from ..pure_core.anchors import NO_ANCHORS
from ..pure_core.concepts import Anchors, PromptError, anchors_for
from ..pure_core.errors import require_one_of
from ..pure_core.fitting import fit, require_target
from ..pure_core.methods import METHODS, ActivationMethod
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
    replacement_input,
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
                replacement_input(),
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
        replacement: str = "",
        **trajectory: Any,
    ) -> io.NodeOutput:
        require_one_of("method", method, METHODS)
        anchors = anchors_for(concept, kind, neighbours, templates, replacement)
        anchors = _usable(anchors, METHODS[method], bool(replacement.strip()))
        Sites.of(model).require_plain_weights()  # before sampling, not after
        cells = METHODS[method].cells
        wanted = Trajectory(**trajectory)._replace(cells=cells)
        forget, retain, becomes = remembered_capture(model, clip, anchors, wanted)
        eraser = fit(method, forget, retain, progress(), replacement=becomes)
        if max_rank:
            eraser = eraser.limited(max_rank)
        shares = remembered_shares(model, clip, eraser)
        report = FitReport.of(eraser, forget, retain, progress(), shares, becomes)
        applied = eraser.applied(strength)
        patched = patch(model, applied)
        used = forget.trajectory.cells
        fewer = "" if cells == used else FEWER.format(used, cells)
        words = f"{report.summary()}\n{patched.summary}{fewer}"
        return io.NodeOutput(patched.model, applied, pictured(report), words, ui=shown(report))


def _usable(anchors: Anchors, method: ActivationMethod, replaced: bool) -> Anchors:
    """What a method can be fitted on, checked before anything is sampled.

    Args:
        replaced: Whether a person named the replacement. One that only follows from the kind is
            left out where the method has no use for it.
    """
    if not method.has_target:
        require_target(method, replaced)
        anchors = anchors._replace(replacement=NO_ANCHORS)
    if method.needs_retain and not (anchors.retain or anchors.replacement):
        instead = "name a replacement, " if method.has_target else ""
        raise PromptError(
            f"neighbours: the method {method.name} sends the concept to its neighbours, expected "
            f"at least one line, got none. List some, {instead}or choose the method pure."
        )
    return anchors
