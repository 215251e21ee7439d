"""PURE_Compare: pictures before and after, one on top of the other."""

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..pure_core.errors import PureError
from .types import CATEGORY, schema


class PictureError(PureError):
    """Pictures that cannot be laid over each other."""


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_Compare",
            display_name="PURE Compare",
            category=CATEGORY,
            search_aliases=[
                "compare images",
                "before and after",
                "slider",
                "difference",
                "side by side",
            ],
            description=(
                "Shows pictures before and after erasing on top of each other, with a slider, pair "
                "by pair. With ComfyUI's classic node renderer, too."
            ),
            inputs=[
                io.Image.Input(
                    "before",
                    tooltip="Pictures of the model as loaded, one or several of one size.",
                ),
                io.Image.Input(
                    "after",
                    tooltip=(
                        "The erased model's pictures from the same prompts and seeds: as many, of "
                        "the same size."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="comparison",
                    tooltip="A picture of every pair, before on the left, for Save Image.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, before: Tensor, after: Tensor) -> io.NodeOutput:
        if before.shape != after.shape:
            raise PictureError(
                f"after: expected pictures like those of before, {_sizes(before)}, got "
                f"{_sizes(after)}. Sample both with the same latent and prompt."
            )
        shown = {
            f"pure_{name}": ui.PreviewImage(pictures, cls=cls).as_dict()["images"]
            for name, pictures in (("before", before), ("after", after))
        }
        return io.NodeOutput(torch.cat([before, after], dim=2), ui=shown)


def _sizes(pictures: Tensor) -> str:
    count, height, width, channels = pictures.shape
    return f"{count} of {width} x {height} pixels in {channels} channels"
