"""PURE_SaveEraser and PURE_LoadEraser: erasers in models/erasers."""

from comfy_api.latest import io, ui

from ..pure_core import eraser as core
from .host import files
from .types import CATEGORY, Eraser, eraser_input

files.register_folder()


class SaveEraser(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_SaveEraser",
            display_name="PURE Save Eraser",
            category=CATEGORY,
            description=(
                "Writes the eraser to models/erasers as a small safetensors file. It holds the "
                "prompts and settings it was made with and no model weights."
            ),
            inputs=[
                eraser_input(),
                io.String.Input(
                    "filename_prefix",
                    default="eraser",
                    tooltip=(
                        "File name inside models/erasers; a counter is added and nothing is "
                        "overwritten. Subfolders (concepts/triangle) and %year%, %month%, %day%, "
                        "%hour%, %minute%, %second% work."
                    ),
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, eraser: core.Eraser, filename_prefix: str) -> io.NodeOutput:
        path = str(files.save(eraser, filename_prefix))
        return io.NodeOutput(path, ui=ui.PreviewText(path))


class LoadEraser(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_LoadEraser",
            display_name="PURE Load Eraser",
            category=CATEGORY,
            description="Reads an eraser from models/erasers.",
            inputs=[
                io.Combo.Input(
                    "eraser_name",
                    options=files.eraser_names(),
                    tooltip=(
                        "A file in models/erasers. It fits models of the architecture it was "
                        "fitted on, fine-tunes included."
                    ),
                ),
            ],
            outputs=[Eraser.Output(display_name="eraser")],
        )

    @classmethod
    def fingerprint_inputs(cls, eraser_name: str) -> str:
        return files.content_hash(eraser_name)

    @classmethod
    def execute(cls, eraser_name: str) -> io.NodeOutput:
        return io.NodeOutput(files.load(eraser_name))
