"""Methods on the text in transformers edit the map through which text enters, or the sites."""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from pathlib import Path

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfyui_pure.nodes.host.capture import capture
from comfyui_pure.nodes.host.conditioning import adapted, as_entering, encode
from comfyui_pure.nodes.host.export import save_lora
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.sites import EffectiveWeights, ModelError, Sites
from comfyui_pure.nodes.host.text import text_task
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.errors import FitError
from comfyui_pure.pure_core.export.lora import DIFFUSERS
from comfyui_pure.pure_core.families import ROLES
from comfyui_pure.pure_core.files.eraser import load_eraser, save_eraser
from comfyui_pure.pure_core.fitting import fit_text
from comfyui_pure.pure_core.methods import TEXT_METHODS
from comfyui_pure.pure_core.text import TextTask
from safetensors.torch import load_file
from torch import Tensor

from testbed.comfy.transformer_measures import (
    ANCHORS,
    PREFIX,
    captured,
    exported,
    made_up,
    relative,
    sampled,
    trajectory,
    untouched,
)
from testbed.comfy.transformers import (
    ALL,
    encoded,
    small_encoder,
)
from tests.comfy.test_transformers import ALIGNMENT, each, each_kind, model_of

REFUSED = ("HunyuanDiT", "LTX-2", "HiDream")
"""Kinds that read more than one text encoder's tokens."""


def require_edited(model: ModelPatcher, patched: ModelPatcher, eraser: Eraser) -> None:
    """What the eraser edits is W E, or E W in activations, and nothing else has changed."""
    before, after = (EffectiveWeights(each, Sites.of(each)) for each in (model, patched))
    sites = Sites.of(model)
    for layer, role in product(eraser.layers, ROLES):
        (rows,) = sites.rows(layer, [role])
        weight, found = before.weight(layer, role).double(), after.weight(layer, role)
        dense = eraser.layers[layer].to(torch.float64).P
        wanted = weight
        if role in eraser.roles:
            wanted = weight @ dense if eraser.space == "text" else dense @ weight
            assert relative(wanted, weight) > 1e-3
        assert relative(found, wanted) <= 1e-6
        if rows.bias and eraser.space == "text":
            one, other = before.bias(layer, role), after.bias(layer, role)
            assert one is not None and other is not None and torch.equal(one, other)


@each_kind
def test_methods_on_the_text_edit_where_it_enters(name: str) -> None:
    model = model_of(name)
    sites = Sites.of(model)
    assert sites.family.edits_text(sites.net) == (name not in REFUSED)
    if name in REFUSED:
        with pytest.raises(ModelError, match="model: methods on the text cannot edit"):
            sites.require_edits_text()
        return
    task, entry = made_up(name, model), sites.entry
    assert (entry is None) == (sites.family.name in ("cosmos1", "cosmos2"))
    with untouched(model):
        for method in sorted(TEXT_METHODS):
            eraser = fit_text(method, task)
            patched = patch(model, eraser)
            count = len(sites.sites) * len(eraser.roles) if entry is None else 1
            assert patched.summary.startswith(f"Patched {count} weights in ")
            require_edited(model, patched.model, eraser)
        if entry is not None:
            with pytest.raises(ModelError, match="keys and values change together"):
                patch(model, eraser.applied(1.0, "values"))


@each_kind
def test_an_eraser_of_the_text_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    """Patch, sample, file, checkpoint, LoRA."""
    model = model_of(name)
    sites = Sites.of(model)
    if not sites.family.edits_text(sites.net):
        pytest.skip("methods on the text are refused for this family")
    with untouched(model):
        fitted, path = fit_text("uce", made_up(name, model)), tmp_path / "eraser.safetensors"
        save_eraser(fitted, path)
        eraser = load_eraser(path)
        assert eraser.widths == sites.widths(text=True)
        if name != "Krea 2":  # its own layers make narrower vectors of its encoder's
            assert set(eraser.widths.values()) == {ALL[name].width}
        plain = sampled(name, model)
        patched = patch(model, eraser).model
        erased = sampled(name, patched)
        assert bool(torch.isfinite(erased).all()) and relative(erased, plain.double()) > 1e-3
        nothing = sampled(name, patch(model, eraser.applied(0)).model)
        assert relative(nothing, plain.double()) <= ALIGNMENT.get(name, 0.0)

        file = exported(name, model, eraser, tmp_path)
        rows = [each for layer in eraser.layers for each in sites.rows(layer, eraser.roles)]
        expected = {f"{PREFIX}{each.module}.weight" for each in rows}
        assert file.changed == expected
        assert relative(sampled(name, file.model), erased.double()) <= ALIGNMENT.get(name, 0.0)

        save_lora(model, [eraser], torch.float32, tmp_path / "lora.safetensors")
        lora = load_file(tmp_path / "lora.safetensors")
        assert not any(key.endswith("diff_b") for key in lora)
        loaded = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
        require_edited(model, loaded, eraser)


def test_the_entry_has_a_name_in_the_library(tmp_path: Path) -> None:
    model = model_of("Wan 2.1 T2V")
    eraser = fit_text("uce", made_up("Wan 2.1 T2V", model))
    save_lora(model, [eraser], torch.float32, tmp_path / "lora.safetensors", DIFFUSERS)
    name = "transformer.condition_embedder.text_embedder.linear_1"
    assert load_file(tmp_path / "lora.safetensors").keys() == {
        f"{name}.lora_A.weight",
        f"{name}.lora_B.weight",
    }


@each(["Qwen-Image", "Z-Image", "Lens", "Krea 2"])
def test_what_comes_before_the_entry_is_applied(name: str) -> None:
    """What is fitted on is what the edited map takes, heard in a call of the model itself."""
    model, sites = model_of(name), Sites.of(model_of(name))
    prompt, empty = encoded(name, 2)
    assert sites.entry is not None
    heard: list[Tensor] = []
    module = sites.net.get_submodule(sites.entry.module)
    with untouched(model):
        handle = module.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
        captured(name, model, [prompt, empty], latents=1)
        handle.remove()
        entering = as_entering(model, sites, prompt.tokens)
    same = entering.shape == prompt.tokens.shape
    assert not same or relative(entering, prompt.tokens.double()) > 0.1
    assert relative(entering, heard[0][:1, : entering.shape[1]].double()) <= 1e-6


encoder = cache(partial(small_encoder, "PixArt sigma"))


def test_words_are_found_among_t5_s_tokens() -> None:
    """T5 has no start token and PixArt no padding; '</s>' ends a prompt, the empty one, too."""
    model, clip = model_of("PixArt sigma"), encoder()
    forget = AnchorSet.written([["a fox", "a photo of a fox"]])
    task = text_task(model, clip, forget, AnchorSet.written([["a cat"]]), ["an animal"])
    assert task.forget.start == 0 and task.empty.ends == (0,)
    pieces = [clip.tokenize(prompt)["t5xxl"][0] for prompt in forget.prompts]
    assert [token for token, _ in pieces[0]][-1] == 1
    for number, prompt in enumerate(forget.prompts):
        whole = clip.encode_from_tokens(clip.tokenize(prompt))[0].double()
        count = len(pieces[number]) - 1
        assert task.forget.ends[number] == count == len(task.forget.words_of(number))
        assert torch.equal(task.forget.words_of(number), whole[:count])
        assert torch.equal(task.forget.last[number], whole[count - 1])
        assert torch.equal(task.forget.end_of(number), whole[count])
    assert torch.equal(task.empty.last[0], task.empty.vectors[0][0])


@each(["Kandinsky 5 image", "Anima"])
def test_words_are_found_behind_a_template_and_an_adapter(name: str) -> None:
    """Kandinsky's Qwen cuts its template away; Anima's adapter makes a vector of each T5 token."""
    model, clip = model_of(name), small_encoder(name)
    forget = AnchorSet.written([["a fox", "a photo of a fox"]])
    task = text_task(model, clip, forget, AnchorSet.written([["a cat"]]), ["an animal"])
    assert task.forget.start == 0 and task.empty.ends == (0,)
    key = "t5xxl" if name == "Anima" else "qwen25_7b"
    for number, prompt in enumerate(forget.prompts):
        tokens, empty = ([t for t, *_ in clip.tokenize(p)[key][0]] for p in (prompt, ""))
        words = len(tokens) - len(empty)
        assert task.forget.ends[number] == words
        whole = adapted(model, encode(clip, prompt)).tokens[0].double()
        assert torch.equal(task.forget.words_of(number), whole[:words])
        assert torch.equal(task.forget.end_of(number), whole[words])
    eraser = fit_text("uce", task)
    require_edited(model, patch(model, eraser).model, eraser)


TOKENIZERS = {
    "Flux.1": "t5xxl",
    "HunyuanVideo": "llama",
    "Z-Image": "qwen3_4b",
    "OmniGen 2": "qwen25_3b",
    "Krea 2": "qwen3vl_4b",
}
"""The one whose tokens get vectors; Flux.1 and HunyuanVideo have CLIP's beside it."""


@each(list(TOKENIZERS))
def test_words_are_found_whatever_stands_around_them(name: str) -> None:
    """Their vectors are those of the tokens that read as the prompt."""
    model, clip = model_of(name), small_encoder(name)
    forget = AnchorSet.written([["fox", "a photo of a red fox"]])
    task = text_task(model, clip, forget, AnchorSet.written([["cat"]]), ["animal"])
    tokenizer = getattr(clip.tokenizer, TOKENIZERS[name]).tokenizer
    for number, prompt in enumerate(forget.prompts):
        ids = [token for token, *_ in clip.tokenize(prompt)[TOKENIZERS[name]][0]]
        count = len(task.forget.words_of(number))
        decoded = [tokenizer.decode(ids[at : at + count]) for at in range(len(ids))]
        read = [words.replace(" ", "") for words in decoded]  # Llama's writes none
        whole = encode(clip, prompt).tokens
        entering = as_entering(model, Sites.of(model), whole)[0].double()
        place = task.forget.start
        assert torch.equal(task.forget.words_of(number), entering[place : place + count])
        in_front = read.index(prompt.replace(" ", "")) - place  # tokens without a vector
        assert in_front == max(0, len(ids) - len(entering))
    eraser = fit_text("token ridge", task)
    require_edited(model, patch(model, eraser).model, eraser)


@pytest.mark.parametrize("method", sorted(TEXT_METHODS))
def test_a_concept_is_read_as_its_anchor(method: str) -> None:
    """Through T5: what enters the model for the concept's last token moves to the anchor's."""
    model, clip = model_of("PixArt sigma"), encoder()
    retain = AnchorSet.written([["a cat", "a horse", "the old house"]])
    task = text_task(model, clip, AnchorSet.written([["a fox"]]), retain, ["an animal"])
    with untouched(model):
        patched = patch(model, fit_text(method, task)).model
        require_edited(model, patched, fit_text(method, task))
        if method in ("uce", "double projections"):
            assert distance(patched, task) < 0.8 * distance(model, task)


def test_trce_moves_how_a_prompt_ends_through_t5() -> None:
    """T5 has no start token, PixArt no padding: the end token is what is left to move."""
    model, clip = model_of("PixArt sigma"), encoder()
    captions = TEXT_METHODS["trce"].captions
    given = (model, clip, AnchorSet.written([["a fox"]]), AnchorSet(), ["an animal"])
    task = text_task(*given, captions)
    (entry,) = task.model.layers
    end, there = task.forget.end_of(0), task.anchor.end_of(0)

    def missed(patched: ModelPatcher) -> float:
        weight = EffectiveWeights(patched, Sites.of(patched)).weight(entry, "values").double()
        return float((weight @ end - task.model.weight_of(entry, "values").double() @ there).norm())

    with untouched(model):
        firm = patch(model, fit_text("trce", task, caption_weight=1e-5)).model
        assert missed(firm) < 0.1 * missed(model)
        careful = patch(model, fit_text("trce", task, caption_weight=10.0)).model
        assert missed(firm) < missed(careful)
        with pytest.raises(FitError, match="expected one above 0, of a token that this"):
            fit_text("trce", task, end_weight=0.0, padding_weight=1.0, start_weight=1.0)


def distance(model: ModelPatcher, task: TextTask) -> float:
    """Between what the model makes of the concept and what the loaded one makes of its anchor."""
    weight: Tensor = EffectiveWeights(model, Sites.of(model)).weight(task.model.layers[0], "values")
    wanted = task.anchor.last @ task.model.weight_of(task.model.layers[0], "values").double().T
    return float((task.forget.last @ weight.double().T - wanted).norm())


def test_a_text_encoder_that_says_only_half_is_told() -> None:
    """HunyuanDiT's second encoder is missing; this one is as wide as its first."""
    with pytest.raises(ModelError, match="clip: it gives no 'conditioning_mt5xl'"):
        capture(model_of("HunyuanDiT"), encoder(), ANCHORS, trajectory("HunyuanDiT"))
