"""Erasers in models/erasers and activations in models/activations, saved and loaded."""

from pathlib import Path

from comfy_api.latest import io, ui

from ..pure_core import activations, eraser
from ..pure_core.combine import require_joinable
from ..pure_core.report import summary
from .host.files import ACTIVATIONS, ERASERS
from .types import (
    FILES,
    Activations,
    Eraser,
    advanced,
    eraser_input,
    schema,
)

ERASERS.register()
ACTIVATIONS.register()


def prefix_input(folder: str, default: str) -> io.String.Input:
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip=(
            f"File name inside models/{folder}; a counter is added and nothing is overwritten. "
            "Subfolders (concepts/triangle) and %year%, %month%, %day%, %hour%, %minute%, "
            "%second% work."
        ),
    )


def path_output() -> io.String.Output:
    return io.String.Output(display_name="path", tooltip="The file that was written.")


def written(path: Path, note: str = "") -> io.NodeOutput:
    """The path, shown on the node with what is to be said of the file."""
    shown = f"{path}\n{note}" if note else str(path)
    return io.NodeOutput(str(path), ui=ui.PreviewText(shown))


class SaveEraser(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_SaveEraser",
            display_name="PURE Save Eraser",
            category=FILES,
            search_aliases=["export eraser", "write eraser"],
            description=(
                "Writes the eraser to models/erasers as a safetensors file. It holds the prompts "
                "and settings it was made with and no model weights."
            ),
            inputs=[
                eraser_input(),
                prefix_input("erasers", "eraser"),
                advanced(
                    io.Boolean.Input(
                        "joinable",
                        default=False,
                        optional=True,
                        tooltip=(
                            "On: the file also holds the concept's activations, so that PURE "
                            "Combine Erasers can join it with others, and is several times as "
                            "large; an eraser that cannot be joined is refused. Off: it can still "
                            "be combined in sequence."
                        ),
                    )
                ),
            ],
            outputs=[path_output()],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, eraser: eraser.Eraser, filename_prefix: str, joinable: bool = False
    ) -> io.NodeOutput:
        if joinable:
            require_joinable(eraser)
        kept = eraser if joinable else eraser.without_rows()
        return written(ERASERS.save(kept, filename_prefix))


class LoadEraser(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_LoadEraser",
            display_name="PURE Load Eraser",
            category=FILES,
            search_aliases=["import eraser", "read eraser"],
            description="Reads an eraser from models/erasers.",
            inputs=[
                io.Combo.Input(
                    "eraser_name",
                    options=ERASERS.names(),
                    tooltip=(
                        "A file in models/erasers. It fits models of the architecture it was "
                        "fitted on, fine-tunes included."
                    ),
                ),
            ],
            outputs=[
                Eraser.Output(display_name="eraser"),
                io.String.Output(
                    display_name="summary",
                    tooltip="What it erases, by which method, from which model, how large it is.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, eraser_name: str) -> str:
        return ERASERS.state_of(eraser_name)

    @classmethod
    def execute(cls, eraser_name: str) -> io.NodeOutput:
        loaded = ERASERS.load(eraser_name)
        return io.NodeOutput(loaded, summary(loaded))


class SaveActivations(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_SaveActivations",
            display_name="PURE Save Activations",
            category=FILES,
            search_aliases=["export activations", "write activations"],
            description=(
                "Writes captured activations to models/activations. A model's retain prompts are "
                "captured once this way and used for every concept. The file holds the prompts "
                "and settings and no model weights; 54 prompts at the default settings take about "
                "40 MB for SD 1.5 and 270 MB for SDXL."
            ),
            inputs=[
                Activations.Input("activations", tooltip="From PURE Capture."),
                prefix_input("activations", "retain"),
            ],
            outputs=[path_output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, activations: activations.Activations, filename_prefix: str) -> io.NodeOutput:
        return written(ACTIVATIONS.save(activations, filename_prefix))


class LoadActivations(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_LoadActivations",
            display_name="PURE Load Activations",
            category=FILES,
            search_aliases=["import activations", "read activations"],
            description=(
                "Reads activations from models/activations. They go with others that were "
                "captured on the same model with the same settings."
            ),
            inputs=[
                io.Combo.Input(
                    "activations_name",
                    options=ACTIVATIONS.names(),
                    tooltip="A file in models/activations.",
                ),
            ],
            outputs=[
                Activations.Output(display_name="activations"),
                io.String.Output(display_name="prompts", tooltip="What was captured, one a line."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, activations_name: str) -> str:
        return ACTIVATIONS.state_of(activations_name)

    @classmethod
    def execute(cls, activations_name: str) -> io.NodeOutput:
        loaded = ACTIVATIONS.load(activations_name)
        return io.NodeOutput(loaded, "\n".join(loaded.prompts))
