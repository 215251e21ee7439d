"""PURE for ComfyUI: erase a concept from a text-to-image model, keep its neighbours."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
