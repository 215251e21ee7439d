"""A cheap fingerprint of a model with everything that was patched into it.

It tells whether two captures came from the same model. A LoRA, a merge, an attention patch or a
wrapper upstream makes another model, and so does another text encoder. Only a few values of every
tensor are read, so it takes milliseconds and never loads a weight that ComfyUI keeps on disk.

Weights are read from the modules and not from the state dict: loaders of quantised models put
names into it that the modules do not have, or stand-ins without values.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.sd import CLIP
from comfy.weight_adapter import WeightAdapterBase

from ...pure_core.model_identity import ModelIdentity
from ...pure_core.sketch import sketch
from .sites import PREFIX, Sites, display_name, is_plain
from .while_sampling import KEY

SAMPLES = 16
"""Values read from each tensor."""

_MAY_BE_UNSET = (".logit_scale", ".transformer.text_projection.weight")
"""Endings of a text encoder's weights that ComfyUI lets a file leave out (`CLIP.load_sd`). SD 1.x
files do: the weights then hold whatever was in that memory, and nothing reads them."""


def fingerprint(model: ModelPatcher, clip: CLIP | None = None) -> str:
    """Hex digest, equal for clones and reloads of one model in one precision, on any device."""
    digest = hashlib.sha256()
    _feed(digest, sorted({str(each.dtype) for each in model.model.diffusion_model.parameters()}))
    _feed_patcher(digest, model, PREFIX)
    if clip is not None:
        _feed(digest, (type(clip.tokenizer), type(clip.cond_stage_model)))
        _feed(digest, (clip.layer_idx, clip.tokenizer_options))
        _feed_patcher(digest, clip.patcher)
    return digest.hexdigest()[:32]


def identity(model: ModelPatcher, sites: Sites, clip: CLIP | None) -> ModelIdentity:
    """Which model and text encoder these are, with everything that was patched into them."""
    return ModelIdentity(
        name=display_name(model),
        family=sites.family.name,
        fingerprint=fingerprint(model, clip),
        precision=precision(model, sites),
        sketch=sketches(model, sites),
        patched=patched(model),
    )


def patched(model: ModelPatcher) -> bool:
    """Whether anything was patched into the diffusion model's weights or into what they give."""
    erased = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    in_weights = any(key.startswith(PREFIX) for key in model.patches)
    return bool(model.injections or erased) or in_weights


def precision(model: ModelPatcher, sites: Sites) -> str:
    """The types of the sites' values, as the model was loaded."""
    kinds = {_kind(_loaded(model, sites, site.name)) for site in sites.sites}
    return " and ".join(sorted(kinds))


def sketches(model: ModelPatcher, sites: Sites) -> dict[str, float]:
    """Site -> sketch of its value projection as loaded, without any patch; none if quantised."""
    loaded = {site: _loaded(model, sites, site.name) for site in sites.sites}
    if not all(map(is_plain, loaded.values())):
        return {}
    return {site.name: sketch(site.values.of(weight)) for site, weight in loaded.items()}


def _kind(weight: torch.Tensor) -> str:
    """The type of a weight's values, in words where they are quantised."""
    name = str(weight.dtype).removeprefix("torch.")
    return name if is_plain(weight) else f"quantised ({type(weight).__name__}, {name})"


def _loaded(model: ModelPatcher, sites: Sites, site: str) -> torch.Tensor:
    """The weight that holds a site's values, without any patch."""
    module = sites[site].values.module
    linear: Any = sites.net.get_submodule(module)
    weight: torch.Tensor = linear.weight
    return _unpatched(model, f"{PREFIX}{module}.weight", weight)


def _unpatched(model: ModelPatcher, key: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight as it was before ComfyUI patched it in its module."""
    if key in model.hook_backup:
        weight = model.hook_backup[key][0]
    elif key in model.backup:
        weight = model.backup[key].weight
    return weight


def _feed_patcher(digest: Any, model: ModelPatcher, prefix: str = "") -> None:
    """Add a model's weights below a prefix, and whatever was patched in or put around it."""
    with model.use_ejected():
        weights = dict(model.model.named_parameters(remove_duplicate=False))
    for key in sorted(each for each in weights if each.startswith(prefix)):
        weight = None if key.endswith(_MAY_BE_UNSET) else _unpatched(model, key, weights[key])
        _feed(digest, (key, weight, model.patches.get(key, [])))
    _feed(digest, model.object_patches)
    _feed(digest, model.model_options)
    _feed(digest, (_used(model.wrappers), _used(model.callbacks)))
    _feed(digest, (sorted(map(str, model.additional_models)), list(model.hook_patches.values())))
    if model.injections:  # a bypass LoRA: that it is there can be read, its weights cannot
        _feed(digest, model.injections)


def _used(attached: dict[str, dict[Any, list[Any]]]) -> dict[str, list[Any]]:
    """The wrappers or callbacks of a model by their place, in the order in which they act."""
    places = {
        place: [each for some in keys.values() for each in some] for place, keys in attached.items()
    }
    return {place: functions for place, functions in places.items() if functions}


def _feed(digest: Any, value: Any) -> None:
    """Add a value: tensors by shape and samples, code by its name and settings, containers by what
    they hold.
    """
    if isinstance(value, torch.Tensor) and hasattr(value, "__tensor_flatten__"):
        inner, _ = value.__tensor_flatten__()  # a quantised tensor: its numbers and their scales
        _feed(digest, (type(value), [getattr(value, name) for name in inner]))
    elif isinstance(value, torch.Tensor):
        digest.update(f"tensor {tuple(value.shape)}".encode())
        digest.update(_samples(value))
    elif isinstance(value, WeightAdapterBase):
        _feed(digest, (type(value), value.weights))
    elif isinstance(value, torch.nn.Module):
        # Its parameters may hold patches just now. Buffers and bases tell noise schedules apart.
        _feed(digest, (type(value).__mro__, dict(value.named_buffers())))
    elif isinstance(value, dict):
        digest.update(b"{")
        for key in sorted(value, key=str):
            _feed(digest, (str(key), value[key]))
        digest.update(b"}")
    elif isinstance(value, (list, tuple)):
        digest.update(b"(")
        for each in value:
            _feed(digest, each)
        digest.update(b")")
    elif value is None or isinstance(value, (bool, int, float, str)):
        digest.update(repr(value).encode() + b";")
    else:
        _feed(digest, _code(value))


def _code(value: Any, within: tuple[int, ...] = ()) -> tuple[Any, ...]:
    """A function's or an object's name, and what it was made with.

    Of a function these are its default values and the variables around it, of an object what its
    class was called with. Everything else may be a state that changes while sampling, and so may
    lists and dictionaries. `within` is what it is held by.
    """
    if isinstance(value, MethodType):
        return (value.__qualname__, _code(value.__self__, within))
    named = value if hasattr(value, "__qualname__") else type(value)
    name = f"{named.__module__}.{named.__qualname__}"
    if id(value) in within:
        return (name,)
    inside = (*within, id(value))
    held = {key: _setting(each, inside) for key, each in _made_with(value).items()}
    settings = {key: each for key, each in held.items() if each is not None}
    return (name, settings) if settings else (name,)


def _made_with(value: Any) -> dict[str, Any]:
    """Everything that a function or an object got when it was made, by name."""
    if isinstance(value, functools.partial):
        places = {str(index): each for index, each in enumerate(value.args)}
        return {"function": value.func, **places, **value.keywords}
    if isinstance(value, FunctionType):
        names, cells = value.__code__.co_freevars, value.__closure__ or ()
        around = {name: _content(cell) for name, cell in zip(names, cells, strict=True)}
        defaults = {f"default {i}": each for i, each in enumerate(value.__defaults__ or ())}
        return {**around, **defaults, **(value.__kwdefaults__ or {})}
    if isinstance(value, (type, BuiltinFunctionType)) or not hasattr(value, "__dict__"):
        return {}
    known = _parameters(type(value))
    return {name: each for name, each in vars(value).items() if name in known}


def _setting(value: Any, within: tuple[int, ...]) -> Any:
    """Numbers, texts and tensors as they are, code as `_code`; None for anything else."""
    if isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value
    if isinstance(value, (FunctionType, MethodType, functools.partial)):
        return _code(value, within)
    if isinstance(value, tuple):
        return tuple(_setting(each, within) for each in value)
    return None


def _content(cell: Any) -> Any:
    """Of a closure's variable; it may not be set yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _parameters(kind: type) -> set[str]:
    """What a class is called with."""
    try:
        return set(inspect.signature(kind).parameters)
    except (TypeError, ValueError):  # written in C
        return set()


def _samples(tensor: torch.Tensor) -> bytes:
    """A few evenly spaced values as float32; none of a tensor without values."""
    tensor = tensor.detach().as_subclass(torch.Tensor)
    if tensor.numel() == 0 or tensor.is_meta:
        return b""
    step = max(1, tensor.numel() // SAMPLES)
    values = tensor.reshape(-1)[::step][:SAMPLES]
    return values.to("cpu", torch.float32).numpy().tobytes()
