"""Widgets for the settings that methods declare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..pure_core.errors import FitError, require_one_of
from ..pure_core.methods import Method, Setting

DIGITS = 0.00001
"""Numbers are rounded to this, finer than any step."""


AS_SET = "as set below"
"""The choice of no preset."""


def preset_input(methods: Mapping[str, Method]) -> io.Input:
    """The choice of settings that belong together."""
    names = [f"{each.name}: {preset}" for each in methods.values() for preset in each.presets]
    widget = io.Combo.Input(
        "preset",
        options=[AS_SET, *names],
        default=AS_SET,
        optional=True,
        tooltip=(
            "Settings that belong together, instead of those below: a method's name, then whose "
            "or what they are for."
        ),
    )
    return _used_by([method.name for method in methods.values() if method.presets], widget)


def setting_inputs(methods: Mapping[str, Method]) -> list[io.Input]:
    """A widget for every setting of these methods, each once.

    All may be left out, and those that are folded away come last. The editor shows those of the
    chosen method: see `web/methods.js`.
    """
    users: dict[str, list[str]] = {}
    settings: dict[str, Setting] = {}
    for method in methods.values():
        for each in method.settings:
            users.setdefault(each.name, []).append(method.name)
            settings[each.name] = each
    ordered = sorted(settings.values(), key=lambda each: each.advanced)
    return [_setting_input(each, users[each.name]) for each in ordered]


def chosen_settings(method: Method, preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset, or those given if none was chosen.

    Raises:
        FitError: the preset is another method's.
    """
    if preset == AS_SET:
        return dict(given)
    name = preset.removeprefix(f"{method.name}: ")
    if name not in method.presets:
        known = [AS_SET, *(f"{method.name}: {each}" for each in method.presets)]
        require_one_of("preset", preset, known, FitError)
    return {**given, **method.presets[name]}


def _setting_input(setting: Setting, users: list[str]) -> io.Input:
    """The widget of one setting, with the methods that use it."""
    allowed = f"{setting.range[0].upper()}{setting.range[1:]}."
    common: dict[str, Any] = {
        "tooltip": f"{', '.join(users)}: {setting.help} {allowed}",
        "optional": True,
        "default": setting.default,
    }
    if setting.choices:
        widget: io.Input = io.Combo.Input(setting.name, options=list(setting.choices), **common)
    elif setting.whole:
        least, most = int(setting.least), int(setting.most)
        widget = io.Int.Input(setting.name, min=least, max=most, step=1, **common)
    else:
        widget = io.Float.Input(
            setting.name,
            min=setting.least + (DIGITS if setting.above else 0),
            max=setting.most,
            step=setting.step,
            round=DIGITS,
            **common,
        )
    if setting.advanced:
        widget.extra_dict["advanced"] = True
    return _used_by(users, widget)


def _used_by(methods: list[str], widget: io.Input) -> io.Input:
    """The widget, with the methods for which the editor shows it."""
    widget.extra_dict["pure_methods"] = methods
    return widget


def methods_tooltip(methods: Mapping[str, Method], more: str = "") -> str:
    """What each method does, for the tooltip of the choice."""
    lines = [f"{name}: {method.summary}" for name, method in methods.items()]
    return " ".join([*lines, more]).strip()
