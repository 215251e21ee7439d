"""Draws the help pages' pictures: python3 dev.py run testbed/comfy/help_pictures.py

Every node as the editor shows it; those with a panel after a run.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from dev.browser import find_browser
from dev.console import ROOT
from testbed.comfy.editor import Editor, finished, opened
from testbed.comfy.examples import example
from testbed.comfy.server import ComfyServer

FOLDER = ROOT / "web" / "docs" / "pictures"
AFTER_A_RUN = {
    "Erase a concept": ("PURE_EraseConcept", "PURE_Compare"),
    "Erase a concept, step by step": ("PURE_Concept", "PURE_Capture", "PURE_Fit", "PURE_Patch"),
}
SHOWN = {
    "Compare methods": ("PURE_FitText",),
    "Save an eraser": ("PURE_SaveEraser",),
    "Find the layers to erase in": ("PURE_LayerSweep",),
    "Export an erased checkpoint": ("PURE_SaveCheckpoint", "PURE_SaveLoRA", "PURE_SaveDiffusers"),
}
ALONE = (
    "PURE_CombineErasers",
    "PURE_ConcatenateActivations",
    "PURE_LoadEraser",
    "PURE_SaveActivations",
    "PURE_LoadActivations",
)
MARGIN = 12
ZOOM = 1.25


def take(editor: Editor, node: int, name: str) -> None:
    """The picture of one node."""
    left, top, *_ = editor.bounds()[node]
    editor.page.evaluate(
        f"""() => {{
            app.canvas.deselectAll?.();
            app.canvas.ds.scale = {ZOOM};
            app.canvas.ds.offset = [{200 / ZOOM - left}, {120 / ZOOM - top}];
            app.canvas.setDirty(true, true);
        }}"""
    )
    editor.page.wait_for_timeout(1500)
    box = editor.page.locator(f'[data-node-id="{node}"]').bounding_box()
    assert box is not None
    clip = {
        "x": box["x"] - MARGIN,
        "y": box["y"] - MARGIN,
        "width": box["width"] + 2 * MARGIN,
        "height": box["height"] + 2 * MARGIN,
    }
    picture = Image.open(io.BytesIO(editor.page.screenshot(clip=clip))).convert("RGB")
    FOLDER.mkdir(exist_ok=True)
    picture.save(FOLDER / f"{name}.jpg", quality=85)


def by_type(workflow: dict[str, Any], node_type: str) -> int:
    return next(node["id"] for node in workflow["nodes"] if node["type"] == node_type)


def main() -> None:
    with ComfyServer() as server:
        chromium = str(find_browser())
        with opened(server.address, chromium, "PURE_Compare") as editor:
            editor.page.set_viewport_size({"width": 1600, "height": 1700})
            editor.use("nodes2")  # folds advanced inputs away
            for name, types in AFTER_A_RUN.items():
                editor.open(example(name))
                finished(editor, server, editor.queue())
                for node_type in types:
                    take(editor, by_type(example(name), node_type), node_type)
            for name, types in SHOWN.items():
                workflow = example(name)
                for node in workflow["nodes"]:
                    node["mode"] = 0
                editor.open(workflow)
                for node_type in types:
                    take(editor, by_type(workflow, node_type), node_type)
            for node_type in ALONE:
                editor.page.evaluate("app.graph.clear()")
                node = editor.page.evaluate(
                    f"(() => {{ const node = LiteGraph.createNode('{node_type}');"
                    "app.graph.add(node); return Number(node.id) })()"
                )
                take(editor, node, node_type)


if __name__ == "__main__":
    main()
