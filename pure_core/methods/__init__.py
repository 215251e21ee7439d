"""The methods that turn captured activations or encoded prompts into an eraser, by name.

One file each, found by being here and having a `METHOD`: see `method.py`. `fitting.py` runs one.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

from .method import ActivationMethod, Method, Setting, TextMethod

__all__ = ["METHODS", "TEXT_METHODS", "ActivationMethod", "Method", "Setting", "TextMethod"]

M = TypeVar("M", bound=Method)

ORDER = (
    "pure",
    "ridge",
    "mosaic",
    "leace",
    "calibrated tokens",
    "uce",
    "cure",
    "rece",
    "speed",
    "oce",
)
"""Names that come first, in the order of the menus; others follow by name."""


def _found(kind: type[M]) -> dict[str, M]:
    modules = (import_module(f"{__name__}.{each.name}") for each in iter_modules(__path__))
    methods = [each.METHOD for each in modules if isinstance(getattr(each, "METHOD", None), kind)]
    place = {name: number for number, name in enumerate(ORDER)}
    methods.sort(key=lambda method: (place.get(method.name, len(ORDER)), method.name))
    return {method.name: method for method in methods}


METHODS = _found(ActivationMethod)
"""Name -> method on activations."""

TEXT_METHODS = _found(TextMethod)
"""Name -> method on encoded prompts."""
