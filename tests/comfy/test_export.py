"""An erasure taken out of ComfyUI and brought back, by every way there is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sd
import folder_paths
import numpy as np
import pytest
import torch
from comfyui_pure.nodes import SaveCheckpoint, SaveDiffusers, SaveLoRA
from comfyui_pure.nodes.host.capture import capture_both
from comfyui_pure.nodes.host.patch import AS_FITTED, chosen_edit, patch
from comfyui_pure.nodes.host.sites import Sites
from comfyui_pure.pure_core.concepts import anchors_for
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.errors import PureError
from comfyui_pure.pure_core.export import read_history
from comfyui_pure.pure_core.families import ROLES, model_in_file
from comfyui_pure.pure_core.files.safetensors_file import SafetensorsFile
from comfyui_pure.pure_core.fitting import fit
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from PIL import Image
from safetensors.torch import load_file, save_file

from testbed.comfy.erasers import random_eraser
from testbed.comfy.families import FAMILIES, build
from testbed.comfy.server import ComfyServer, Run
from testbed.comfy.stock import (
    PIXELS,
    QUICK,
    QUICK_ERASING,
    Loaded,
    effective_weight,
    execute,
    load,
    sample,
    weight_key,
    with_lora,
)

ANCHORS = anchors_for("a ball", "object", "a star\na heart", "{}\na photo of {}")


class Source(NamedTuple):
    """A checkpoint that ComfyUI lists, as it is loaded, and an eraser fitted on it."""

    path: Path
    loaded: Loaded
    eraser: Eraser


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that ComfyUI also looks for checkpoints in, and an output folder beside it."""
    root = tmp_path_factory.mktemp("export")
    folder, output = root / "checkpoints", root / "output"
    folder.mkdir()
    before = folder_paths.folder_names_and_paths["checkpoints"]
    own = ([str(folder), *before[0]], before[1])
    own_output = folder_paths.get_output_directory()
    folder_paths.folder_names_and_paths["checkpoints"] = own
    folder_paths.set_output_directory(str(output))
    yield folder
    folder_paths.folder_names_and_paths["checkpoints"] = before
    folder_paths.set_output_directory(own_output)


@pytest.fixture(autouse=True)
def no_files_left(checkpoints: Path) -> Iterator[None]:
    """A checkpoint has 340 MB: a test's own go with it, those of fixtures stay."""

    def written() -> set[Path]:
        return {path for path in checkpoints.parent.rglob("*") if path.is_file()}

    before = written()
    yield
    for path in written() - before:
        path.unlink()


@pytest.fixture(scope="module")
def source(checkpoint: Path, checkpoints: Path) -> Source:
    """The shipped model in float32, so that nothing is rounded on the way."""
    path = checkpoints / "full.safetensors"
    tensors = load_file(checkpoint)
    wide = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(wide, path, metadata={"title": "small world"})
    loaded = load(path)
    forget, retain, _ = capture_both(loaded.model, loaded.clip, ANCHORS, QUICK)
    eraser = fit("pure", forget, retain, forget_energy=0.9999, retain_energy=0.3)
    return Source(path, loaded, eraser)


def save_checkpoint(source: Source, erasers: list[Eraser] | None = None, **change: Any) -> Path:
    given = {
        "ckpt_name": [source.path.name],
        "eraser": erasers or [source.eraser],
        "strength": [1.0],
        "edit": [AS_FITTED],
        "filename_prefix": ["checkpoints/erased"],
    }
    return Path(execute(SaveCheckpoint, **{**given, **change})[0])


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def edited_keys(eraser: Eraser, projections: tuple[str, ...] = ("to_k", "to_v")) -> set[str]:
    return {
        f"model.diffusion_model.{layer}.{projection}.weight"
        for layer in eraser.layers
        for projection in projections
    }


@pytest.mark.parametrize(("strength", "edit"), [(1.0, AS_FITTED), (0.6, "values"), (-1.0, "keys")])
def test_an_exported_checkpoint_is_the_patched_model(
    source: Source, strength: float, edit: str
) -> None:
    exported = save_checkpoint(source, strength=[strength], edit=[edit])
    patched = sample(
        patch(source.loaded.model, source.eraser.applied(strength, chosen_edit(edit))).model,
        source.loaded.clip,
    )
    loaded = load(exported)
    assert largest_difference(sample(loaded.model, loaded.clip), patched) == 0.0
    assert largest_difference(sample(*source.loaded[:2]), patched) > 0.01


def test_byte_for_byte_only_keys_and_values_change(source: Source, checkpoint: Path) -> None:
    for path in (source.path, checkpoint):
        exported = save_checkpoint(source, ckpt_name=[path.name])
        one, other = SafetensorsFile.open(path), SafetensorsFile.open(exported)
        assert list(one.entries.items()) == list(other.entries.items())
        assert one.metadata.items() < other.metadata.items()
        before = np.memmap(path, mode="r", offset=one.data_start)
        after = np.memmap(exported, mode="r", offset=other.data_start)
        changed = {
            entry.name
            for entry in one.entries.values()
            if not np.array_equal(before[entry.start : entry.end], after[entry.start : entry.end])
        }
        assert changed == edited_keys(source.eraser)
        (history,) = read_history(other.metadata)
        assert history["forget"] == ANCHORS.forget.record()
        assert history["concepts"] == ["a ball"]
        assert history["fingerprint"] == source.eraser.fingerprint


def test_several_erasers_are_applied_in_order(source: Source) -> None:
    halved = {name: layer.scaled(0.5) for name, layer in source.eraser.layers.items()}
    second = replace(source.eraser, layers=halved)
    exported = save_checkpoint(
        source, [source.eraser, second], strength=[0.5, 1.0], edit=["values", AS_FITTED]
    )
    patched = patch(source.loaded.model, source.eraser.applied(0.5, "values")).model
    patched = patch(patched, second).model
    loaded = load(exported)
    difference = largest_difference(
        sample(loaded.model, loaded.clip), sample(patched, source.loaded.clip)
    )
    assert difference == 0.0
    assert len(read_history(SafetensorsFile.open(exported).metadata)) == 2


@pytest.mark.parametrize("form", ["original", "diffusers"])
def test_a_file_of_a_unet_alone_is_exported_as_well(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    prefix = "model.diffusion_model."
    tensors = load_file(source.path)
    names = {name: name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    if form == "diffusers":
        model = model_in_file({name: tuple(t.shape) for name, t in tensors.items()}, "source")
        names = {name: model.diffusers_name(inside) for name, inside in names.items()}
    save_file({inside: tensors[name] for name, inside in names.items()}, tmp_path / "u.safetensors")
    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    exported = load_file(save_checkpoint(source, ckpt_name=["diffusion_models/u.safetensors"]))
    whole = load_file(save_checkpoint(source))
    assert exported.keys() == set(names.values())
    assert all(torch.equal(exported[inside], whole[name]) for name, inside in names.items())


def save_lora(model: Any, eraser: Eraser, dtype: str = "float32") -> dict[str, torch.Tensor]:
    (path,) = execute(
        SaveLoRA,
        model=[model],
        eraser=[eraser],
        strength=[1.0],
        edit=[AS_FITTED],
        dtype=[dtype],
        filename_prefix=["loras/erased"],
    )
    assert Path(path).parent.name == "loras"
    return load_file(path)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 5e-4)])
@pytest.mark.parametrize("upstream", [False, True])
def test_a_lora_at_any_strength_is_the_patch_at_that_strength(
    source: Source, dtype: str, tolerance: float, upstream: bool
) -> None:
    model = with_lora(source.loaded.model) if upstream else source.loaded.model
    state = save_lora(model, source.eraser, dtype)
    for strength in (1.0, 0.4, -1.0):
        loaded = comfy.sd.load_lora_for_models(model, None, state, strength, 0.0)[0]
        patched = patch(model, source.eraser.applied(strength)).model
        for site in Sites.of(model).sites:
            for role in ROLES:
                one = effective_weight(patched, weight_key(site, role))
                other = effective_weight(loaded, weight_key(site, role))
                assert (one - other).norm() < tolerance * one.norm(), (site.name, role)
        difference = largest_difference(
            sample(loaded, source.loaded.clip), sample(patched, source.loaded.clip)
        )
        assert difference < (1e-3 if dtype == "float32" else 5e-2)


def test_an_eraser_by_head_goes_every_way(source: Source) -> None:
    model = source.loaded.model
    eraser = replace(source.eraser, layers=random_eraser(model, by_head=True).layers)
    patched = sample(patch(model, eraser).model, source.loaded.clip)
    exported = load(save_checkpoint(source, [eraser]))
    assert largest_difference(sample(exported.model, exported.clip), patched) == 0.0
    state = save_lora(model, eraser)
    lora = comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)[0]
    for site in Sites.of(model).sites:
        for role in ROLES:
            one = effective_weight(patch(model, eraser).model, weight_key(site, role))
            other = effective_weight(lora, weight_key(site, role))
            assert (one - other).norm() < 1e-6 * one.norm(), (site.name, role)
    two = source._replace(eraser=eraser)
    folder, whole = save_diffusers(two), load_file(save_checkpoint(two))
    written = load_file(next(folder.rglob("*.safetensors")))
    expected = whole["model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"]
    actual = written["mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"]
    assert torch.equal(actual, expected)


def save_diffusers(source: Source) -> Path:
    (path,) = execute(
        SaveDiffusers,
        ckpt_name=[source.path.name],
        eraser=[source.eraser],
        strength=[1.0],
        edit=[AS_FITTED],
        filename_prefix=["diffusers/erased"],
    )
    return Path(path)


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, time steps and text of two rows."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, PIXELS // 8, PIXELS // 8, generator=generator)
    return latents, torch.tensor([10.0, 800.0]), torch.randn(2, 77, 768, generator=generator)


@torch.no_grad()
def in_comfy(path: Path, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The U-Net of a checkpoint, as ComfyUI runs it."""
    latents, time, text = inputs
    return load(path).model.model.diffusion_model(latents, time, context=text)


@torch.no_grad()
def test_diffusers_computes_what_comfyui_computes(
    source: Source, inputs: tuple[torch.Tensor, ...]
) -> None:
    unet = UNet2DConditionModel.from_pretrained(save_diffusers(source))
    assert unet.dtype == torch.float32
    erased = in_comfy(save_checkpoint(source), inputs)
    latents, time, text = inputs
    assert largest_difference(unet(latents, time, text).sample, erased) < 1e-4
    assert largest_difference(in_comfy(source.path, inputs), erased) > 1e-2


@torch.no_grad()
def test_diffusers_loads_the_lora(source: Source, inputs: tuple[torch.Tensor, ...]) -> None:
    folder = save_diffusers(source)
    config = UNet2DConditionModel.load_config(folder)
    unet = UNet2DConditionModel.from_config(config)
    prefix, tensors = "model.diffusion_model.", load_file(source.path)
    model = model_in_file({name: tuple(t.shape) for name, t in tensors.items()}, "source")
    plain = {
        model.diffusers_name(name.removeprefix(prefix)): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    unet.load_state_dict(plain)
    state = save_lora(source.loaded.model, source.eraser)
    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(state)
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
    latents, time, text = inputs
    erased = in_comfy(save_checkpoint(source), inputs)
    assert largest_difference(unet.eval()(latents, time, text).sample, erased) < 1e-4


NOT_FOR_DIFFUSERS = "SD x4 upscaler"
"""Its first attentions read text on some levels only, and its labels are a table."""


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != NOT_FOR_DIFFUSERS])
def test_every_family_has_diffusers_names_shapes_and_config(family: str) -> None:
    theirs = build(family, torch.device("meta"))
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    model = model_in_file(shapes, family)
    named = {model.diffusers_name(name): shape for name, shape in shapes.items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(model.diffusers_config())
    wanted = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    assert named == wanted
    back = model_in_file(named, family)
    assert back.prefix == "" and set(back.sites) == set(model.sites)
    for site in model.sites:
        for role in ROLES:
            inside = back.weight(site, role)
            assert model.diffusers_name(model.weight(site, role).tensor) == inside.tensor
            assert back.lora_rows(site, role).tensor == model.lora_rows(site, role).tensor
            assert back.diffusers_name(inside.tensor) == inside.tensor


def test_a_unet_that_diffusers_builds_otherwise_is_refused() -> None:
    theirs = build(NOT_FOR_DIFFUSERS, torch.device("meta"))
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    model = model_in_file(shapes, NOT_FOR_DIFFUSERS)
    assert len(model.sites) == FAMILIES[NOT_FOR_DIFFUSERS].layers
    with pytest.raises(PureError, match="Export a checkpoint instead"):
        model.diffusers_config()


def test_bad_requests_name_the_input_and_write_nothing(source: Source) -> None:
    output = Path(folder_paths.get_output_directory())
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    for prefix in ("", "../outside", "/tmp/x/y", "checkpoints/..", "a/../../b", "checkpoints/"):
        with pytest.raises(PureError, match="filename_prefix: expected a name inside"):
            save_checkpoint(source, filename_prefix=[prefix])
    with pytest.raises(PureError, match="ckpt_name: expected a file in models/checkpoints"):
        save_checkpoint(source, ckpt_name=["../../secret.safetensors"])
    few = replace(source.eraser, layers=dict(list(source.eraser.layers.items())[:3]))
    erased = patch(source.loaded.model, source.eraser).model
    with pytest.raises(PureError, match="Connect the wire that goes into PURE Patch"):
        save_lora(erased, source.eraser)
    for save in (
        lambda: save_checkpoint(source, [few]),
        lambda: save_lora(source.loaded.model, few),
    ):
        with pytest.raises(PureError, match="fitted on another architecture"):
            save()
    after = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    assert after == before


def test_a_cancelled_export_leaves_nothing_behind(source: Source) -> None:
    output = Path(folder_paths.get_output_directory())
    before = sorted(output.rglob("*"))
    for save in (save_checkpoint, save_diffusers):
        comfy.model_management.interrupt_current_processing(True)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            save(source)
    assert sorted(output.rglob("*")) == before


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def picture(name: str, model: list[Any], loader: str = "loader") -> dict[str, Any]:
    """Stock nodes from a model to a preview at node `name`; all use one seed."""
    return {
        f"{name} text": node("CLIPTextEncode", clip=[loader, 1], text="a red ball on a meadow"),
        f"{name} empty": node("CLIPTextEncode", clip=[loader, 1], text=""),
        f"{name} latent": node("EmptyLatentImage", width=PIXELS, height=PIXELS, batch_size=2),
        f"{name} sampler": node(
            "KSampler",
            model=model,
            positive=[f"{name} text", 0],
            negative=[f"{name} empty", 0],
            latent_image=[f"{name} latent", 0],
            seed=5,
            steps=4,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        f"{name} pixels": node("VAEDecode", samples=[f"{name} sampler", 0], vae=[loader, 2]),
        name: node("PreviewImage", images=[f"{name} pixels", 0]),
    }


def shown(server: ComfyServer, run: Run, name: str) -> np.ndarray:
    assert run.error is None, run.error
    files = (server.image(reference) for reference in run.images(name))
    return np.stack([np.asarray(Image.open(io.BytesIO(file)), dtype=int) for file in files])


@pytest.fixture
def served(comfy_server: ComfyServer, source: Source) -> Iterator[str]:
    """The float32 checkpoint among the server's own, under a name of its own; cleared after."""
    link = comfy_server.base / "models" / "checkpoints" / "test-export-full.safetensors"
    link.symlink_to(source.path)
    yield link.name
    link.unlink()
    for folder in ("checkpoints", "loras", "diffusion_models"):
        for left in (comfy_server.base / "output" / folder).glob("test-export*"):
            left.unlink()


def test_patch_checkpoint_lora_and_core_s_own_saving_give_one_picture(
    comfy_server: ComfyServer, served: str
) -> None:
    graph = {
        "loader": node("CheckpointLoaderSimple", ckpt_name=served),
        "erase": node(
            "PURE_EraseConcept",
            model=["loader", 0],
            clip=["loader", 1],
            concept="a ball",
            neighbours="a star\na heart",
            kind="object",
            method="pure",
            strength=1.0,
            templates="{}\na photo of {}",
            **QUICK_ERASING,
        ),
        "checkpoint": node(
            "PURE_SaveCheckpoint",
            ckpt_name=served,
            eraser=["erase", 1],
            strength=1.0,
            edit="as fitted",
            filename_prefix="checkpoints/test-export",
        ),
        "lora": node(
            "PURE_SaveLoRA",
            model=["loader", 0],
            eraser=["erase", 1],
            strength=1.0,
            edit="as fitted",
            dtype="float32",
            filename_prefix="loras/test-export",
        ),
        "core": node(
            "CheckpointSave",
            model=["erase", 0],
            clip=["loader", 1],
            vae=["loader", 2],
            filename_prefix="checkpoints/test-export-core",
        ),
        "core unet": node(
            "ModelSave", model=["erase", 0], filename_prefix="diffusion_models/test-export-core"
        ),
        **picture("before", ["loader", 0]),
        **picture("patched", ["erase", 0]),
    }
    first = comfy_server.run(graph)
    patched = shown(comfy_server, first, "patched")
    assert np.abs(shown(comfy_server, first, "before") - patched).max() > 20
    names = {
        key: Path(first.outputs[key]["text"][0]).relative_to(comfy_server.base / "output")
        for key in ("checkpoint", "lora")
    }
    output = comfy_server.base / "output"
    ours = load_file(output / names["checkpoint"])
    unet = {name for name in ours if name.startswith("model.diffusion_model.")}
    for folder in ("checkpoints", "diffusion_models"):
        cores = load_file(output / folder / "test-export-core_00001_.safetensors")
        assert unet <= cores.keys()
        assert all(torch.equal(cores[name], ours[name]) for name in unet), folder
    assert all(bar["max"] > 0 for bar in first.of_type("progress") if bar["node"] == "checkpoint")
    second = comfy_server.run(
        {
            "exported": node("CheckpointLoaderSimple", ckpt_name=names["checkpoint"].name),
            "core": node("CheckpointLoaderSimple", ckpt_name="test-export-core_00001_.safetensors"),
            "loader": node("CheckpointLoaderSimple", ckpt_name=served),
            "with lora": node(
                "LoraLoaderModelOnly",
                model=["loader", 0],
                lora_name=names["lora"].name,
                strength_model=1.0,
            ),
            **picture("from checkpoint", ["exported", 0], "exported"),
            **picture("from core", ["core", 0], "core"),
            **picture("from lora", ["with lora", 0]),
        }
    )
    for name, largest in (("from checkpoint", 0), ("from core", 0), ("from lora", 1)):
        assert np.abs(shown(comfy_server, second, name) - patched).max() <= largest, name
