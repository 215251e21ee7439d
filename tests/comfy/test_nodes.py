"""The nodes as ComfyUI sees them, and the whole way from a concept to a patched model."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from comfyui_pure import WEB_DIRECTORY, comfy_entrypoint
from comfyui_pure.nodes import (
    Capture,
    Compare,
    Concept,
    EraseConcept,
    Fit,
    LoadEraser,
    Patch,
    SaveEraser,
)
from comfyui_pure.nodes.defaults import METHOD
from comfyui_pure.nodes.host.pictures import to_image
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.concepts import KINDS, TEMPLATES
from comfyui_pure.pure_core.errors import PureError
from comfyui_pure.pure_core.methods import METHODS
from comfyui_pure.pure_core.report.canvas import Canvas
from comfyui_pure.pure_core.report.picture import INK, MARGIN, WIDTH
from comfyui_pure.pure_core.trajectory import Trajectory

from dev.console import ROOT
from testbed.comfy.stock import QUICK, QUICK_ERASING, Loaded, execute, pre_hooks, sample, with_lora

NODES = asyncio.run(asyncio.run(comfy_entrypoint()).get_node_list())

TRAJECTORY = [name for name in Trajectory._fields if name not in ("cells", "length")]

TABLE = {
    "PURE_EraseConcept": (
        [
            *("model", "clip", "concept", "neighbours", "kind", "method", "strength"),
            *TRAJECTORY,
            *("templates", "max_rank", "length", "replacement"),
        ],
        [
            ("model", "MODEL"),
            ("eraser", "PURE_ERASER"),
            ("report", "IMAGE"),
            ("summary", "STRING"),
        ],
    ),
    "PURE_Concept": (
        ["concept", "kind", "neighbours", "templates", "replacement"],
        [
            ("forget", "PURE_ANCHORS"),
            ("retain", "PURE_ANCHORS"),
            ("forget_text", "STRING"),
            ("retain_text", "STRING"),
            ("replacement", "PURE_ANCHORS"),
        ],
    ),
    "PURE_Capture": (
        ["model", "clip", "prompts", *TRAJECTORY, "cells", "length"],
        [("activations", "PURE_ACTIVATIONS")],
    ),
    "PURE_Fit": (
        [
            *("forget", "retain", "method", "preset"),
            *("forget_energy", "retain_energy", "keep", "damping"),
            *("overshoot", "reach", "shrinkage"),
            *("max_rank", "heads", "model", "clip", "replacement"),
        ],
        [("eraser", "PURE_ERASER"), ("report", "IMAGE"), ("summary", "STRING")],
    ),
    "PURE_FitText": (
        [
            *("model", "clip", "forget", "retain", "method", "anchor", "preset"),
            *("erase", "preserve", "alpha", "ridge", "tokens", "rounds", "recovery"),
            *("round_ridge", "round_preserve", "threshold", "regularisation"),
            *("rotation", "general", "preserve_values"),
            "max_rank",
            *("keep", "damping", "overshoot"),
            *("caption_weight", "start_weight", "end_weight", "padding_weight", "name_weight"),
            "balance",
        ],
        [("eraser", "PURE_ERASER"), ("summary", "STRING")],
    ),
    "PURE_Patch": (
        ["model", "eraser", "strength", "edit", "layers", "contribution", "shared"],
        [("model", "MODEL"), ("eraser", "PURE_ERASER"), ("summary", "STRING")],
    ),
    "PURE_LayerSweep": (
        [
            *("model", "clip", "eraser", "share", "by", "prompts"),
            *("steps", "cfg", "seed", "width", "height", "sampler_name", "scheduler", "length"),
            *("concept_prompts", "neighbour_prompts", "vae"),
        ],
        [("layers", "STRING"), ("picture", "IMAGE"), ("pictures", "IMAGE"), ("summary", "STRING")],
    ),
    "PURE_CombineErasers": (
        [*(f"eraser_{number}" for number in range(1, 9)), "mode", "retain", "max_rank"],
        [("eraser", "PURE_ERASER"), ("summary", "STRING")],
    ),
    "PURE_ConcatenateActivations": (
        [f"activations_{number}" for number in range(1, 9)],
        [("activations", "PURE_ACTIVATIONS")],
    ),
    "PURE_SaveActivations": (["activations", "filename_prefix"], [("path", "STRING")]),
    "PURE_LoadActivations": (
        ["activations_name"],
        [("activations", "PURE_ACTIVATIONS"), ("prompts", "STRING")],
    ),
    "PURE_SaveEraser": (["eraser", "filename_prefix", "joinable"], [("path", "STRING")]),
    "PURE_LoadEraser": (["eraser_name"], [("eraser", "PURE_ERASER"), ("summary", "STRING")]),
    **{
        name: (
            ["ckpt_name", "eraser", "strength", "edit", "filename_prefix", "any_source"],
            [("path", "STRING")],
        )
        for name in ("PURE_SaveCheckpoint", "PURE_SaveDiffusers")
    },
    "PURE_SaveLoRA": (
        ["model", "eraser", "strength", "edit", "dtype", "filename_prefix", "form"],
        [("path", "STRING")],
    ),
    "PURE_Compare": (["before", "after"], [("comparison", "IMAGE")]),
}
"""Node id -> its inputs in order and its outputs. Saved workflows rely on them: their widget
values are told apart by their place."""

CONCEPT = {
    "concept": "ball",
    "kind": "object",
    "neighbours": "star\nheart",
    "templates": "{}\na photo of {}",
}


def schemas() -> dict[str, io.Schema]:
    return {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in NODES}


def inputs(schema: io.Schema) -> list[io.Input]:
    return list(schema.inputs or [])


@pytest.fixture
def erasers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """models/erasers in a folder of its own."""
    folder = tmp_path / "erasers"
    paths = {**folder_paths.folder_names_and_paths, "erasers": ([str(folder)], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    yield folder


@pytest.fixture(scope="module")
def fitted(loaded: Loaded) -> dict[str, Any]:
    """One run of the open path: prompts, activations, eraser, report and summary."""
    forget, retain, *_ = execute(Concept, **CONCEPT)
    activations = [
        execute(Capture, model=loaded.model, clip=loaded.clip, prompts=each, **QUICK._asdict())[0]
        for each in (forget, retain)
    ]
    eraser, report, summary = execute(
        Fit, forget=activations[0], retain=activations[1], method="ridge"
    )
    return {
        "forget": activations[0],
        "retain": activations[1],
        "eraser": eraser,
        "report": report,
        "summary": summary,
    }


def test_ids_inputs_and_outputs_are_those_promised() -> None:
    found = {
        name: (
            [each.id for each in inputs(schema)],
            [(output.display_name, output.io_type) for output in schema.outputs],
        )
        for name, schema in schemas().items()
    }
    assert found == TABLE


def test_advanced_inputs_are_optional() -> None:
    advanced = [
        (name, each)
        for name, schema in schemas().items()
        for each in inputs(schema)
        if each.as_dict().get("advanced")
    ]
    assert {name for name, _ in advanced} >= {"PURE_EraseConcept", "PURE_Capture", "PURE_Fit"}
    for name, each in advanced:
        assert each.optional, (name, each.id)


def test_every_widget_explains_itself_and_has_bounds() -> None:
    for name, schema in schemas().items():
        assert schema.description and schema.category.split("/")[0] == "PURE", name
        for each in inputs(schema):
            where = f"{name}.{each.id}"
            if not isinstance(each, io.WidgetInput):
                continue
            assert each.tooltip, where
            if isinstance(each, (io.Int.Input, io.Float.Input)):
                assert each.min <= each.default <= each.max and each.step > 0, where
            if isinstance(each, io.Combo.Input) and each.options:
                assert each.default is None or each.default in each.options, where


def test_the_seed_stays_as_it_is_between_queues() -> None:
    """The editor would change it at every queue otherwise, and nothing would be cached."""
    for name in ("PURE_Capture", "PURE_EraseConcept", "PURE_LayerSweep"):
        (seed,) = [each for each in inputs(schemas()[name]) if each.id == "seed"]
        assert seed.as_dict()["control_after_generate"] is False


def test_execute_takes_exactly_the_inputs() -> None:
    for node in NODES:
        parameters = inspect.signature(node.execute).parameters
        names = {each.id for each in inputs(node.GET_SCHEMA())}
        named = {
            name
            for name, parameter in parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
        assert named <= names
        assert named == names or any(
            each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()
        )


def test_every_node_has_its_help_page() -> None:
    for name, schema in schemas().items():
        text = (ROOT / WEB_DIRECTORY / "docs" / f"{name}.md").read_text(encoding="utf-8")
        names = [each.id for each in inputs(schema)]
        names += [output.display_name for output in schema.outputs]
        for each in names:
            assert f"`{each}`" in text, f"{name}: {each} is not explained"


@pytest.mark.parametrize("kind", KINDS)
def test_a_concept_becomes_its_prompts(kind: str) -> None:
    forget, retain, *texts, _ = execute(
        Concept, concept=" Van \t Gogh ", kind=kind, neighbours="Monet\n\n Cezanne \n"
    )
    templates = TEMPLATES[kind]
    assert forget == AnchorSet.phrased(["Van Gogh"], templates)
    assert retain == AnchorSet.phrased(["Monet", "Cezanne"], templates)
    assert forget.prompts == tuple(each.replace("{}", "Van Gogh") for each in templates)
    assert forget.concepts == ("Van Gogh",)
    assert texts[0].splitlines() == list(forget.prompts)
    assert [line for line in texts[1].splitlines() if line] == [
        each.replace("{}", name) for name in ("Monet", "Cezanne") for each in templates
    ]
    assert len(templates) == (1 if kind == "custom" else 6)


def test_a_concept_becomes_a_replacement_in_the_same_phrasings() -> None:
    given = {"concept": "ball\ncrate", "kind": "object", "neighbours": "star"}
    *_, becomes = execute(Concept, **given, replacement=" bell ")
    assert becomes == AnchorSet.phrased(["bell"], TEMPLATES["object"])
    assert len(execute(Concept, **given)[-1]) == 0
    *_, plain = execute(Concept, concept="gore", kind="unsafe content", neighbours="")
    assert plain.concepts == ("a person",)


def test_several_concepts_are_told_apart_by_an_empty_line() -> None:
    forget, retain, *texts, _ = execute(
        Concept, concept="ball\n\n crate ", kind="object", neighbours="star", templates="{}\na {}"
    )
    assert texts == ["ball\na ball\n\ncrate\na crate", "star\na star"]
    assert (forget.concepts, retain.concepts) == (("ball", "crate"), ("star",))
    assert forget.owners == (0, 0, 1, 1)


def test_own_templates_replace_those_of_the_kind() -> None:
    forget, retain, *texts, _ = execute(
        Concept, concept="ball", kind="object", neighbours="star", templates="\n{} run, {}!\n"
    )
    assert texts == ["ball run, ball!", "star run, star!"]
    assert (*forget.prompts, *retain.prompts) == tuple(texts)


def test_typed_prompts_are_captured_like_connected_ones(
    loaded: Loaded, fitted: dict[str, Any]
) -> None:
    """A concept that is only typed is called by its first prompt."""
    *_, text, _ = execute(Concept, **CONCEPT)
    given = {"model": loaded.model, "clip": loaded.clip, **QUICK._asdict()}
    (typed,) = execute(Capture, prompts=text, **given)
    connected = fitted["retain"]
    assert typed.prompts == connected.prompts
    assert typed.anchors.concepts == ("star", "heart") == connected.anchors.concepts
    assert {each.phrasing for each in typed.anchors} == {""}
    assert {each.phrasing for each in connected.anchors} == {"{}", "a photo of {}"}
    for name, rows in typed.rows.items():
        assert torch.equal(rows, connected.rows[name])


def test_titles_name_the_concept_and_not_its_first_prompt(loaded: Loaded) -> None:
    """No phrasing of a style is the bare name."""
    given = {"concept": "Okimura", "kind": "style", "neighbours": "blueprint\nmosaic tiles"}
    forget, retain, *_ = execute(Concept, **given)
    captured = [
        execute(Capture, model=loaded.model, clip=loaded.clip, prompts=each, **QUICK._asdict())[0]
        for each in (forget, retain)
    ]
    output = Fit.EXECUTE_NORMALIZED(forget=captured[0], retain=captured[1], method="ridge")
    eraser, picture, summary = output.result
    assert eraser.provenance.concepts == ("Okimura",)
    assert summary.startswith("Erases Okimura.")
    assert output.ui["pure_report"][0]["concept"] == "Okimura"
    title = Canvas(WIDTH, 52)
    title.text((MARGIN, 36), "Erase: Okimura", 24, INK)
    assert torch.equal(to_image(title.pixels())[0], picture[0, :52])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concept": "  "}, "concept: expected the name"),
        ({"concept": "ball\ncube\nBall"}, "concept: 'Ball' is listed twice"),
        ({"neighbours": "star\nBALL"}, "neighbours: 'BALL' is a concept to erase"),
        ({"templates": "a ball"}, "templates: every line has to contain {}"),
        ({"kind": "colour"}, "kind: expected one of object, style"),
        ({"replacement": "bell; tree"}, "replacement: expected one name"),
        ({"replacement": "Ball"}, "replacement: 'Ball' is a concept to erase"),
    ],
)
def test_a_bad_concept_names_its_input(change: dict[str, str], message: str) -> None:
    with pytest.raises(PureError, match=message):
        execute(Concept, **{**CONCEPT, **change})


def test_the_open_path_and_the_one_node_agree(loaded: Loaded, fitted: dict[str, Any]) -> None:
    model, eraser, report, summary = execute(
        EraseConcept,
        model=loaded.model,
        clip=loaded.clip,
        method="ridge",
        strength=1.0,
        **CONCEPT,
        **QUICK_ERASING,
    )
    patched, _, patched_how = execute(
        Patch, model=loaded.model, eraser=fitted["eraser"], strength=1.0, edit="as fitted"
    )
    assert patched_how in summary and "shift towards the neighbours" in summary
    assert set(model.patches) == set(patched.patches)
    for name, layer in eraser.layers.items():
        other = fitted["eraser"].layers[name]
        one = layer.proj_left @ layer.proj_right
        assert torch.allclose(one, other.proj_left @ other.proj_right, atol=1e-3), name
    assert report.shape == fitted["report"].shape
    difference = sample(model, loaded.clip) - sample(patched, loaded.clip)
    assert float(difference.abs().max()) < 1e-2
    assert not torch.equal(sample(model, loaded.clip), sample(loaded.model, loaded.clip))
    assert pre_hooks(loaded.model) == 0


@pytest.mark.parametrize("neighbours", ["star\nheart", ""])
def test_with_a_replacement_the_open_path_and_the_one_node_agree(
    loaded: Loaded, neighbours: str
) -> None:
    """One run or three captures, the same rows: same phrasings and noise."""
    given = {**CONCEPT, "neighbours": neighbours, "replacement": "bell"}
    one = {"model": loaded.model, "clip": loaded.clip, "method": "ridge", "strength": 1.0}
    model, eraser, _, summary = execute(EraseConcept, **one, **given, **QUICK_ERASING, max_rank=0)
    anchors = execute(Concept, **given)
    forget, retain, becomes = (
        execute(Capture, model=loaded.model, clip=loaded.clip, prompts=each, **QUICK._asdict())[0]
        if each
        else None
        for each in (anchors[0], anchors[1], anchors[-1])
    )
    other, _, words = execute(
        Fit, forget=forget, retain=retain, method="ridge", replacement=becomes
    )
    for name, layer in eraser.layers.items():
        assert torch.allclose(layer.P, other.layers[name].P, atol=1e-4), name
    for said in (summary, words):
        assert "Erases ball, which becomes bell" in said
        assert "shift towards the replacement" in said
    assert eraser.provenance.replacement.concepts == ("bell",)
    assert other.provenance.replacement == eraser.provenance.replacement
    assert not torch.equal(sample(model, loaded.clip), sample(loaded.model, loaded.clip))
    without, *_ = execute(EraseConcept, **{**one, "strength": 0.0}, **given, **QUICK_ERASING)
    assert torch.equal(sample(without, loaded.clip), sample(loaded.model, loaded.clip))


def test_a_saved_graph_without_the_replacement_runs_as_before(loaded: Loaded) -> None:
    given = {"model": loaded.model, "clip": loaded.clip, "method": "ridge", "strength": 1.0}
    saved, named = (
        execute(EraseConcept, **given, **CONCEPT, **QUICK_ERASING, **more)[1]
        for more in ({}, {"replacement": ""})
    )
    assert saved.fingerprint == named.fingerprint
    assert not saved.provenance.replacement and not named.provenance.replacement


@pytest.mark.parametrize("method", [n for n, each in METHODS.items() if not each.has_target])
def test_a_method_without_a_target_refuses_a_replacement(
    loaded: Loaded, fitted: dict[str, Any], method: str
) -> None:
    given = {"model": loaded.model, "clip": loaded.clip, "method": method, "strength": 1.0}
    with pytest.raises(PureError, match=f"replacement: the method {method} .* ridge or mosaic"):
        execute(EraseConcept, **given, **CONCEPT, **QUICK_ERASING, replacement="bell")
    forget, retain = fitted["forget"], fitted["retain"]
    with pytest.raises(PureError, match=f"replacement: the method {method}"):
        execute(Fit, forget=forget, retain=retain, method=method, replacement=retain)


def test_unsafe_content_without_neighbours_needs_none_for_ridge(loaded: Loaded) -> None:
    """It becomes a plain person; for pure that default does not count."""
    unsafe = {**CONCEPT, "concept": "something muddy", "kind": "unsafe content", "neighbours": ""}
    given = {"model": loaded.model, "clip": loaded.clip, "strength": 1.0, **unsafe, **QUICK_ERASING}
    assert "which becomes a person" in execute(EraseConcept, **given, method="ridge")[3]
    assert "becomes" not in execute(EraseConcept, **given, method="pure")[3]
    with pytest.raises(PureError, match="neighbours: the method leace"):
        execute(EraseConcept, **given, method="leace")


def test_the_report_is_a_picture_and_a_text(fitted: dict[str, Any]) -> None:
    report = fitted["report"]
    assert report.dtype == torch.float32 and report.ndim == 4
    assert report.shape[0] == 1 and report.shape[3] == 3
    assert 0 <= float(report.min()) < float(report.max()) <= 1
    assert "ridge" in fitted["summary"] and "7 layers" in fitted["summary"]


def test_pure_works_without_neighbours_and_says_what_that_means(fitted: dict[str, Any]) -> None:
    eraser, _, summary = execute(Fit, forget=fitted["forget"], method="pure")
    assert eraser.provenance.edit == "keys and values"
    assert "retain" in summary


def test_an_unknown_choice_names_its_input(loaded: Loaded, fitted: dict[str, Any]) -> None:
    model, eraser = loaded.model, fitted["eraser"]
    with pytest.raises(PureError, match="method: expected one of pure, ridge"):
        execute(
            EraseConcept,
            model=model,
            clip=loaded.clip,
            **CONCEPT,
            method="magic",
            strength=1.0,
            **QUICK_ERASING,
        )
    with pytest.raises(PureError, match="edit: expected one of as fitted, "):
        execute(Patch, model=model, eraser=eraser, strength=1.0, edit="queries")


def test_the_one_node_needs_neighbours_for_ridge(loaded: Loaded) -> None:
    given = {**CONCEPT, "neighbours": ""}
    with pytest.raises(PureError, match="neighbours: the method ridge"):
        execute(
            EraseConcept,
            model=loaded.model,
            clip=loaded.clip,
            method="ridge",
            strength=1.0,
            **given,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "pure", "forget_energy": 0.0}, "forget_energy"),
        ({"method": "pure", "forget_energy": 1.5}, "forget_energy"),
        ({"method": "pure", "retain_energy": -0.1}, "retain_energy"),
        ({"method": "ridge", "keep": -1.0}, "keep"),
        ({"method": "ridge", "damping": 0.0}, "damping"),
        ({"method": "ridge", "retain": None}, "retain"),
    ],
)
def test_a_bad_fit_names_its_input(
    fitted: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    given = {
        "forget": fitted["forget"],
        "retain": fitted["retain"],
        "method": METHOD,
    }
    with pytest.raises(PureError, match=message):
        execute(Fit, **{**given, **change})


def test_forget_and_retain_of_different_origin_are_refused(
    loaded: Loaded, fitted: dict[str, Any]
) -> None:
    def retain(model: Any = loaded.model, **change: Any) -> Any:
        trajectory = QUICK._replace(**change)._asdict()
        return execute(Capture, model=model, clip=loaded.clip, prompts="star", **trajectory)[0]

    for other, message in (
        (retain(seed=1), "seed 0 / 1"),
        (retain(steps=5), "steps 4 / 5"),
        (retain(with_lora(loaded.model)), r"what was patched into .*\(LoRA"),
    ):
        with pytest.raises(PureError, match=f"forget and retain.*{message}"):
            execute(Fit, forget=fitted["forget"], retain=other, method="ridge")


def test_saving_counts_up_and_loading_gives_the_same(fitted: dict[str, Any], erasers: Path) -> None:
    eraser = fitted["eraser"]
    paths = [
        Path(execute(SaveEraser, eraser=eraser, filename_prefix="animals/dog")[0]) for _ in range(2)
    ]
    assert [path.name for path in paths] == ["dog_00001_.safetensors", "dog_00002_.safetensors"]
    assert {path.parent for path in paths} == {erasers / "animals"}
    names = LoadEraser.define_schema().inputs[0].options
    assert names == [str(path.relative_to(erasers)) for path in paths]
    again, summary = execute(LoadEraser, eraser_name=names[0])
    assert summary.startswith("Erases ball.")
    assert again.fingerprint == eraser.fingerprint
    assert again.provenance == eraser.provenance


@pytest.mark.parametrize(
    "prefix", ["../dog", "a/../../dog", "/tmp/dog", "..", "", "a/", "..\\dog", "."]
)
def test_a_prefix_cannot_leave_the_folder(
    fitted: dict[str, Any], erasers: Path, prefix: str
) -> None:
    with pytest.raises(PureError, match="filename_prefix: expected a name inside models/erasers"):
        execute(SaveEraser, eraser=fitted["eraser"], filename_prefix=prefix)
    assert not list(erasers.parent.rglob("*.safetensors"))


def test_bad_files_are_explained(fitted: dict[str, Any], erasers: Path) -> None:
    erasers.mkdir()
    saved = Path(execute(SaveEraser, eraser=fitted["eraser"], filename_prefix="ball")[0])
    whole = saved.read_bytes()
    (erasers / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (erasers / "noise.safetensors").write_bytes(b"not a safetensors file")
    (erasers / "foreign.safetensors").write_bytes(whole.replace(b'"pure-eraser"', b'"some-eraser"'))
    for name, words in (
        ("cut", "cut.safetensors' .* cannot be read"),
        ("noise", "noise.safetensors' .* cannot be read"),
        ("foreign", "foreign.safetensors' .*some-eraser"),
        ("absent", "found no 'absent.safetensors'"),
    ):
        with pytest.raises(PureError, match=f"eraser_name: .*{words}"):
            execute(LoadEraser, eraser_name=f"{name}.safetensors")


def test_a_file_saved_again_is_read_again(fitted: dict[str, Any], erasers: Path) -> None:
    path = Path(execute(SaveEraser, eraser=fitted["eraser"], filename_prefix="ball")[0])
    before = LoadEraser.fingerprint_inputs(eraser_name=path.name)
    assert LoadEraser.fingerprint_inputs(eraser_name=path.name) == before
    weaker = fitted["eraser"].applied(0.5)
    other = Path(execute(SaveEraser, eraser=weaker, filename_prefix="weak")[0])
    other.replace(path)
    assert LoadEraser.fingerprint_inputs(eraser_name=path.name) != before
    again, _ = execute(LoadEraser, eraser_name=path.name)
    assert again.fingerprint == weaker.fingerprint
    assert again.strength == 0.5


def test_comparison_lays_pairs_side_by_side() -> None:
    before, after = torch.rand(2, 8, 16, 3), torch.rand(2, 8, 16, 3)
    output = Compare.EXECUTE_NORMALIZED(before=before, after=after)
    (pairs,) = output.result
    assert torch.equal(pairs[:, :, :16], before) and torch.equal(pairs[:, :, 16:], after)
    for side in ("pure_before", "pure_after"):
        files = [
            Path(folder_paths.get_temp_directory(), each["filename"]) for each in output.ui[side]
        ]
        assert len(files) == 2 and all(file.is_file() for file in files)
        for file in files:
            file.unlink()


@pytest.mark.parametrize("shape", [(1, 8, 16, 3), (2, 16, 8, 3), (2, 8, 16, 4)])
def test_what_cannot_be_compared_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PureError, match=r"expected .*2 of 16 x 8 .*got"):
        Compare.EXECUTE_NORMALIZED(before=torch.rand(2, 8, 16, 3), after=torch.rand(shape))


def test_every_node_is_found_by_other_words(comfy_version: tuple[int, ...]) -> None:
    for schema in schemas().values():
        if comfy_version >= (0, 30):
            assert len(schema.search_aliases) >= 2, schema.node_id
