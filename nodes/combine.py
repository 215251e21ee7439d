"""PURE_CombineErasers and PURE_ConcatenateActivations: several concepts as one."""

from comfy_api.latest import io

from ..pure_core import activations, eraser
from ..pure_core.combine import MODES, chosen_mode, combine
from ..pure_core.report import summary
from .host.progress import progress
from .types import (
    STEPS,
    Activations,
    Eraser,
    in_order,
    max_rank_input,
    numbered_inputs,
    schema,
)


class CombineErasers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_CombineErasers",
            display_name="PURE Combine Erasers",
            category=STEPS,
            search_aliases=["merge erasers", "join erasers", "several concepts"],
            description=(
                "Makes one eraser of several, for one PURE Patch and one file. Joint: what fitting "
                "all concepts at once gives, whatever the order. In sequence: what patching with "
                "one after the other gives."
            ),
            inputs=[
                *numbered_inputs(
                    Eraser,
                    "eraser",
                    "From PURE Fit, PURE Fit Text, PURE Erase Concept or PURE Load Eraser.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip=(
                        "joint: fits all concepts together against one retain set; all erasers "
                        "have to come from one method, model and capture. in sequence: multiplies "
                        "the erasers in their order; any that edit the same weights."
                    ),
                ),
                Activations.Input(
                    "retain",
                    optional=True,
                    tooltip=(
                        "For joint: activations of what all concepts together have to keep. "
                        "Needed for erasers from files. Ridge and mosaic take those that every "
                        "eraser was fitted with, pure takes new ones too."
                    ),
                ),
                max_rank_input(),
            ],
            outputs=[
                Eraser.Output(display_name="eraser"),
                io.String.Output(
                    display_name="summary", tooltip="Which concepts, and the rank in every layer."
                ),
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(
        cls,
        mode: list[str],
        retain: list[activations.Activations | None] | None = None,
        max_rank: list[int] | None = None,
        **erasers: list[eraser.Eraser],
    ) -> io.NodeOutput:
        given = [each for each in retain or () if each is not None]
        kept = given[0].concatenate(*given[1:]) if given else None
        limit = max_rank[0] if max_rank else 0
        combined = combine(in_order(erasers), chosen_mode(mode[0]), kept, limit, progress())
        return io.NodeOutput(combined, summary(combined))


class ConcatenateActivations(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_ConcatenateActivations",
            display_name="PURE Concatenate Activations",
            category=STEPS,
            search_aliases=["merge activations", "join activations", "several concepts"],
            description=(
                "Puts captures together: as forget they are several concepts that are erased "
                "together, as retain one larger set of neighbours."
            ),
            inputs=numbered_inputs(
                Activations,
                "activations",
                "Captured on the same model with the same settings as the others.",
            ),
            outputs=[Activations.Output(display_name="activations")],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, **captured: list[activations.Activations]) -> io.NodeOutput:
        first, *others = in_order(captured)
        return io.NodeOutput(first.concatenate(*others))
