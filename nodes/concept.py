"""PURE_Concept: from names to the prompts that stand for them."""

from comfy_api.latest import io

from .prompts import anchors, text_of
from .types import (
    STEPS,
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
                io.String.Output(
                    display_name="forget",
                    tooltip=(
                        "Prompts of the concept, one a line. Of several, an empty line comes "
                        "between one and the next."
                    ),
                ),
                io.String.Output(
                    display_name="retain", tooltip="Prompts of the neighbours, one a line."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, concept: str, kind: str, neighbours: str, templates: str = ""
    ) -> io.NodeOutput:
        prompts = anchors(concept, kind, neighbours, templates)
        return io.NodeOutput(text_of(prompts.concepts), "\n".join(prompts.retain))
