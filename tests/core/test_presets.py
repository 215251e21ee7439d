"""Presets are what authors use by kind of concept; without settings a method has its defaults."""

from __future__ import annotations

import pytest

from pure_core.concepts import KINDS
from pure_core.fitting import fit, fit_text
from pure_core.methods import METHODS, TEXT_METHODS
from tests.core.texts import text_task

EVERY = {**METHODS, **TEXT_METHODS}


@pytest.mark.parametrize("name", EVERY)
def test_presets_by_kind_are_presets_and_kinds_that_there_are(name):
    method = EVERY[name]
    assert set(method.preset_for_kind) <= set(KINDS)
    assert set(method.preset_for_kind.values()) <= set(method.presets)


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("cure", "object", {"alpha": 2}),
        ("cure", "unsafe content", {"alpha": 5}),
        ("rece", "object", {"rounds": 1, "recovery": 0.1, "round_ridge": 0.1}),
        ("rece", "style", {"rounds": 1, "recovery": 0.001, "round_preserve": 0.1}),
        ("rece", "unsafe content", {"rounds": 2, "recovery": 0.1}),
        ("oce", "object", {"rotation": 200, "general": 1, "preserve_values": 0}),
        ("oce", "style", {"rotation": 50, "general": 1, "preserve_values": 0.1}),
        ("oce", "person", {"rotation": 350, "general": 5, "preserve_values": 0.5}),
        ("oce", "unsafe content", {"rotation": 300, "general": 2, "preserve_values": 0}),
    ],
)
def test_what_the_authors_use_by_kind(name, kind, settings):
    method = EVERY[name]
    assert settings.items() <= method.presets[method.preset_for_kind[kind]].items()


def test_pure_has_the_authors_range_and_what_the_small_model_needs():
    presets = METHODS["pure"].presets
    assert 0.95 <= presets["authors' range"]["forget_energy"] <= 0.99
    assert presets["small U-Net"] == METHODS["pure"].values({})


@pytest.mark.parametrize("name", EVERY)
def test_no_settings_are_the_declared_defaults(make_activations, name):
    defaults = {each.name: each.default for each in EVERY[name].settings}

    def fitted(**settings):
        if name in TEXT_METHODS:
            return fit_text(name, text_task(), **settings)
        forget, retain = make_activations(prompts=2, seed=1), make_activations(prompts=2, seed=2)
        return fit(name, forget, retain, **settings)

    bare, spelt = fitted(), fitted(**defaults)
    assert defaults.items() <= bare.provenance.settings.items()
    assert bare.provenance.settings == spelt.provenance.settings
    for layer, one in bare.layers.items():
        assert one.proj_left.equal(spelt.layers[layer].proj_left)
        assert one.proj_right.equal(spelt.layers[layer].proj_right)
