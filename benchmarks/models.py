"""The small models that benchmarks can run on, and the world of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.narrow import NarrowUNet, NarrowWan, narrow_hunyuan, narrow_sd3
from testbed.comfy.pictures import HunyuanPictures, SD3Pictures, Sd15, WanPictures
from testbed.comfy.shipped import Shipped
from testbed.pictures.measure import PICTURES
from testbed.pictures.narrow import CFG, load_unet
from testbed.world.measure import DRAWN, World


class Tested(NamedTuple):
    """A model that erasers are tried on."""

    world: World
    load: Callable[[], Any]
    """Gives what `testbed/comfy/erasable.py` has."""

    words: str


MODELS: dict[str, Tested] = {
    "comfyui": Tested(DRAWN, Shipped, "drawn world, SD 1.5 layout, in ComfyUI"),
    "narrow": Tested(DRAWN, NarrowUNet, "drawn world, SD 1.5 layout, narrow form"),
    "pictures-comfyui": Tested(PICTURES, Sd15, "real pictures, SD 1.5 layout, in ComfyUI"),
    "pictures": Tested(
        PICTURES, lambda: NarrowUNet(load_unet(), CFG), "real pictures, SD 1.5 layout, narrow form"
    ),
    "wan-comfyui": Tested(PICTURES, WanPictures, "real pictures, Wan 2.1 layout, in ComfyUI"),
    "wan": Tested(PICTURES, NarrowWan, "real pictures, Wan 2.1 layout, narrow form"),
    "sd3-comfyui": Tested(PICTURES, SD3Pictures, "real pictures, SD3 layout, in ComfyUI"),
    "sd3": Tested(PICTURES, narrow_sd3, "real pictures, SD3 layout, narrow form"),
    "hunyuan-comfyui": Tested(
        PICTURES, HunyuanPictures, "real pictures, HunyuanVideo layout, in ComfyUI"
    ),
    "hunyuan": Tested(PICTURES, narrow_hunyuan, "real pictures, HunyuanVideo layout, narrow form"),
}
