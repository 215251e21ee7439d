"""PURE_SaveCheckpoint, PURE_SaveLoRA and PURE_SaveDiffusers: the erasure as files for others."""

from collections.abc import Callable, Sequence
from typing import Any

from comfy_api.latest import io

from ..pure_core.eraser import Eraser
from ..pure_core.errors import require_one_of
from ..pure_core.export import LORA_DTYPES, LORA_FORMS, export_checkpoint, export_diffusers
from ..pure_core.export.lora import COMFYUI
from .files import path_output, written
from .host import export as host
from .host.patch import chosen_edit
from .types import (
    EXPORT,
    advanced,
    edit_input,
    eraser_input,
    optional,
    schema,
    strength_input,
)


def applied(erasers: list[Any], strengths: list[float], edits: list[str]) -> list[Eraser]:
    """The erasers as applied. As in ComfyUI's lists, the last value serves for the rest."""
    return [
        eraser.applied(
            strengths[min(index, len(strengths) - 1)],
            chosen_edit(edits[min(index, len(edits) - 1)]),
        )
        for index, eraser in enumerate(erasers)
    ]


def source_input() -> io.Combo.Input:
    return io.Combo.Input(
        "ckpt_name",
        options=host.source_names(),
        tooltip=(
            "The file to start from, normally the one the eraser was fitted on: .safetensors in "
            "models/checkpoints or models/diffusion_models. It is only read."
        ),
    )


def prefix_input(default: str) -> io.String.Input:
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip=(
            "Name inside ComfyUI's output folder; a counter is added and nothing is overwritten. "
            "Loaders list what is in checkpoints/, diffusion_models/ or loras/ there. "
            "Subfolders and %year%, %month%, %day%, %hour%, %minute%, %second% work."
        ),
    )


def any_source_input() -> io.Boolean.Input:
    return advanced(
        optional(
            io.Boolean.Input(
                "any_source",
                default=False,
                tooltip=(
                    "Off: refuse a file that is not the model the eraser was fitted on, or that "
                    "has changed since. On: accept any of the same architecture, such as a "
                    "fine-tune."
                ),
            )
        )
    )


def file_inputs(prefix: str) -> list[io.Input]:
    """What the nodes that start from a file ask for."""
    return [
        source_input(),
        eraser_input(" A list is applied in its order."),
        strength_input(),
        edit_input(),
        prefix_input(prefix),
        any_source_input(),
    ]


class FileExport(io.ComfyNode):
    """A node that makes an erased copy of a file."""

    write: Callable[..., str]
    """`export_checkpoint` or `export_diffusers`."""

    suffix: str
    """Of what is written."""

    @classmethod
    def fingerprint_inputs(cls, ckpt_name: list[str], **_: Any) -> str:
        return host.state_of(ckpt_name[0])

    @classmethod
    def execute(
        cls,
        *,
        ckpt_name: list[str],
        eraser: list[Any],
        strength: list[float],
        edit: list[str],
        filename_prefix: list[str],
        any_source: Sequence[bool] = (False,),
    ) -> io.NodeOutput:
        erasers = applied(eraser, strength, edit)
        target = host.target(filename_prefix[0], cls.suffix)
        note = host.export(cls.write, ckpt_name[0], target, erasers, any_source[0])
        return written(target, note)


def file_schema(prefix: str, **fields: Any) -> io.Schema:
    """What the schemas of such nodes share."""
    return schema(
        category=EXPORT,
        inputs=file_inputs(prefix),
        outputs=[path_output()],
        is_output_node=True,
        is_input_list=True,
        **fields,
    )


class SaveCheckpoint(FileExport):
    write = staticmethod(export_checkpoint)
    suffix = ".safetensors"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return file_schema(
            "checkpoints/erased",
            node_id="PURE_SaveCheckpoint",
            display_name="PURE Save Checkpoint",
            search_aliases=["export checkpoint", "erased checkpoint", "bake"],
            description=(
                "Copies a checkpoint and erases the concept in the copy. Only the weights with "
                "which the model reads text change, everything else stays byte for byte; how it "
                "was made is written into the file. Averaged weights (EMA) are erased, too, or "
                "left out. Needs hardly any memory."
            ),
        )


class SaveDiffusers(FileExport):
    write = staticmethod(export_diffusers)
    suffix = ""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return file_schema(
            "diffusers/erased",
            node_id="PURE_SaveDiffusers",
            display_name="PURE Save Diffusers",
            search_aliases=["export diffusers", "unet2dconditionmodel", "hugging face"],
            description=(
                "Writes the erased U-Net as a folder that the diffusers library loads with "
                "UNet2DConditionModel.from_pretrained. Text encoder and VAE do not change: take "
                "those of the original."
            ),
        )


class SaveLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_SaveLoRA",
            display_name="PURE Save LoRA",
            category=EXPORT,
            search_aliases=["export lora", "erase lora", "extract lora"],
            description=(
                "Writes the erasure as a LoRA that erases exactly what PURE Patch erases, on the "
                "model given here, with the stock LoRA loader or in diffusers. Its rank is the "
                "eraser's: nothing is cut off. Unlike an eraser it belongs to this one model."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "The model that the LoRA will be loaded on, with the LoRAs that will "
                        "be loaded before it: the wire that also goes into PURE Patch, not the "
                        "one that comes out."
                    ),
                ),
                eraser_input(" A list is applied in its order."),
                strength_input(),
                edit_input(),
                io.Combo.Input(
                    "dtype",
                    options=list(LORA_DTYPES),
                    default="float32",
                    tooltip=(
                        "Type of the numbers. float32 is exact to rounding; float16 is half as "
                        "large and rounds the change to about three digits."
                    ),
                ),
                prefix_input("loras/erased"),
                advanced(
                    optional(
                        io.Combo.Input(
                            "form",
                            options=list(LORA_FORMS),
                            default=COMFYUI,
                            tooltip=(
                                "Who is to read the file: ComfyUI and kohya's tools, or the "
                                "diffusers library by its own names. Of U-Nets diffusers reads "
                                "the first form, too; of transformers only the second."
                            ),
                        )
                    )
                ),
            ],
            outputs=[path_output()],
            is_output_node=True,
            is_input_list=True,
        )

    @classmethod
    def execute(
        cls,
        *,
        model: list[Any],
        eraser: list[Any],
        strength: list[float],
        edit: list[str],
        dtype: list[str],
        filename_prefix: list[str],
        form: Sequence[str] = (COMFYUI,),
    ) -> io.NodeOutput:
        require_one_of("dtype", dtype[0], LORA_DTYPES)
        target = host.target(filename_prefix[0], ".safetensors")
        erasers = applied(eraser, strength, edit)
        note = host.save_lora(model[0], erasers, LORA_DTYPES[dtype[0]], target, form[0])
        return written(target, note)
