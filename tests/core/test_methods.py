"""What every method declares holds: settings, presets, remedies, record."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import pure_core.methods
from pure_core.eraser import EDITS
from pure_core.errors import FitError
from pure_core.fitting import TOGETHER, fit, fit_text
from pure_core.methods import METHODS, TEXT_METHODS, Method, Setting
from pure_core.progress import no_progress
from tests.core.texts import text_task

EVERY = {**METHODS, **TEXT_METHODS}
SETTINGS = [(method, each) for method, chosen in EVERY.items() for each in chosen.settings]
each_method = pytest.mark.parametrize("name", EVERY)
each_setting = pytest.mark.parametrize(
    ("name", "setting"), SETTINGS, ids=[f"{name}-{each.name}" for name, each in SETTINGS]
)


def fitted(make_activations, name: str, **settings: object):
    if name in METHODS:
        forget, retain = make_activations(prompts=2, seed=1), make_activations(prompts=2, seed=2)
        return fit(name, forget, retain, no_progress, TOGETHER, **settings)
    return fit_text(name, text_task(), no_progress, **settings)


def test_methods_are_found_by_being_there():
    folder = Path(pure_core.methods.__file__).parent
    files = [path for path in folder.glob("*.py") if "\nMETHOD = " in path.read_text("utf-8")]
    assert len(EVERY) == len(METHODS) + len(TEXT_METHODS) == len(files)
    assert {path.stem.replace("_", " ") for path in files} == set(EVERY)
    assert list(METHODS)[:2] == ["pure", "ridge"]


@each_method
def test_a_method_says_what_it_is(name):
    method = EVERY[name]
    assert method.name == name and method.source and method.edit in EDITS
    assert method.summary.endswith(".") and method.summary[0].isupper()
    names = [each.name for each in method.settings]
    assert len(set(names)) == len(names) and "max_rank" not in names


@each_setting
def test_a_setting_is_declared_with_its_default_in_its_range_and_help(name, setting: Setting):
    setting.check(setting.default)
    assert len(setting.help) > 20 and setting.help.endswith(".")
    assert setting.name.isidentifier() and setting.range
    if setting.choices:
        assert setting.default in setting.choices
    else:
        assert -math.inf < setting.least < setting.most < math.inf and setting.step > 0


def test_settings_of_one_name_are_the_same_setting():
    """Nodes show the settings of all methods in one form."""
    for table in (METHODS, TEXT_METHODS):
        declared = [each for method in table.values() for each in method.settings]
        assert len({each.name for each in declared}) == len(set(declared))


def outside(setting: Setting) -> list[object]:
    if setting.choices:
        return ["something else", ""]
    below = setting.least if setting.above else setting.least - 1
    halves = [setting.least + 0.5] if setting.whole else []
    return [below, setting.most + 1, math.nan, math.inf, -math.inf, *halves]


@each_setting
def test_a_setting_outside_its_range_is_refused_by_name(make_activations, name, setting: Setting):
    for value in outside(setting):
        with pytest.raises(FitError, match=f"{setting.name}: expected "):
            fitted(make_activations, name, **{setting.name: value})


@each_setting
def test_a_setting_may_be_at_the_ends_of_its_range(name, setting: Setting):
    least = setting.least + setting.step if setting.above else setting.least
    for value in setting.choices or (least, setting.most):
        assert EVERY[name].values({setting.name: value})[setting.name] == value


@each_method
def test_presets_are_valid_settings(name):
    method: Method = EVERY[name]
    for preset in method.presets.values():
        assert preset.keys() <= {each.name for each in method.settings}
        assert method.values(preset).items() >= preset.items()


@pytest.mark.parametrize("name", METHODS)
def test_remedies_name_only_the_method_s_own_settings(name):
    method = METHODS[name]
    for remedy in method.remedies:
        said = remedy.format(**method.values({}))
        assert "{" not in said and said == said.strip()
    assert method.remedies.little_removed and method.remedies.little_kept


@each_method
def test_the_record_gives_the_settings_back(make_activations, name):
    method = EVERY[name]
    changed = {
        each.name: each.choices[-1]
        if each.choices
        else (each.default + 1 if each.whole else each.default * 0.5 + each.most * 0.01)
        for each in method.settings
    }
    for given in ({}, changed):
        eraser = fitted(make_activations, name, **given)
        found = dict(eraser.provenance.settings)
        assert ("anchor" in found) == (name in TEXT_METHODS)
        found.pop("anchor", None)
        assert found.items() >= method.values(given).items() >= given.items()
        assert (found == method.values(given)) == ("calibrated" not in name)
        assert (eraser.provenance.method, eraser.edited) == (name, method.edit)
        assert (eraser.strength, eraser.edit) == (1.0, None)


@pytest.mark.parametrize("name", METHODS)
def test_neighbours_are_required_where_it_is_said(make_activations, name):
    forget = make_activations(prompts=2, seed=1)
    if METHODS[name].needs_retain:
        with pytest.raises(FitError, match=f"retain: the method {name} needs"):
            fit(name, forget, None)
    else:
        assert max(fit(name, forget, None).ranks.values()) > 0
