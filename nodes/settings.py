"""Widgets for the settings that methods declare."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.latest import io

from ..pure_core.methods import Method, Setting

DIGITS = 0.00001
"""Numbers are rounded to this, finer than any step."""


def setting_inputs(methods: Mapping[str, Method]) -> list[io.Input]:
    """One widget for every setting of these methods, each once; all may be left out.

    Those that are folded away come last.
    """
    users: dict[str, list[str]] = {}
    settings: dict[str, Setting] = {}
    for method in methods.values():
        for each in method.settings:
            users.setdefault(each.name, []).append(method.name)
            settings[each.name] = each
    ordered = sorted(settings.values(), key=lambda each: each.advanced)
    return [setting_input(each, ", ".join(users[each.name])) for each in ordered]


def setting_input(setting: Setting, methods: str = "") -> io.Input:
    """The widget of one setting; `methods` are named where it is shown beside those of others."""
    tooltip = f"{setting.help} {setting.range[0].upper()}{setting.range[1:]}."
    if methods:
        tooltip = f"{methods}: {tooltip}"
    common = {"tooltip": tooltip, "optional": True}
    if setting.choices:
        widget: io.Input = io.Combo.Input(
            setting.name, options=list(setting.choices), default=setting.default, **common
        )
    elif setting.whole:
        widget = io.Int.Input(
            setting.name,
            default=setting.default,
            min=int(setting.least),
            max=int(setting.most),
            step=1,
            **common,
        )
    else:
        widget = io.Float.Input(
            setting.name,
            default=setting.default,
            min=setting.least + (DIGITS if setting.above else 0),
            max=setting.most,
            step=setting.step,
            round=DIGITS,
            **common,
        )
    if setting.advanced:
        widget.extra_dict["advanced"] = True
    return widget


def methods_tooltip(methods: Mapping[str, Method], more: str = "") -> str:
    """What each method does, for the tooltip of the choice."""
    lines = [f"{name}: {method.summary}" for name, method in methods.items()]
    return " ".join([*lines, more]).strip()
