"""What exporting needs of ComfyUI: its folders, its progress bar and a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...pure_core.eraser import Eraser
from ...pure_core.errors import ModelFileError
from ...pure_core.export import export_lora, lora_tensors
from ...pure_core.export.lora import COMFYUI
from ...pure_core.export.provenance import export_metadata
from ...pure_core.export.source import said_of_shared
from ...pure_core.families import ROLES, Role, model_in_file
from .files import SUFFIX, numbered, state, with_prompts
from .identity import fingerprint
from .patch import EraserAdapter, require_same_architecture
from .progress import progress
from .sites import EffectiveWeights, ModelError, Sites, display_name, patch_keys, tensor_of
from .while_sampling import KEY

CHECKPOINTS, UNETS = "checkpoints", "diffusion_models"


def source_names() -> list[str]:
    """The .safetensors files in models/checkpoints, and after them those in diffusion_models."""
    unets = (f"{UNETS}/{name}" for name in folder_paths.get_filename_list(UNETS))
    names = [*folder_paths.get_filename_list(CHECKPOINTS), *unets]
    return [name for name in names if name.lower().endswith(SUFFIX)]


def source(name: str) -> Path:
    """The file of a name in `source_names`.

    Raises:
        ModelFileError: there is none.
    """
    folder, inside = CHECKPOINTS, name
    path = folder_paths.get_full_path(folder, inside)
    if path is None and name.startswith(f"{UNETS}/"):
        folder, inside = UNETS, name.removeprefix(f"{UNETS}/")
        path = folder_paths.get_full_path(folder, inside)
    if path is None:
        raise ModelFileError(
            f"ckpt_name: expected a file in models/{folder}, found no '{inside}'. Reload the node "
            "list if it was added or renamed."
        )
    return Path(path)


def state_of(name: str | None) -> str:
    """Changes when the file does, so that ComfyUI exports again; a linked name is not known yet."""
    if name is None:
        return ""
    return state(source(name))


def target(filename_prefix: str, suffix: str) -> Path:
    """A free name in the output folder, with a counter; its folder exists afterwards.

    Raises:
        FileNameError, FolderError: as `numbered` does.
    """
    root = Path(folder_paths.get_output_directory())
    return numbered(root, "the output folder", filename_prefix, suffix)


def export(
    write: Callable[..., str],
    name: str,
    target: Path,
    erasers: Sequence[Eraser],
    any_source: bool,
) -> str:
    """Let `export_checkpoint` or `export_diffusers` make the target from a file in `source_names`.

    Returns:
        What they say of it.

    Raises:
        EraserError, ModelFileError: as they do.
    """
    return write(source(name), target, erasers, any_source, progress(), with_prompts())


@torch.no_grad()
def save_lora(
    model: ModelPatcher,
    erasers: Sequence[Eraser],
    dtype: torch.dtype,
    target: Path,
    form: str = COMFYUI,
) -> str:
    """Write the LoRA that does to this model, patches included, what the erasers do.

    Returns:
        What is to be said of it.

    Raises:
        ModelError: erasers of another architecture, a model that is erased already, or quantised
            weights.
        EraserError, ModelFileError: as `lora_tensors` and `export_lora`.
    """
    sites = Sites.of(model)
    for eraser in erasers:
        require_same_architecture(model, sites, eraser)
    sites.require_plain_weights()
    _require_not_erased(model, sites)
    state = model.model.diffusion_model.state_dict()
    names = model_in_file({name: tuple(each.shape) for name, each in state.items()}, "the model")
    weights = _WithProgress(model, sites)
    tensors = lora_tensors(names, erasers, weights, dtype, form)
    made = export_metadata(erasers, display_name(model), fingerprint(model), prompts=with_prompts())
    export_lora(target, tensors, made)
    return said_of_shared(erasers, names)


class _WithProgress(EffectiveWeights):
    """The model's weights, with a progress bar over the keys and values that are read."""

    def __init__(self, model: ModelPatcher, sites: Sites) -> None:
        super().__init__(model, sites)
        self._update, self._done = progress(), 0

    def weight(self, site: str, role: Role) -> Tensor:
        self._done += 1
        self._update(self._done, len(ROLES) * len(self.sites.sites))
        return super().weight(site, role)


def _require_not_erased(model: ModelPatcher, sites: Sites) -> None:
    """Raise ModelError if an eraser is in the model already: the LoRA would do next to nothing."""
    rows = (site.rows(role) for site in sites.sites for role in ROLES)
    tensors = {tensor_of(key) for each in rows for key in patch_keys(each)}
    in_weights = any(_holds_eraser(model.patches.get(name, ())) for name in tensors)
    if in_weights or model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        raise ModelError(
            "model: expected the model before it is erased, got one that PURE Patch has erased "
            "from, or a merge with one. Connect the wire that goes into PURE Patch or PURE Erase "
            "Concept."
        )


def _holds_eraser(patches: Any) -> bool:
    """Whether an eraser is among a weight's patches. Those of merged models lie inside others."""
    if isinstance(patches, (list, tuple)):
        return any(map(_holds_eraser, patches))
    return isinstance(patches, EraserAdapter)
