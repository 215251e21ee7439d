"""Model families: one file each, found by being here.

`site.py` says what a family has to give; `CONTRIBUTING.md` how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from torch import nn

from ..errors import ModelFileError
from .site import (
    ROLES,
    Family,
    FileRows,
    LatentGeometry,
    Masks,
    ModelFile,
    Role,
    Rows,
    Site,
    Stream,
)

__all__ = [
    "FAMILIES",
    "ROLES",
    "Family",
    "FileRows",
    "LatentGeometry",
    "Masks",
    "ModelFile",
    "Role",
    "Rows",
    "Site",
    "Stream",
    "family_named",
    "family_of",
    "model_in_file",
]


def _found() -> dict[str, Family]:
    modules = (import_module(f"{__name__}.{each.name}") for each in iter_modules(__path__))
    families: list[Family] = [each.FAMILY for each in modules if hasattr(each, "FAMILY")]
    return {family.name: family for family in families}


FAMILIES = _found()
"""Name -> family."""


def family_of(net: nn.Module) -> Family | None:
    """The family of a diffusion model, or None if it is of none that is known."""
    return next((family for family in FAMILIES.values() if family.has(net)), None)


def family_named(name: str) -> Family | None:
    """A family by its name; None if this version does not know it."""
    return FAMILIES.get(name)


def known_models() -> str:
    """The models of all families, for messages."""
    return "; ".join(family.models for family in FAMILIES.values())


def model_in_file(shapes: Mapping[str, tuple[int, ...]], where: str) -> ModelFile:
    """The diffusion model among all tensors of a file called `where`.

    Raises:
        ModelFileError: no family recognises one.
    """
    found = (family.in_file(shapes) for family in FAMILIES.values())
    model = next((each for each in found if each is not None), None)
    if model is None:
        example = f", for example '{next(iter(shapes))}'" if shapes else ""
        raise ModelFileError(
            f"Expected a model that reads text through cross-attention in '{where}', found none "
            f"among its {len(shapes)} tensors{example}. Supported: {known_models()}. LoRAs, text "
            "encoders and VAEs have none."
        )
    return model
