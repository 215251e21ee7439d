"""PURE_Concept: from names to the prompts that stand for them."""

from comfy_api.latest import io

from ..pure_core.concepts import anchors_for, as_text
from .types import (
    STEPS,
    Anchors,
    advanced,
    concept_input,
    kind_input,
    neighbours_input,
    replacement_input,
    schema,
    templates_input,
)


class Concept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_Concept",
            display_name="PURE Concept",
            category=STEPS,
            search_aliases=["forget prompts", "retain prompts", "anchors", "neighbours", "concept"],
            description=(
                "Writes the prompts to capture: the concept, or several, in several short "
                "phrasings, and the neighbours in the same phrasings."
            ),
            inputs=[
                concept_input(),
                kind_input(),
                neighbours_input(),
                advanced(templates_input()),
                replacement_input(),
            ],
            outputs=[
                Anchors.Output(
                    display_name="forget",
                    tooltip="The concept's prompts, with its name, for PURE Capture.",
                ),
                Anchors.Output(
                    display_name="retain", tooltip="The neighbours' prompts, with their names."
                ),
                io.String.Output(
                    display_name="forget_text",
                    tooltip=(
                        "The concept's prompts as text, one a line, an empty line between concepts."
                    ),
                ),
                io.String.Output(
                    display_name="retain_text", tooltip="The neighbours' prompts as text."
                ),
                Anchors.Output(
                    display_name="replacement",
                    tooltip=(
                        "The prompts of what the concept becomes, in the same phrasings, for a "
                        "PURE Capture of its own. Empty if nothing is named for that."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(
        cls, concept: str, kind: str, neighbours: str, templates: str = "", replacement: str = ""
    ) -> io.NodeOutput:
        anchors = anchors_for(concept, kind, neighbours, templates, replacement)
        texts = as_text(anchors.forget), as_text(anchors.retain)
        return io.NodeOutput(anchors.forget, anchors.retain, *texts, anchors.replacement)
