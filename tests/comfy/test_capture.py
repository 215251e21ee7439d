"""Captured rows against an independent computation, and a model that is left as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfyui_pure.nodes.host.capture import CaptureError, batches, capture, capture_both, run
from comfyui_pure.nodes.host.capture.grid import Grid
from comfyui_pure.nodes.host.conditioning import encode, stack
from comfyui_pure.nodes.host.sites import Sites
from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.concepts import Anchors
from comfyui_pure.pure_core.families import Site
from comfyui_pure.pure_core.trajectory import Trajectory, TrajectoryError
from safetensors.torch import save_file
from torch import Tensor

import nodes
from testbed.comfy.stock import (
    QUICK,
    Loaded,
    pre_hooks,
    projection,
    sample,
    weight_key,
    with_lora,
    with_wrapper,
)

PROMPTS = ("a ball", "a red star with a mug", "")
TOLERANCE = 1e-5


def anchors(*prompts: str) -> AnchorSet:
    """Prompts of one concept."""
    return AnchorSet.written([prompts] if prompts else [])


def attention(model: ModelPatcher, site: Site) -> torch.nn.Module:
    """ComfyUI's module of a site, which has queries beside the keys and values."""
    return Sites.of(model).net.get_submodule(site.name)


def largest_difference(one: Activations, other: Activations) -> float:
    assert one.rows.keys() == other.rows.keys()
    return max(float((one.rows[key] - other.rows[key]).abs().max()) for key in one.rows)


def attention_output(module: torch.nn.Module, x: Tensor, context: Tensor) -> Tensor:
    """mean over positions of softmax(Q K^T / sqrt(d_head)) V in float64, (rows, d)."""
    q, k, v = (
        (given.double() @ getattr(module, name).weight.double().T).unflatten(-1, (module.heads, -1))
        for name, given in (("to_q", x), ("to_k", context), ("to_v", context))
    )
    scores = torch.einsum("bnhc,bmhc->bhnm", q, k) / math.sqrt(module.dim_head)
    h = torch.einsum("bhnm,bmhc->bnhc", scores.softmax(dim=-1), v)
    return h.flatten(2).mean(dim=1)


@contextmanager
def listening(model: ModelPatcher) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Layer -> (x, context) of every call, whatever the rows are."""
    heard: dict[str, list[tuple[Tensor, Tensor]]] = {}
    handles = []
    for site in Sites.of(model).sites:
        calls = heard.setdefault(site.name, [])

        def hook(
            _module: torch.nn.Module, args: tuple[Tensor], kwargs: dict[str, Any], calls=calls
        ) -> None:
            calls.append((args[0].clone(), kwargs["context"].clone()))

        module = attention(model, site)
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("rows_per_call", [64, 1])
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora upstream"])
def test_rows_are_the_attention_output_of_the_layers_own_weights(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, rows_per_call: int, lora: bool
) -> None:
    monkeypatch.setattr(batches, "MAX_ROWS", rows_per_call)
    model = with_lora(loaded.model) if lora else loaded.model
    prompts = PROMPTS[:2]
    with listening(model) as heard:
        activations = capture(model, loaded.clip, anchors(*prompts), QUICK)

    texts = [encode(loaded.clip, prompt).tokens[0] for prompt in prompts]
    expected_texts = [text for text in texts for _ in range(QUICK.latents)]
    empty = encode(loaded.clip, "").tokens[0]
    for site in Sites.of(model).sites:
        computed = []
        for x, context in heard[site.name]:
            prompted = (context != empty).any(dim=(1, 2))
            computed.append(
                (context[prompted], attention_output(attention(model, site), x, context)[prompted])
            )
        # Calls come batch by batch and step by step; rows are ordered by row, then step.
        per_batch = len(computed[0][0])
        steps = QUICK.run_steps
        runs = [computed[i : i + steps] for i in range(0, len(computed), steps)]
        assert len(runs) * per_batch == len(prompts) * QUICK.latents
        rows, row_texts = [], []
        for batch in runs:
            for row in range(per_batch):
                rows += [h[row] for _, h in batch]
                row_texts += [context[row] for context, _ in batch]
        for index, text in enumerate(row_texts):
            assert torch.equal(text, expected_texts[index // steps])
        captured = activations.rows[site.name]
        assert float((captured.double() - torch.stack(rows)).abs().max()) <= TOLERANCE
        assert float(captured.abs().max()) > 100 * TOLERANCE


def test_the_order_is_prompt_latent_step(loaded: Loaded) -> None:
    both = capture(loaded.model, loaded.clip, anchors(*PROMPTS[:2]), QUICK)
    alone = capture(loaded.model, loaded.clip, anchors(PROMPTS[1]), QUICK._replace(latents=1))
    for layer in both.rows:
        grid = both.grid(layer)
        assert torch.allclose(grid[1, 0], alone.grid(layer)[0, 0], atol=TOLERANCE)
        assert not torch.allclose(grid[1, 1], grid[1, 0], atol=TOLERANCE)
        assert not torch.allclose(grid[1, 0, 1], grid[1, 0, 0], atol=TOLERANCE)


@pytest.mark.parametrize("sampler_name", ["euler_ancestral", "dpmpp_2m_sde", "heun"])
def test_a_row_does_not_depend_on_its_batch(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, sampler_name: str
) -> None:
    trajectory = QUICK._replace(sampler_name=sampler_name)
    together = capture(loaded.model, loaded.clip, anchors(*PROMPTS[:2]), trajectory)
    monkeypatch.setattr(batches, "MAX_ROWS", 1)
    assert (
        largest_difference(
            capture(loaded.model, loaded.clip, anchors(*PROMPTS[:2]), trajectory), together
        )
        < TOLERANCE
    )


def test_prompts_of_different_token_length(loaded: Loaded) -> None:
    long = "a very " * 60 + "long prompt"
    assert encode(loaded.clip, long).tokens.shape[1] > 77
    together = capture(loaded.model, loaded.clip, anchors("a ball", long, "a star"), QUICK)
    alone = capture(loaded.model, loaded.clip, anchors(long), QUICK)
    for layer in together.rows:
        assert torch.allclose(together.grid(layer)[1], alone.grid(layer)[0], atol=TOLERANCE)


@pytest.fixture(scope="module")
def embedding_clip(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[comfy.sd.CLIP]:
    """The text encoder, with textual inversions in both formats in an embeddings folder."""
    folder = tmp_path_factory.mktemp("embeddings")
    generator = torch.Generator().manual_seed(0)
    two, three, many = (torch.randn(n, 768, generator=generator) / 4 for n in (2, 3, 100))
    save_file({"emb_params": two}, folder / "zef.safetensors")
    save_file({"emb_params": many}, folder / "long.safetensors")
    torch.save({"string_to_param": {"*": three}, "name": "old"}, folder / "old.pt")
    with pytest.MonkeyPatch.context() as change:
        suffixes = folder_paths.folder_names_and_paths["embeddings"][1]
        known = folder_paths.folder_names_and_paths
        change.setitem(known, "embeddings", ([str(folder)], suffixes))
        yield nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)[1]


@pytest.mark.parametrize(
    ("prompt", "without"),
    [
        ("a picture of embedding:zef", "a picture of"),
        ("embedding:old, a painting", ", a painting"),
        ("embedding:zef embedding:old", "embedding:old"),
        ("embedding:long", ""),
        ("a (ball:1.3)", "a ball"),
        ("a (embedding:zef:0.6)", "a embedding:zef"),
    ],
)
def test_textual_inversions_and_prompt_weights(
    loaded: Loaded,
    embedding_clip: comfy.sd.CLIP,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    without: str,
) -> None:
    """Each changes the rows, and the rows do not depend on what else is in the batch."""
    words = ["a ball", prompt, without]
    short = QUICK._replace(latents=1, run_steps=1)
    together = capture(loaded.model, embedding_clip, anchors(*words), short)
    monkeypatch.setattr(batches, "MAX_ROWS", 1)
    alone = capture(loaded.model, embedding_clip, anchors(prompt), short)
    for layer in together.rows:
        grid = together.grid(layer)
        assert torch.allclose(grid[1], alone.grid(layer)[0], atol=TOLERANCE)
        assert not torch.allclose(grid[1], grid[2], atol=100 * TOLERANCE)


def test_an_embedding_of_more_than_77_tokens_makes_a_longer_prompt(
    embedding_clip: comfy.sd.CLIP,
) -> None:
    lengths = [
        encode(embedding_clip, f"embedding:{name}").tokens.shape[1] for name in ("zef", "long")
    ]
    assert lengths == [77, 154]


def test_pooled_output_is_batched_like_the_tokens(loaded: Loaded) -> None:
    encoded = [encode(loaded.clip, prompt) for prompt in PROMPTS]
    ((tokens, options),) = stack(encoded)
    for row, each in enumerate(encoded):
        assert torch.equal(tokens[row : row + 1], each.tokens)
        assert torch.equal(options["pooled_output"][row : row + 1], each.options["pooled_output"])


def test_concepts_and_neighbours_are_one_run_split_up(loaded: Loaded) -> None:
    both = Anchors(AnchorSet.written([PROMPTS[:1], PROMPTS[1:2]]), anchors(*PROMPTS[2:]))
    forget, retain, none = capture_both(loaded.model, loaded.clip, both, QUICK)
    assert retain is not None and none is None
    assert (forget.anchors, retain.anchors) == both[:2]
    assert (forget.anchors.owners, retain.anchors.owners) == ((0, 1), (0,))
    whole = capture(loaded.model, loaded.clip, anchors(*PROMPTS), QUICK)
    assert largest_difference(forget.concatenate(retain), whole) == 0
    assert forget.differences(whole) == []


@pytest.mark.parametrize("neighbours", [PROMPTS[1:2], ()])
def test_a_replacement_is_captured_in_the_same_run(
    loaded: Loaded, neighbours: tuple[str, ...]
) -> None:
    every = Anchors(anchors(PROMPTS[0]), anchors(*neighbours), anchors(PROMPTS[2]))
    calls = []
    watched = with_wrapper(loaded.model, calls.append)
    forget, retain, replacement = capture_both(watched, loaded.clip, every, QUICK)
    count = len(calls)
    assert replacement is not None and (retain is None) == (not neighbours)
    assert [each.anchors for each in (forget, retain, replacement) if each] == [
        each for each in every if each
    ]
    alone = capture(watched, loaded.clip, anchors(PROMPTS[2]), QUICK)
    assert count == len(calls) - count
    assert largest_difference(replacement, alone) < TOLERANCE


def test_without_neighbours_there_are_no_retain_activations(loaded: Loaded) -> None:
    alone = Anchors(anchors(PROMPTS[0]), AnchorSet())
    forget, *others = capture_both(loaded.model, loaded.clip, alone, QUICK)
    assert others == [None, None] and forget.prompts == PROMPTS[:1]


def test_without_guidance_the_rows_are_captured_too(loaded: Loaded) -> None:
    rows = []
    watched = with_wrapper(loaded.model, lambda call: rows.append(len(call["input"])))
    activations = capture(watched, loaded.clip, anchors(PROMPTS[0]), QUICK._replace(cfg=1.0))
    assert rows == [QUICK.latents] * QUICK.run_steps
    assert all(each.abs().max() > 0 for each in activations.rows.values())


def test_an_existing_model_wrapper_stays_in_use(loaded: Loaded) -> None:
    calls = []
    watched = with_wrapper(loaded.model, calls.append)
    activations = capture(watched, loaded.clip, anchors(*PROMPTS[:2]), QUICK)
    assert len(calls) == QUICK.run_steps
    plain = capture(loaded.model, loaded.clip, anchors(*PROMPTS[:2]), QUICK)
    assert largest_difference(activations, plain) == 0


def test_an_attention_patch_upstream_is_captured(loaded: Loaded) -> None:
    replaced = []

    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        h = v.mean(dim=1, keepdim=True).expand_as(q) * 2
        replaced.append((extra["cond_or_uncond"], h))
        return h

    model = loaded.model.clone()
    model.set_model_attn2_replace(replace, "middle", 0)
    activations = capture(model, loaded.clip, anchors(PROMPTS[0]), QUICK)
    rows = activations.grid("middle_block.1.transformer_blocks.0.attn2")[0]
    for step, (branches, h) in enumerate(replaced):
        prompted = h.chunk(len(branches))[branches.index(0)]
        assert torch.allclose(rows[:, step], prompted.mean(dim=1), atol=TOLERANCE)


def test_progress_covers_every_batch_and_no_preview_is_made(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    previews = []

    def hook(value: int, total: int, preview: Any, **_: Any) -> None:
        seen.append((value, total))
        previews.append(preview)

    monkeypatch.setattr(batches, "MAX_ROWS", 1)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    capture(loaded.model, loaded.clip, anchors(PROMPTS[0]), QUICK)
    total = QUICK.latents * QUICK.run_steps
    values = [value for value, _ in seen]  # 0.30 leaves out some that follow each other fast
    assert values == sorted(set(values)) and values[-1] == total
    assert {of for _, of in seen} == {total}
    assert set(previews) == {None}


def fail_at(call_number: int, action: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """For `with_wrapper`: act at one of the model calls."""
    calls = iter(range(10_000))

    def before(_call: dict[str, Any]) -> None:
        if next(calls) == call_number:
            action()

    return before


def raise_error() -> None:
    raise RuntimeError("in the middle")


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (None, None),
        (raise_error, RuntimeError),
        (
            comfy.model_management.interrupt_current_processing,
            comfy.model_management.InterruptProcessingException,
        ),
    ],
    ids=["success", "error", "cancel"],
)
def test_nothing_is_left_behind(
    loaded: Loaded, action: Callable[[], None] | None, error: type[Exception] | None
) -> None:
    hooks, before = pre_hooks(loaded.model), sample(loaded.model, loaded.clip)
    options = repr(loaded.model.model_options)
    if action is None or error is None:
        capture(loaded.model, loaded.clip, anchors(PROMPTS[0]), QUICK)
    else:
        failing = with_wrapper(loaded.model, fail_at(1, action))
        with pytest.raises(error):
            capture(failing, loaded.clip, anchors(PROMPTS[0]), QUICK._replace(run_steps=3))
    assert pre_hooks(loaded.model) == hooks
    assert repr(loaded.model.model_options) == options
    assert torch.equal(sample(loaded.model, loaded.clip), before)


def test_hooks_are_there_while_it_runs(loaded: Loaded) -> None:
    counts = []
    watched = with_wrapper(loaded.model, lambda _: counts.append(pre_hooks(loaded.model)))
    capture(watched, loaded.clip, anchors(PROMPTS[0]), QUICK)
    assert counts == [pre_hooks(loaded.model) + len(Sites.of(loaded.model).sites)] * 2


def test_nan_in_the_model_is_reported(loaded: Loaded) -> None:
    site = Sites.of(loaded.model).sites[0]
    broken = loaded.model.clone()
    weight = torch.full_like(projection(loaded.model, site, "values").weight, math.nan)
    broken.add_patches({weight_key(site, "values"): ("diff", (weight,))})
    with pytest.raises(CaptureError, match=rf"model: NaN or infinity in layer {site.name}"):
        capture(broken, loaded.clip, anchors(PROMPTS[0]), QUICK)
    assert capture(loaded.model, loaded.clip, anchors(PROMPTS[0]), QUICK)


def test_a_layer_that_does_not_come_by_is_reported(loaded: Loaded) -> None:
    site = Sites.of(loaded.model).sites[2]
    bypassed = loaded.model.clone()
    copy = torch.nn.Sequential(*Sites.of(loaded.model).net.get_submodule(site.out))
    bypassed.add_object_patch(f"diffusion_model.{site.out}", copy)
    with pytest.raises(CaptureError, match=rf"2 of 14 captures are missing.*{site.name}"):
        capture(bypassed, loaded.clip, anchors(PROMPTS[0]), QUICK)


def test_a_patch_that_splits_the_batch_is_reported(loaded: Loaded) -> None:
    def wrapper(apply_model: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
        text = call["c"]["c_crossattn"]
        options = {"transformer_options": call["c"]["transformer_options"]}
        outputs = [
            apply_model(x[None], t[None], c_crossattn=c[None], **options)
            for x, t, c in zip(call["input"], call["timestep"], text, strict=True)
        ]
        return torch.cat(outputs)

    split = loaded.model.clone()
    split.set_model_unet_function_wrapper(wrapper)
    with pytest.raises(CaptureError, match="1 rows, expected 4"):
        capture(split, loaded.clip, anchors(PROMPTS[0]), QUICK)


@pytest.mark.parametrize(
    ("prompts", "change", "message"),
    [
        ((), {}, "prompts: expected at least one line"),
        (PROMPTS, {"run_steps": 5}, r"run_steps: expected 1 to steps \(4\), got 5"),
        (PROMPTS, {"run_steps": 0}, "run_steps: expected 1 to steps"),
        (PROMPTS, {"latents": 0}, "latents: expected 1 or more"),
        (PROMPTS, {"width": 65}, "width: expected a multiple of 8"),
        (PROMPTS, {"height": 4}, "height: expected a multiple of 8"),
        (PROMPTS, {"sampler_name": "dpm_adaptive"}, "sampler_name: expected a sampler that"),
        (PROMPTS, {"scheduler": "none"}, "scheduler: expected one of"),
    ],
)
def test_settings_out_of_range_name_their_input(
    loaded: Loaded, prompts: tuple[str, ...], change: dict[str, Any], message: str
) -> None:
    with pytest.raises((CaptureError, TrajectoryError), match=message):
        capture(loaded.model, loaded.clip, anchors(*prompts), QUICK._replace(**change))


def test_a_missing_text_encoder_is_reported(loaded: Loaded) -> None:
    with pytest.raises(ValueError, match="clip: expected a text encoder, got none"):
        capture(loaded.model, None, anchors(*PROMPTS), QUICK)


def test_the_trajectory_and_the_model_are_recorded(loaded: Loaded) -> None:
    captured = capture(loaded.model, loaded.clip, anchors(PROMPTS[0]), QUICK)
    assert captured.trajectory == QUICK
    model = captured.model
    assert model.name.endswith("SD15)") or model.name == "SD15"
    assert model.family == "unet"
    assert model.precision == str(loaded.model.model_dtype()).removeprefix("torch.")
    assert model.sketch.keys() == captured.rows.keys()


def test_without_a_size_the_picture_has_the_model_s_usual_one(loaded: Loaded) -> None:
    quick = Trajectory(steps=4, run_steps=1, latents=1)
    usual = capture(loaded.model, loaded.clip, anchors(PROMPTS[0]), quick)
    assert usual.trajectory == quick._replace(width=64, height=64)  # the shipped model's
    tall = capture(loaded.model, loaded.clip, anchors(PROMPTS[0]), quick._replace(height=128))
    assert (tall.trajectory.width, tall.trajectory.height) == (64, 128)


def test_cells_are_parts_of_the_picture(loaded: Loaded) -> None:
    whole = capture(loaded.model, loaded.clip, anchors(*PROMPTS[:2]), QUICK)
    parts = capture(loaded.model, loaded.clip, anchors(*PROMPTS[:2]), QUICK._replace(cells=2))
    for layer, rows in whole.rows.items():
        assert parts.rows[layer].shape == (4 * len(rows), rows.shape[1])
        assert torch.allclose(parts.pooled().rows[layer], rows, atol=TOLERANCE)
        cells = parts.rows[layer].view(len(rows), 4, -1)
        assert not torch.allclose(cells[:, 0], cells[:, 3], atol=TOLERANCE)


def test_cells_go_from_left_to_right_and_down() -> None:
    grid = Grid(2, (8, 4))
    h = torch.arange(32.0).view(1, 32, 1)  # positions of an 8 x 4 picture
    assert grid.pool(h, "layer").cells.flatten().tolist() == [6.5, 8.5, 22.5, 24.5]
    assert grid.pool(h, "layer").means.tolist() == [[15.5]]
    assert Grid(1, (8, 4)).pool(h, "layer").cells.tolist() == [[[15.5]]]
    assert Grid(2, (15, 9)).pool(torch.rand(3, 8 * 5, 6), "layer").cells.shape == (3, 4, 6)
    with pytest.raises(CaptureError, match="cells: layer layer has 30 positions"):
        grid.pool(h[:, :30], "layer")


def test_anchors_take_fewer_cells_where_memory_is_short(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (Anchors(anchors(PROMPTS[0]), anchors(PROMPTS[1])), QUICK._replace(cells=4))
    found, *_ = capture_both(loaded.model, loaded.clip, *asked)
    assert found.trajectory.cells == 4
    size = sum(rows.nbytes for rows in found.rows.values())
    monkeypatch.setattr(run, "MOST_MEMORY", size)  # of both together it is twice that
    less, retain, _ = capture_both(loaded.model, loaded.clip, *asked)
    assert retain is not None
    assert less.trajectory.cells == retain.trajectory.cells == 2
