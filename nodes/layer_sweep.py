"""PURE_LayerSweep: in which blocks or layers an eraser works."""

from typing import Any

from comfy_api.latest import io

from ..pure_core import eraser as core
from ..pure_core.anchors import AnchorSet
from ..pure_core.errors import require_one_of
from ..pure_core.layer_sweep import BY
from ..pure_core.report.contact_sheet import Column, contact_sheet
from ..pure_core.report.layer_chart import draw_layers
from ..pure_core.trajectory import Trajectory
from .host.capture import SweptModel, some, sweep_layers
from .host.pictures import NO_PICTURE, decoded, to_image
from .types import (
    STEPS,
    anchors_input,
    clip_input,
    eraser_input,
    given_anchors,
    length_input,
    model_input,
    optional,
    picture_inputs,
    schema,
)


class LayerSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_LayerSweep",
            display_name="PURE Layer Sweep",
            category=STEPS,
            search_aliases=[
                "find layers",
                "localize concept",
                "where a concept lives",
                "block sweep",
                "choose layers",
            ],
            description=(
                "Finds by sampling in which blocks an eraser works: erases in one block alone and "
                "in all but one, and gives the fewest that do most of it, for layers of PURE "
                "Patch. It samples all prompts twice for every block and three times more."
            ),
            inputs=[
                model_input(),
                clip_input(),
                eraser_input(
                    " Of PURE Patch's, the strength, edit and layers that were set there are used."
                ),
                io.Float.Input(
                    "share",
                    default=0.9,
                    min=0.05,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "How much of what the whole eraser does to the concept's pictures is to "
                        "remain, 0.05 to 1. Less needs fewer layers and moves neighbours less."
                    ),
                ),
                io.Combo.Input(
                    "by",
                    options=list(BY),
                    default="block",
                    tooltip=(
                        "What is tried one at a time. part: the model's large parts (input, middle "
                        "and output of a U-Net, double and single blocks of Flux), the quickest; "
                        "where a model names none, its blocks. block: its numbered blocks. layer: "
                        "every attention layer, the slowest in SDXL."
                    ),
                ),
                io.Int.Input(
                    "prompts",
                    default=4,
                    min=1,
                    max=64,
                    step=1,
                    tooltip=(
                        "How many prompts of the concept are sampled, and as many of its "
                        "neighbours, 1 to 64; spread evenly over the lists. More measure better "
                        "and take as much longer."
                    ),
                ),
                *picture_inputs(),
                length_input(),
                optional(
                    anchors_input(
                        "concept_prompts",
                        "Prompts that show the concept, one a line, or forget of PURE Concept. "
                        "Empty: those that the eraser was made from.",
                    )
                ),
                optional(
                    anchors_input(
                        "neighbour_prompts",
                        "Prompts whose pictures are to stay, one a line, or retain of PURE "
                        "Concept. Empty: those that the eraser was made from.",
                    )
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Only needed for the output pictures.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="layers",
                    tooltip="What was chosen, for layers of PURE Patch. Empty if it is all.",
                ),
                io.Image.Output(
                    display_name="picture",
                    tooltip="What every block does alone, and what is lost without it.",
                ),
                io.Image.Output(
                    display_name="pictures",
                    tooltip=(
                        "The first prompt of the concept and of the neighbours: unedited, erased, "
                        "and erased in every block alone. Without a vae there are none, and what "
                        "is connected here does not run."
                    ),
                ),
                io.String.Output(
                    display_name="summary", tooltip="What was chosen and what it does, in words."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        eraser: core.Eraser,
        *,
        share: float,
        by: str,
        prompts: int,
        concept_prompts: AnchorSet | str = "",
        neighbour_prompts: AnchorSet | str = "",
        vae: Any = None,
        **trajectory: Any,
    ) -> io.NodeOutput:
        require_one_of("by", by, BY)
        way = next(each for each in BY if each == by)
        made = eraser.provenance
        concept = some(given_anchors(concept_prompts) or made.forget, prompts)
        neighbours = some(given_anchors(neighbour_prompts) or made.retain, prompts)
        wanted = Trajectory(**trajectory)
        swept = sweep_layers(model, clip, eraser, concept, neighbours, wanted, way, share)
        counted = f"{len(concept)} of the concept, {len(neighbours)} of its neighbours."
        return io.NodeOutput(
            swept.found.layers,
            to_image(draw_layers(swept.found, way, made.title)),
            NO_PICTURE if vae is None else to_image(contact_sheet(_columns(swept, vae))),
            f"{swept.found.summary(way)}\nMeasured on prompts: {counted}",
        )


def _columns(swept: SweptModel, vae: Any) -> list[Column]:
    """Unedited, erased in all layers, in the chosen ones, and in each unit alone."""
    found = swept.found
    shown: dict[str | None, str] = {None: "unedited", "": "erased in all"}
    shown.setdefault(found.layers, "erased in the chosen")
    for each in found.swept:
        shown.setdefault(each.unit.word, f"only {each.unit.label}")
    return [
        Column(label, tuple(decoded(vae, each) for each in swept.pairs[erased] if each is not None))
        for erased, label in shown.items()
    ]
