"""The drawn world's model in this ComfyUI process."""

from __future__ import annotations

import os
from pathlib import Path

from testbed.comfy import inprocess

inprocess.enter()

import nodes
from testbed.comfy.erasable import Erasable


class Shipped(Erasable):
    """What `CheckpointLoaderSimple` gives for the checkpoint."""

    shape, cfg, scheduler = (4, 8, 8), 4.0, "normal"

    def __init__(self) -> None:
        name = Path(os.environ["PURE_CHECKPOINT"]).name
        super().__init__(*nodes.CheckpointLoaderSimple().load_checkpoint(name)[:3])
