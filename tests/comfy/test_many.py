"""Several concepts, saved activations and chosen layers, through the nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfyui_pure.nodes import (
    Capture,
    CombineErasers,
    ConcatenateActivations,
    EraseConcept,
    Fit,
    LoadActivations,
    Patch,
    SaveActivations,
)
from comfyui_pure.nodes.host.sites import Sites
from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.errors import PureError
from comfyui_pure.pure_core.fitting import BY_HEAD, TOGETHER

from testbed.comfy.stock import (
    QUICK,
    QUICK_ERASING,
    Loaded,
    effective_weight,
    execute,
    sample,
    weight_key,
    with_lora,
)

CONCEPTS = ("a ball\na photo of a ball", "a crate\na photo of a crate")
NEIGHBOURS = "a star\na heart\na tree"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """models/activations in a folder of its own."""
    own = tmp_path / "activations"
    paths = {**folder_paths.folder_names_and_paths, "activations": ([str(own)], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    yield own


def captured(loaded: Loaded, prompts: AnchorSet | str, **changes: Any) -> Activations:
    trajectory = QUICK._replace(**changes)._asdict()
    return execute(Capture, model=loaded.model, clip=loaded.clip, prompts=prompts, **trajectory)[0]


@pytest.fixture(scope="module")
def concepts(loaded: Loaded) -> list[Activations]:
    return [captured(loaded, prompts) for prompts in CONCEPTS]


@pytest.fixture(scope="module")
def retain(loaded: Loaded) -> Activations:
    return captured(loaded, NEIGHBOURS)


def fitted(
    forget: Activations, retain: Activations | None, method: str = "ridge", heads: str = TOGETHER
) -> Eraser:
    return execute(Fit, forget=forget, retain=retain, method=method, heads=heads)[0]


def combined(erasers: list[Eraser], **given: Any) -> Eraser:
    sockets = {f"eraser_{number}": [each] for number, each in enumerate(erasers, start=1)}
    lists = {name: [value] for name, value in given.items()}
    return execute(CombineErasers, **sockets, **lists)[0]


def patched(model: ModelPatcher, eraser: Eraser, **given: Any) -> tuple[Any, ...]:
    return execute(
        Patch, **{"model": model, "eraser": eraser, "strength": 1.0, "edit": "as fitted", **given}
    )


def assert_same_factors(one: Eraser, other: Eraser, tolerance: float = 1e-5) -> None:
    for name, layer in one.layers.items():
        theirs = other.layers[name]
        difference = layer.proj_left @ layer.proj_right - theirs.proj_left @ theirs.proj_right
        assert float(difference.abs().max()) < tolerance, name


def test_an_empty_line_in_the_prompts_begins_another_concept(
    loaded: Loaded, concepts: list[Activations]
) -> None:
    both = captured(loaded, "\n\n".join(CONCEPTS))
    assert both.anchors.concepts == ("a ball", "a crate")
    assert both.anchors.owners == (0, 0, 1, 1)
    (together,) = execute(
        ConcatenateActivations, activations_1=[concepts[0]], activations_2=[concepts[1]]
    )
    assert together.anchors == both.anchors
    for name, rows in both.rows.items():
        assert torch.allclose(rows, together.rows[name], atol=1e-5)


@pytest.mark.parametrize("method", ["pure", "ridge"])
def test_joining_erasers_is_fitting_the_concepts_together(
    concepts: list[Activations], retain: Activations, method: str
) -> None:
    erasers = [fitted(each, retain, method) for each in concepts]
    joint = combined(erasers, mode="joint", retain=retain)
    again = combined(erasers[::-1], mode="joint", retain=retain)
    assert joint.fingerprint == again.fingerprint
    assert_same_factors(joint, fitted(concepts[0].concatenate(concepts[1]), retain, method))


def test_combined_in_sequence_is_one_patch_after_the_other(
    loaded: Loaded, concepts: list[Activations], retain: Activations
) -> None:
    first, second = (fitted(each, retain) for each in concepts)
    at_once, *_ = patched(loaded.model, combined([first, second], mode="in sequence"))
    in_turn, *_ = patched(patched(loaded.model, first)[0], second)
    for site in Sites.of(loaded.model).sites:
        key = weight_key(site, "values")
        assert torch.allclose(
            effective_weight(at_once, key), effective_weight(in_turn, key), atol=1e-5
        )


def test_a_list_may_be_connected_to_one_socket(
    concepts: list[Activations], retain: Activations
) -> None:
    erasers = [fitted(each, retain, heads=BY_HEAD) for each in concepts]
    eraser, summary = execute(
        CombineErasers, eraser_1=erasers, mode=["joint"], retain=[retain], max_rank=[3]
    )
    assert set(eraser.ranks.values()) == {3}
    assert (
        "2 concepts: a ball, a crate" in summary
        and "ranks 3 to 3 of 40 in each of 8 heads" in summary
    )
    with pytest.raises(PureError, match="two or more erasers to combine, got 1"):
        execute(CombineErasers, eraser_1=erasers[:1], mode=["joint"])


def test_the_one_node_erases_a_list_of_concepts(
    loaded: Loaded, concepts: list[Activations], retain: Activations
) -> None:
    model, eraser, _, summary = execute(
        EraseConcept,
        model=loaded.model,
        clip=loaded.clip,
        concept="a ball\na crate",
        neighbours=NEIGHBOURS,
        kind="object",
        method="ridge",
        strength=1.0,
        templates="{}\na photo of {}",
        max_rank=4,
        **QUICK_ERASING,
    )
    neighbours = "\n".join(f"{each}\na photo of {each}" for each in NEIGHBOURS.splitlines())
    both = concepts[0].concatenate(concepts[1])
    assert_same_factors(eraser, fitted(both, captured(loaded, neighbours)).limited(4), 1e-3)
    assert eraser.provenance.concepts == ("a ball", "a crate")
    assert "2 concepts: a ball, a crate" in summary and "max_rank 4" in summary
    assert not torch.equal(sample(model, loaded.clip), sample(loaded.model, loaded.clip))


def test_a_list_of_neighbours_is_taken_whole(
    loaded: Loaded, concepts: list[Activations], retain: Activations
) -> None:
    more = captured(loaded, "a boat")
    erasers = [fitted(each, retain.concatenate(more)) for each in concepts]
    (joint, _), (expected, _) = (
        execute(CombineErasers, eraser_1=erasers, mode=["joint"], retain=kept)
        for kept in ([retain, more], [retain.concatenate(more)])
    )
    assert joint.fingerprint == expected.fingerprint


def test_saved_activations_come_back_and_replace_a_capture(
    loaded: Loaded, concepts: list[Activations], retain: Activations, folder: Path
) -> None:
    (path,) = execute(SaveActivations, activations=retain, filename_prefix="small/objects")
    assert Path(path) == folder / "small" / "objects_00001_.safetensors"
    (name,) = LoadActivations.define_schema().inputs[0].options
    before = LoadActivations.fingerprint_inputs(activations_name=name)
    again, prompts = execute(LoadActivations, activations_name=name)
    assert prompts == NEIGHBOURS
    assert fitted(concepts[0], again).fingerprint == fitted(concepts[0], retain).fingerprint
    other = captured(loaded, "a boat")
    Path(path).unlink()
    execute(SaveActivations, activations=other, filename_prefix="small/objects")
    assert LoadActivations.fingerprint_inputs(activations_name=name) != before


def test_activations_of_another_capture_or_model_are_refused(
    loaded: Loaded, concepts: list[Activations], retain: Activations, folder: Path
) -> None:
    moved = Loaded(with_lora(loaded.model), loaded.clip, loaded.vae)
    for other, words in (
        (captured(loaded, NEIGHBOURS, width=128), "width 64 / 128"),
        (captured(moved, NEIGHBOURS), r"what was patched into .*\(LoRA"),
    ):
        with pytest.raises(PureError, match=f"cannot be joined.*{words}"):
            execute(ConcatenateActivations, activations_1=[retain], activations_2=[other])
    (folder).mkdir()
    (folder / "noise.safetensors").write_bytes(b"noise")
    with pytest.raises(
        PureError, match=r"activations_name: .*noise.safetensors' .* cannot be read"
    ):
        execute(LoadActivations, activations_name="noise.safetensors")


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        ("middle", ("middle",)),
        ("input, output", ("input", "output")),
        ("output_blocks.2.*", ("output_blocks.2.",)),
    ],
)
def test_only_the_chosen_layers_are_patched(
    loaded: Loaded,
    concepts: list[Activations],
    retain: Activations,
    layers: str,
    blocks: tuple[str, ...],
) -> None:
    model, eraser, summary = patched(loaded.model, fitted(concepts[0], retain), layers=layers)
    expected = {
        weight_key(site, "values")
        for site in Sites.of(loaded.model).sites
        if site.name.startswith(blocks)
    }
    assert set(model.patches) == expected
    assert f"in {len(expected)} of 7 layers" in summary
    again, *_ = patched(loaded.model, eraser)
    assert set(again.patches) == expected


def test_the_layers_that_do_most_are_patched_first(
    loaded: Loaded, concepts: list[Activations], retain: Activations
) -> None:
    eraser = fitted(concepts[0], retain)
    shares = eraser.provenance.contribution
    counts = []
    for contribution in (0.2, 0.5, 0.9, 1.0):
        model, *_ = patched(loaded.model, eraser, contribution=contribution)
        chosen = {
            key.removeprefix("diffusion_model.").rpartition(".to_v")[0] for key in model.patches
        }
        left = [share for name, share in shares.items() if name not in chosen]
        assert min(shares[name] for name in chosen) >= max(left, default=0)
        assert sum(shares[name] for name in chosen) >= contribution * sum(shares.values()) * 0.999
        counts.append(len(chosen))
    assert counts == sorted(counts) and counts[0] < counts[-1] == 7


def test_words_that_fit_no_layer_are_refused(
    loaded: Loaded, concepts: list[Activations], retain: Activations
) -> None:
    eraser = fitted(concepts[0], retain)
    with pytest.raises(PureError, match="layers: 'midle' fits none of the 7 layers"):
        patched(loaded.model, eraser, layers="input, midle")
    with pytest.raises(PureError, match="contribution: expected a share above 0"):
        patched(loaded.model, eraser, contribution=0.0)


def test_the_patch_says_what_it_did_and_on_top_of_what(
    loaded: Loaded, concepts: list[Activations], retain: Activations
) -> None:
    eraser = fitted(concepts[0], retain)
    assert "0 of these weights were patched before" in patched(loaded.model, eraser)[2]
    assert "7 of these weights were patched before" in patched(with_lora(loaded.model), eraser)[2]
    assert "Nothing is changed" in patched(loaded.model, eraser, strength=0.0)[2]


def test_the_rounding_of_few_bits_is_measured(
    loaded: Loaded, checkpoint: Path, concepts: list[Activations], retain: Activations
) -> None:
    """By the rounding that core stores weights with; three bits lose more than ten."""
    eraser = fitted(concepts[0], retain)
    lost = []
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        options = {"dtype": dtype}
        model, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), model_options=options)
        summary = patched(model, eraser)[2]
        assert f"The weights are {str(dtype).removeprefix('torch.')}" in summary
        lost.append(float(summary.rpartition("by ")[2].partition("%")[0]))
    assert 0 < lost[0] < lost[1] < lost[2]
    assert "rounding" not in patched(loaded.model, eraser)[2]
