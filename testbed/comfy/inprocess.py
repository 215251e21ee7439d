"""ComfyUI inside the test process: no server, the real modules, the plugin as a package.

`enter()` makes `comfy`, `folder_paths`, `execution` and ComfyUI's `nodes` importable and loads the
checkout as the package `comfyui_pure`. Tests import the plugin by that name alone: the checkout's
own `nodes/` has the name of ComfyUI's `nodes.py`, and a second copy of a class is another class.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from dev.launch import ROOT, enter_comfy

PLUGIN = "comfyui_pure"


def load_plugin() -> ModuleType:
    """The checkout as package `comfyui_pure`, imported once."""
    if PLUGIN not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PLUGIN, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[PLUGIN] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[PLUGIN]
            raise
    return sys.modules[PLUGIN]


def enter() -> ModuleType:
    """Enter ComfyUI and return the plugin package; safe to call again."""
    enter_comfy()
    return load_plugin()
