"""Which layers are found, and what counts as another model."""

from __future__ import annotations

from pathlib import Path

import comfy.supported_models
import pytest
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from comfyui_pure.nodes.host.identity import fingerprint
from comfyui_pure.nodes.host.sites import ModelError, Sites, architecture

from testbed.comfy.stock import (
    UNSERVED,
    Loaded,
    execute,
    load,
    projection,
    sample,
    unserved,
    weight_key,
    with_lora,
)


def test_every_text_reading_layer_is_found_and_no_other(loaded: Loaded) -> None:
    sites = Sites.of(loaded.model).sites
    keys = {key for key in loaded.model.model.state_dict() if key.endswith("attn2.to_v.weight")}
    assert {weight_key(site, "values") for site in sites} == keys
    assert len(sites) == 7
    for site in sites:
        weight = projection(loaded.model, site, "values").weight
        assert tuple(weight.shape) == (site.width, site.text_width)
        assert site.text_width == 768  # the text's, not the image's
    assert architecture(loaded.model) == "SD15"


def test_layer_names_are_module_paths(loaded: Loaded) -> None:
    assert "input_blocks.1.1.transformer_blocks.0.attn2" in Sites.of(loaded.model).widths()


@pytest.mark.parametrize("name", UNSERVED)
def test_a_model_of_no_known_family_is_refused(name: str) -> None:
    if not hasattr(comfy.supported_models, name):
        pytest.skip(f"this ComfyUI has no {name}")
    with pytest.raises(
        ModelError, match=rf"model: {name} is not supported yet. Expected one of: .*U-Nets"
    ):
        Sites.of(unserved(name))


def test_fingerprint_names_the_model_whatever_was_done_with_it(
    loaded: Loaded, checkpoint: Path
) -> None:
    fresh = fingerprint(loaded.model)
    patched = with_lora(loaded.model)
    sample(patched, loaded.clip)  # leaves the LoRA in the shared module's weights
    assert fingerprint(loaded.model) == fresh
    assert fingerprint(loaded.model.clone()) == fresh
    assert fingerprint(load(checkpoint).model) == fresh


def test_fingerprint_tells_patched_models_apart(loaded: Loaded) -> None:
    attention = loaded.model.clone()
    attention.set_model_attn2_replace(lambda q, k, v, extra: v, "middle", 0)
    weights = loaded.model.clone()
    key = weight_key(Sites.of(weights).sites[0], "values")
    weights.add_patches({key: ("diff", (weights.model.state_dict()[key] * 0.1,))})
    models = [
        loaded.model,
        attention,
        weights,
        with_lora(loaded.model),
        with_lora(loaded.model, strength=0.5),
        with_lora(loaded.model, seed=1),
    ]
    assert len({fingerprint(model) for model in models}) == len(models)


def test_fingerprint_tells_kinds_of_prediction_apart(loaded: Loaded) -> None:
    """They are objects of one class name, made anew by every run of the node."""

    def under(sampling: str, zsnr: bool) -> str:
        node = {"model": loaded.model, "sampling": sampling, "zsnr": zsnr}
        return fingerprint(execute(ModelSamplingDiscrete, **node)[0])

    kinds = [("eps", False), ("eps", True), ("v_prediction", False), ("v_prediction", True)]
    found = [under(*kind) for kind in kinds]
    assert len({fingerprint(loaded.model), *found}) == 1 + len(kinds)
    assert [under(*kind) for kind in kinds] == found


def test_fingerprint_tells_checkpoints_apart(loaded: Loaded, checkpoint: Path) -> None:
    other = load(checkpoint).model
    projection(other, Sites.of(other).sites[-1], "values").weight.data += 0.01
    assert fingerprint(other) != fingerprint(loaded.model)
