"""The settings of methods as widgets: only those of the chosen method are shown, none is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from comfyui_pure.nodes import Fit, FitText
from comfyui_pure.nodes.settings import AS_SET, chosen_settings
from comfyui_pure.pure_core.errors import FitError
from comfyui_pure.pure_core.methods import METHODS, TEXT_METHODS, Method

from testbed.comfy.editor import RENDERERS, Editor, opened
from testbed.comfy.server import ComfyServer

TABLES = {"PURE_Fit": METHODS, "PURE_FitText": TEXT_METHODS}
NODES = {"PURE_Fit": Fit, "PURE_FitText": FitText}

ADD = """type => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [100, 200];
    return node.id;
}"""

CHOOSE = """([id, method]) => {
    const widget = app.graph.getNodeById(id).widgets.find(each => each.name === "method");
    widget.value = method;
    widget.callback?.(method, app.canvas, app.graph.getNodeById(id));
}"""

SHOWN = """id => app.graph.getNodeById(id).widgets
    .filter(each => !each.hidden).map(each => each.name)"""

DRAWN = """() => document.querySelector("[data-node-id]")?.innerText ?? "" """


@pytest.fixture(scope="module")
def editor(chromium: str, comfy_server: ComfyServer) -> Iterator[Editor]:
    """The editor in a browser, opened once."""
    with opened(comfy_server.address, chromium, "PURE_Fit") as editor:
        yield editor
        assert editor.errors == []


def expected(method: Method) -> set[str]:
    """What is shown for a method."""
    return {each.name for each in method.settings} | ({"preset"} if method.presets else set())


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("node", TABLES)
def test_only_the_chosen_methods_settings_are_shown(
    editor: Editor, node: str, renderer: str, comfy_version: tuple[int, ...]
) -> None:
    if renderer == "nodes2" and comfy_version < (0, 30):
        pytest.skip("the new nodes of that editor show all settings")
    editor.use(renderer)
    number = editor.page.evaluate(ADD, node)
    names = {each.id for each in NODES[node].GET_SCHEMA().inputs}
    for name, method in TABLES[node].items():
        editor.page.evaluate(CHOOSE, [number, name])
        editor.page.wait_for_timeout(300)
        shown = set(editor.page.evaluate(SHOWN, number))
        assert shown & owned(node) == expected(method), name
        if renderer == "nodes2":
            drawn = editor.page.evaluate(DRAWN).split("\n")
            assert expected(method) - advanced(node) <= set(drawn), (name, drawn)
            assert not (owned(node) - expected(method)) & set(drawn), (name, drawn)
    (saved,) = (each for each in editor.saved()["nodes"] if str(each["id"]) == str(number))
    widgets = [each for each in saved["inputs"] if "widget" in each]
    assert len(saved["widgets_values"]) >= len(widgets) - 1
    assert {each["name"] for each in widgets} <= names


def owned(node: str) -> set[str]:
    """What belongs to one method or some."""
    settings = (each.name for method in TABLES[node].values() for each in method.settings)
    return {"preset", *settings}


def advanced(node: str) -> set[str]:
    """Names of the inputs that the editor folds away."""
    inputs = NODES[node].GET_SCHEMA().inputs
    return {each.id for each in inputs if each.as_dict().get("advanced")}


def test_values_survive_a_change_of_the_method(editor: Editor) -> None:
    editor.use("classic")
    number = editor.page.evaluate(ADD, "PURE_Fit")
    editor.page.evaluate(CHOOSE, [number, "ridge"])
    editor.set_widget(number, "keep", 33)
    for method in ("leace", "ridge"):
        editor.page.evaluate(CHOOSE, [number, method])
    values = "id => app.graph.getNodeById(id).widgets.find(each => each.name === 'keep').value"
    assert editor.page.evaluate(values, number) == 33


@pytest.mark.parametrize(
    "method", [*METHODS.values(), *TEXT_METHODS.values()], ids=lambda m: m.name
)
def test_a_preset_gives_its_settings_and_anothers_is_refused(method: Method) -> None:
    given: dict[str, Any] = {"keep": 3.0}
    assert chosen_settings(method, AS_SET, given) == given
    for name, settings in method.presets.items():
        assert chosen_settings(method, f"{method.name}: {name}", given) == {**given, **settings}
    with pytest.raises(FitError, match=r"preset: expected one of as set below"):
        chosen_settings(method, "another: preset", given)
