"""The saving nodes with names, folders, options and models that are not as usual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy.cli_args import args
from comfyui_pure.nodes import (
    LoadEraser,
    SaveActivations,
    SaveCheckpoint,
    SaveDiffusers,
    SaveEraser,
    SaveLoRA,
)
from comfyui_pure.nodes.host.capture import capture
from comfyui_pure.nodes.host.identity import identity
from comfyui_pure.nodes.host.patch import AS_FITTED, patch
from comfyui_pure.nodes.host.sites import Sites
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.errors import EraserError, FileNameError, FolderError, ModelFileError
from comfyui_pure.pure_core.export import read_history
from comfyui_pure.pure_core.files.safetensors_file import SafetensorsFile
from comfyui_pure.pure_core.fitting import fit
from safetensors.torch import load_file, save_file

from testbed.comfy.erasers import random_eraser
from testbed.comfy.stock import QUICK, execute, load, with_lora

SECRET = "a very secret ball"


@pytest.fixture
def folders(tmp_path: Path, checkpoint: Path) -> Iterator[Path]:
    """A place for everything that is saved, with the shipped model among the checkpoints."""
    own_output = folder_paths.get_output_directory()
    names = ("erasers", "activations", "checkpoints")
    before = {name: folder_paths.folder_names_and_paths[name] for name in names}
    for name in names:
        (tmp_path / name).mkdir()
        folder_paths.folder_names_and_paths[name] = ([str(tmp_path / name)], before[name][1])
    (tmp_path / "output").mkdir()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    save_file(load_file(checkpoint), tmp_path / "checkpoints" / "model.safetensors")
    yield tmp_path
    folder_paths.folder_names_and_paths.update(before)
    folder_paths.set_output_directory(own_output)


@pytest.fixture
def without_metadata() -> Iterator[None]:
    """ComfyUI as --disable-metadata starts it."""
    before, args.disable_metadata = args.disable_metadata, True
    yield
    args.disable_metadata = before


def export(node, eraser, prefix: str, **more):
    given = {
        "ckpt_name": ["model.safetensors"],
        "eraser": [eraser],
        "strength": [1.0],
        "edit": [AS_FITTED],
        "filename_prefix": [prefix],
        "any_source": [True],
    }
    return node.EXECUTE_NORMALIZED(**{**given, **more})


@pytest.mark.parametrize("prefix", ["a\0b", "n" * 300, "n" * 300 + "/name", "ok/" + "é" * 200])
@pytest.mark.parametrize("node", ["eraser", "checkpoint", "diffusers"])
def test_names_that_no_file_can_have(folders, loaded, prefix, node):
    eraser = random_eraser(loaded.model)
    before = sorted(folders.rglob("*"))
    with pytest.raises(FileNameError, match="filename_prefix: expected a name that a file"):
        if node == "eraser":
            execute(SaveEraser, eraser=eraser, filename_prefix=prefix)
        else:
            export(SaveCheckpoint if node == "checkpoint" else SaveDiffusers, eraser, prefix)
    assert sorted(folders.rglob("*")) == before


@pytest.mark.parametrize("node", ["eraser", "checkpoint", "diffusers"])
def test_a_folder_that_is_a_file_is_named(folders, loaded, node):
    eraser = random_eraser(loaded.model)
    for place in ("erasers", "output"):
        (folders / place / "taken").write_text("")
    with pytest.raises(FolderError, match=r"Nothing was written to .*taken' is not a folder"):
        if node == "eraser":
            execute(SaveEraser, eraser=eraser, filename_prefix="taken/name")
        else:
            export(SaveCheckpoint if node == "checkpoint" else SaveDiffusers, eraser, "taken/name")


def test_an_eraser_carries_rows_only_if_asked_to(folders, loaded):
    forget = capture(loaded.model, loaded.clip, AnchorSet.written([["a ball"]]), QUICK)
    eraser = fit("pure", forget, None)
    said = {}
    for joinable in (None, False, True):
        more = {} if joinable is None else {"joinable": joinable}
        (path,) = execute(SaveEraser, eraser=eraser, filename_prefix="e", **more)
        found, said[joinable] = execute(LoadEraser, eraser_name=Path(path).name)
        assert found.joinable == bool(joinable)
    assert said[None] == said[False]
    assert "It cannot be joined with others" in said[False]
    assert "It can be joined with others" in said[True]


def test_an_eraser_that_cannot_be_joined_is_not_saved_as_joinable(folders, loaded):
    forget = capture(loaded.model, loaded.clip, AnchorSet.written([["a ball"]]), QUICK)
    limited = fit("pure", forget, None).limited(1)
    before = sorted(folders.rglob("*"))
    with pytest.raises(EraserError, match=r"'a ball'.* because max_rank was applied.* max_rank 0"):
        execute(SaveEraser, eraser=limited, filename_prefix="e", joinable=True)
    assert sorted(folders.rglob("*")) == before
    execute(SaveEraser, eraser=limited, filename_prefix="e")


def test_without_metadata_no_prompt_is_written(folders, loaded, without_metadata):
    anchors = AnchorSet.written([[SECRET]])
    forget = capture(loaded.model, loaded.clip, anchors, QUICK)
    eraser = fit("pure", forget, None)
    written = [
        *execute(SaveEraser, eraser=eraser, filename_prefix="e", joinable=True),
        *execute(SaveActivations, activations=forget, filename_prefix="a"),
        *export(SaveCheckpoint, eraser, "c").result,
        *execute(
            SaveLoRA,
            model=[loaded.model],
            eraser=[eraser],
            strength=[1.0],
            edit=[AS_FITTED],
            dtype=["float32"],
            filename_prefix=["l"],
        ),
    ]
    (folder,) = export(SaveDiffusers, eraser, "d").result
    written.append(str(Path(folder) / "diffusion_pytorch_model.safetensors"))
    assert len(written) == 5
    for path in written:
        assert SECRET.encode() not in Path(path).read_bytes()
    (record,) = read_history(SafetensorsFile.open(written[2]).metadata)
    assert record["fingerprint"] == eraser.fingerprint


def test_with_metadata_they_are(folders, loaded):
    forget = capture(loaded.model, loaded.clip, AnchorSet.written([[SECRET]]), QUICK)
    (path,) = execute(SaveEraser, eraser=fit("pure", forget, None), filename_prefix="e")
    assert SECRET.encode() in Path(path).read_bytes()


def test_an_eraser_fitted_under_a_lora_is_refused_on_the_bare_file(folders, checkpoint):
    bare, clip, _ = load(folders / "checkpoints" / "model.safetensors")
    under_lora, erased = with_lora(bare), patch(bare, random_eraser(bare)).model
    for model, patched in ((bare, False), (under_lora, True), (erased, True)):
        found = identity(model, Sites.of(model), clip)
        assert found.patched is patched
        made = random_eraser(bare)
        eraser = replace(made, provenance=replace(made.provenance, model=found))
        if patched:
            with pytest.raises(ModelFileError, match=r"with a LoRA, a merge .*PURE Save LoRA"):
                export(SaveCheckpoint, eraser, "c", any_source=[False])
        else:
            export(SaveCheckpoint, eraser, "c", any_source=[False])
    assert len(list((folders / "output").iterdir())) == 1


def test_what_became_of_averaged_weights_is_shown_and_the_file_loads(folders):
    path = folders / "checkpoints" / "model.safetensors"
    tensors = load_file(path)
    inner = [name for name in tensors if name.startswith("model.diffusion_model.")]
    for name in inner:
        tensors["model_ema." + name.removeprefix("model.").replace(".", "")] = tensors[name].clone()
    save_file(tensors, path)
    loaded = load(path)
    made = export(SaveCheckpoint, random_eraser(loaded.model), "c")
    assert "They are erased, too." in made.ui.as_dict()["text"][0]
    after = load_file(made.result[0])
    for name in inner:
        copy = "model_ema." + name.removeprefix("model.").replace(".", "")
        assert torch.equal(after[name], after[copy])
    load(Path(made.result[0]))
