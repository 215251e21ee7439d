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
            ],
        )

    @classmethod
    def execute(
        cls, concept: str, kind: str, neighbours: str, templates: str = ""
    ) -> io.NodeOutput:
        forget, retain = anchors_for(concept, kind, neighbours, templates)
        return io.NodeOutput(forget, retain, as_text(forget), as_text(retain))
