"""Measuring small transformers: captures, samples, and what they should be, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comfyui_pure.nodes.host.capture import batches, sampling
from comfyui_pure.nodes.host.capture.run import capture_encoded
from comfyui_pure.nodes.host.conditioning import Encoded, adapted, as_entering, stack
from comfyui_pure.nodes.host.export import save_lora
from comfyui_pure.nodes.host.identity import fingerprint, precision, sketches
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.sites import EffectiveWeights, Sites
from comfyui_pure.nodes.host.text import text_model
from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.export import export_checkpoint
from comfyui_pure.pure_core.families import Site
from comfyui_pure.pure_core.families.joint import JointTransformer
from comfyui_pure.pure_core.model_identity import ModelIdentity
from comfyui_pure.pure_core.text import TextTask, TextVectors
from comfyui_pure.pure_core.trajectory import Trajectory
from safetensors.torch import load_file, save_file
from torch import Tensor

import comfy.sample
import comfy.samplers
import comfy.sd
from comfy.model_patcher import ModelPatcher
from testbed.comfy import transformers
from testbed.comfy.full_size import MODELS
from testbed.comfy.transformers import ALL, TOKENS, encoded, encodings, loaded_again

ANCHORS = AnchorSet.written([["a"], ["b"], ["c"], ["d"]])
EVERY = ALL | MODELS
"""Small ones and full-size ones, by name."""


def trajectory(name: str, **change: Any) -> Trajectory:
    size = EVERY[name].size
    one = Trajectory(steps=4, run_steps=1, latents=2, cfg=1.0, width=size, height=size)
    return one._replace(**change)


def captured(name: str, model: ModelPatcher, prompts: list[Encoded], **change: Any) -> Activations:
    """Of one anchor for each prompt; the last is the empty one."""
    made = ModelIdentity(
        "x",
        EVERY[name].family,
        fingerprint(model),
        precision(model, Sites.of(model)),
        sketches(model, Sites.of(model)),
    )
    *given, empty = prompts
    anchors = ANCHORS[: len(given)]
    return capture_encoded(model, given, empty, anchors, trajectory(name, **change), made)


def as_captured(name: str, model: ModelPatcher, prompts: list[Encoded], **change: Any) -> None:
    """The model calls of `captured`, with nothing attached."""
    *given, empty = (adapted(model, each) for each in prompts)
    sites = Sites.of(model)
    run = sampling.for_model(trajectory(name, **change), model, sites)
    noise = sampling.starting_noise(model, sites, run)
    sigmas = sampling.noise_levels(model, run)
    size = batches.rows_per_call(model, noise, run.cfg)
    for batch in batches.batches(given, run.latents, size):
        sampling.sample(model.clone(), run, batch, noise, given, empty, sigmas, lambda *_: None)


def sampled(name: str, model: ModelPatcher, steps: int = 2) -> Tensor:
    """A latent after so many steps."""
    prompt, empty = (adapted(model, each) for each in encodings(EVERY[name], 2))
    sites = Sites.of(model)
    geometry = sites.family.latent(sites.net)
    shape = (1, *geometry.cells(EVERY[name].size, EVERY[name].size))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.KSampler(
        model, steps=steps, device=model.load_device, sampler="euler", scheduler="simple"
    ).sigmas
    latent: Tensor = comfy.sample.sample_custom(
        model.clone(),
        noise,
        4.0,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        stack([prompt]),
        stack([empty]),
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=0,
    )
    return latent


def weights(model: ModelPatcher) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in model.model.diffusion_model.state_dict().items()}


def hooks(model: ModelPatcher) -> int:
    modules = model.model.diffusion_model.modules()
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules)


@contextmanager
def untouched(model: ModelPatcher) -> Iterator[None]:
    """Nothing of the model may have changed when the block ends."""
    before, patches = weights(model), dict(model.patches)
    yield
    model.unpatch_model()
    after = weights(model)
    assert before.keys() == after.keys() and patches == model.patches and hooks(model) == 0
    assert all(torch.equal(before[name], after[name]) for name in before)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.double().norm())


def runs(site: Site) -> int:
    """How often its attention is run while it is captured: again, for the text's part alone."""
    return 2 if site.part == "text" and site.name.endswith("cross_attn") else 1


@contextmanager
def in_float64(model: ModelPatcher) -> Iterator[dict[str, list[Tensor]]]:
    """Site -> h of every call, (rows, positions, d), recomputed in float64.

    Of a cross-attention by the same modules; where text and picture share it, from the queries,
    keys and values that it was called with, by the formula.
    """
    if isinstance(Sites.of(model).family, JointTransformer):
        with _joint_in_float64(model) as found:
            yield found
    else:
        with _cross_in_float64(model) as found:
            yield found


IMAGE_FIRST = ("hidream", "lens", "joyimage", "mochi", "ernie")
"""Families in which the picture's tokens come before the text's."""


def _image_first(family: str) -> bool:
    return family in IMAGE_FIRST or (family == "hunyuan_video" and transformers.OLD)


@contextmanager
def _joint_in_float64(model: ModelPatcher) -> Iterator[dict[str, list[Tensor]]]:
    sites = Sites.of(model)
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites.sites}
    geometry, family = sites.family.latent(sites.net), sites.family.name
    state = {"positions": 0, "next": 0}

    def began(_module: Any, args: tuple[Any, ...]) -> None:
        *_, height, width = args[0].shape
        frames = -(-args[0].shape[2] // geometry.patch_frames) if args[0].ndim == 5 else 1
        positions = frames * height * width // geometry.patch**2
        state["cells"] = positions
        if getattr(sites.net, "pad_tokens_multiple", None):  # Z-Image fills both up
            positions += -positions % 32
        state.update(positions=positions, next=0)

    def attended(attention: Any, *args: Any, **kwargs: Any) -> Any:
        q, v = args[0], args[2]
        axis = 2 if kwargs.get("skip_reshape") else 1
        queries, tokens = q.shape[axis], v.shape[axis]
        picture = state["positions"]
        # neither among text alone, nor among the picture, nor the second call for the text's part
        if queries == tokens > max(picture, TOKENS) and tokens - picture >= TOKENS - 2:
            seen = slice(0, picture) if _image_first(family) else slice(tokens - picture, tokens)
            values = v[:, :, seen] if axis == 2 else v[:, seen]
            if bool(values.any()):
                site = sites.sites[state["next"]]
                state["next"] += 1
                h = _text_part(site, seen, axis, *args, **kwargs)
                found[site.name].append(h[:, : state["cells"]])
        return attention(*args, **kwargs)

    options = model.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = attended
    handle = sites.net.register_forward_pre_hook(began)
    try:
        with _spied_ernie(family, attended):
            yield found
    finally:
        handle.remove()
        del options["optimized_attention_override"]


@contextmanager
def _spied_ernie(family: str, attended: Any) -> Iterator[None]:
    """ERNIE-Image passes no options to its attention."""
    if family != "ernie":
        yield
        return
    import comfy.ldm.ernie.model as module

    plain = module.optimized_attention
    module.optimized_attention = partial(attended, plain)
    try:
        yield
    finally:
        module.optimized_attention = plain


def _text_part(
    site: Site,
    picture: slice,
    axis: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) over all tokens, times the text's values: (rows, positions, d)."""
    if axis == 1:
        q, k, v = (each.flatten(2).unflatten(2, (-1, site.head_dim)) for each in (q, k, v))
        q, k, v = (each.movedim(2, 1) for each in (q, k, v))
    q, k, v = q.double(), k.double(), v.double()
    k, v = (each.repeat_interleave(heads // each.shape[1], 1) for each in (k, v))
    scores = q[:, :, picture] @ k.mT / site.head_dim**0.5
    if mask is not None:
        mask = mask.double() if mask.ndim == 4 else mask.double()[:, None]
        scores = scores + (mask[:, :, picture] if mask.shape[2] > 1 else mask)
    weights = scores.softmax(-1)
    weights[..., picture] = 0
    h = (weights @ v).movedim(1, 2)
    groups = h.unflatten(2, (site.value_heads, -1)).mean(3)
    return groups.flatten(2)


@contextmanager
def _cross_in_float64(model: ModelPatcher) -> Iterator[dict[str, list[Tensor]]]:
    sites = Sites.of(model)
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites.sites}
    handles = []

    def wide(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(wide(each) for each in value)
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if floats else value

    def again(site: Any, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        twin = copy.deepcopy(module)
        for each in twin.modules():
            each._forward_hooks.clear(), each._forward_pre_hooks.clear()
        twin.double()
        if hasattr(twin, "v_img"):  # of the text's part alone
            twin.v_img.register_forward_hook(lambda _, inputs, out: torch.zeros_like(out))
        out = twin.get_submodule(site.out.removeprefix(f"{site.name}."))
        out.register_forward_pre_hook(lambda _, inputs: found[site.name].append(inputs[0]))
        twin(*map(wide, args), **{name: wide(each) for name, each in kwargs.items()})

    for site in sites.sites:
        module = sites.net.get_submodule(site.name)
        hook = partial(again, site)
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def batch_sizes(model: ModelPatcher) -> Iterator[list[int]]:
    """How many rows each call of the diffusion model has, while the block runs."""
    sizes: list[int] = []

    def note(_: Any, args: tuple[Any, ...]) -> None:
        picture = args[0][0] if isinstance(args[0], list) else args[0]  # beside its sound
        sizes.append(len(picture))

    handle = model.model.diffusion_model.register_forward_pre_hook(note)
    try:
        yield sizes
    finally:
        handle.remove()


class Exported(NamedTuple):
    """What comes of an exported file."""

    model: ModelPatcher
    """Loaded from it."""

    changed: set[str]
    """Its tensors that differ from the source's."""


PREFIX = "model.diffusion_model."
"""Of the model's weights in a checkpoint."""


def exported(name: str, model: ModelPatcher, eraser: Eraser, folder: Path) -> Exported:
    """Write the model and the erased one as checkpoints into a folder, and load the second."""
    source, target = folder / "source.safetensors", folder / "erased.safetensors"
    save_file({PREFIX + key: each for key, each in weights(model).items()}, source)
    export_checkpoint(source, target, [eraser])
    before, after = load_file(source), load_file(target)
    changed = {key for key, each in before.items() if not torch.equal(each, after[key])}
    own = {key.removeprefix(PREFIX): each for key, each in after.items()}
    return Exported(loaded_again(name, own), changed)


def lora_error(model: ModelPatcher, eraser: Eraser, folder: Path) -> float:
    """How far keys and values, weights and biases, are from the patch's with the eraser's LoRA in
    the stock loader at strength 1 and a half: the worst of all sites, relative.
    """
    path = folder / "lora.safetensors"
    save_lora(model, [eraser], torch.float32, path)
    file, sites, worst = load_file(path), Sites.of(model), 0.0
    for strength in (1.0, 0.5):
        lora = comfy.sd.load_lora_for_models(model, None, file, strength, 0.0)[0]
        wanted = patch(model, eraser.applied(strength)).model
        one, other = (EffectiveWeights(each, sites) for each in (lora, wanted))
        for site in sites.sites:
            for role in ("keys", "values"):
                weight, bias = other.weight(site.name, role), other.bias(site.name, role)
                worst = max(worst, relative(one.weight(site.name, role), weight.double()))
                if bias is not None:
                    worst = max(worst, relative(one.bias(site.name, role), bias.double()))
    return worst


def made_up(name: str, model: ModelPatcher) -> TextTask:
    """Of made-up encodings: no start token, an end token, one token of padding."""

    sites = Sites.of(model)

    def read(prompts: Sequence[str], seed: int) -> TextVectors:
        given = [adapted(model, each).tokens for each in encoded(name, len(prompts), seed)]
        entering = [as_entering(model, sites, each)[0, :TOKENS] for each in given]
        vectors = tuple(each.double() for each in entering)
        ends = (0 if prompts == [""] else TOKENS - 2,) * len(given)
        return TextVectors(AnchorSet.written([prompts]), vectors, ends, 0)

    return TextTask(
        forget=read(["a fox"], 0),
        anchor=read(["a thing"], 1),
        retain=read(["a cat", "a mill"], 2),
        empty=read([""], 3),
        model=text_model(model, sites, None),
    )
