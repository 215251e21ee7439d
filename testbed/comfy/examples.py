"""The example workflows, read as the editor reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dev.console import ROOT

FOLDER = ROOT / "example_workflows"
FILES = sorted(FOLDER.glob("*.json"), key=lambda file: file.stem)
LARGE = ("Erase a concept from Z-Image", "Erase a concept from Flux")
"""Those for models of which there is no small one."""

OWN_TRAJECTORY = frozenset({"steps", "run_steps", "latents", "cfg", "width", "height", "scheduler"})
"""What these set of a capture."""

BYPASSED = 4
VALUE_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}

Workflow = dict[str, Any]


def load(file: Path) -> Workflow:
    return json.loads(file.read_text(encoding="utf-8"))


def example(name: str) -> Workflow:
    return load(FOLDER / f"{name}.json")


def input_names(definition: dict[str, Any]) -> list[str]:
    """A node's inputs in the editor's order, hidden ones left out."""
    order = definition["input_order"]
    return [*order.get("required", ()), *order.get("optional", ())]


def options(definition: dict[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """An input's type, that of its widget if it takes several, and its options."""
    inputs = definition["input"]
    kind, *rest = {**inputs["required"], **inputs.get("optional", {})}[name]
    extra = rest[0] if rest else {}
    return extra.get("widgetType", kind) if isinstance(kind, str) else "COMBO", extra


def value_names(definition: dict[str, Any]) -> list[str]:
    """What each entry of a node's `widgets_values` belongs to, in order."""
    names = []
    for name in input_names(definition):
        kind, extra = options(definition, name)
        if kind in VALUE_TYPES and not extra.get("forceInput"):
            names.append(name)
            if extra.get("control_after_generate", name in ("seed", "noise_seed")):
                names.append("control_after_generate")
    return names


def values(node: dict[str, Any], definition: dict[str, Any]) -> dict[str, Any]:
    """A saved node's widget values by name."""
    names = value_names(definition)
    return dict(zip(names, node.get("widgets_values", [])[: len(names)], strict=True))


def computed(workflow: Workflow) -> list[dict[str, Any]]:
    """The nodes that a run of the workflow computes."""
    return [n for n in workflow["nodes"] if n["mode"] != BYPASSED and n["type"] != "MarkdownNote"]


def expected_prompt(workflow: Workflow, definitions: dict[str, Any]) -> dict[str, Any]:
    """What the editor has to queue, worked out from the file and the nodes' definitions."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in computed(workflow):
        inputs = values(node, definitions[node["type"]])
        inputs.pop("control_after_generate", None)
        for slot in node["inputs"]:
            if slot["link"] is not None:
                inputs[slot["name"]] = sources[slot["link"]]
        title = node.get("title") or definitions[node["type"]]["display_name"]
        content = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
        prompt[str(node["id"])] = content
    return prompt


def upstream(prompt: dict[str, Any], node: str) -> dict[str, Any]:
    """The part of a prompt that a node needs, the node included."""
    needed = {node: prompt[node]}
    for value in prompt[node]["inputs"].values():
        if isinstance(value, list):
            needed |= upstream(prompt, value[0])
    return needed


def essence(workflow: Workflow) -> dict[Any, Any]:
    """What makes two saved workflows the same to a person."""
    keys = ("type", "title", "pos", "mode", "flags", "widgets_values", "color")
    return {
        # Versions write nothing, or an empty list, where there is no widget.
        **{(node["id"], key): node.get(key) or None for node in workflow["nodes"] for key in keys},
        # Widgets that share a height leave rounding in it.
        **{
            (node["id"], "size"): [round(part) for part in node["size"]]
            for node in workflow["nodes"]
        },
        "links": sorted(workflow["links"]),
        "groups": [(g["title"], g["bounding"], g["color"]) for g in workflow["groups"]],
    }
