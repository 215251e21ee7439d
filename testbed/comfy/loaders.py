"""Nodes that stand for a stock workflow's loaders, for models that only come large.

A ComfyUI server finds them in a folder of custom nodes, which `folder_of_nodes` makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from testbed.comfy import inprocess

inprocess.enter()

from testbed.comfy.transformers import ALL, ENCODERS, small_encoder, transformer

ENCODED = [name for name, kind in ALL.items() if kind.family in ENCODERS]


class SmallTransformer:
    """In the place of UNETLoader."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": (list(ALL),)}}

    def load(self, name: str) -> tuple[Any]:
        return (transformer(name),)


class SmallTextEncoder:
    """In the place of CLIPLoader."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": (ENCODED,)}}

    def load(self, name: str) -> tuple[Any]:
        return (small_encoder(name),)


NODE_CLASS_MAPPINGS = {"SmallTransformer": SmallTransformer, "SmallTextEncoder": SmallTextEncoder}


def folder_of_nodes(folder: Path) -> Path:
    """Make a folder of custom nodes with these in it, and the file that tells a server of it."""
    nodes, paths = folder / "custom_nodes", folder / "paths.yaml"
    nodes.mkdir()
    line = "from testbed.comfy.loaders import NODE_CLASS_MAPPINGS\n"
    (nodes / "small_loaders.py").write_text(line, encoding="utf-8")
    paths.write_text(f"tests:\n  custom_nodes: {nodes}\n", encoding="utf-8")
    return paths
