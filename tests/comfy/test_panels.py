"""The panels on nodes, in both renderers and themes, through everything a person does to a page."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import ElementHandle

from dev.console import ROOT
from testbed.comfy.editor import RENDERERS, Editor, finished, opened
from testbed.comfy.examples import FILES, example, load
from testbed.comfy.server import ComfyServer

EXAMPLE = "Erase a concept"
LAYERS = 7
REPORT, COMPARE = "pure_report", "pure_compare"
each_renderer = pytest.mark.parametrize("renderer", RENDERERS)


@pytest.fixture(scope="module")
def editor(chromium: str, comfy_server: ComfyServer) -> Iterator[Editor]:
    """The editor in a browser, opened once."""
    with opened(comfy_server.address, chromium, "PURE_Compare") as editor:
        yield editor
        assert editor.errors == []


@pytest.fixture(scope="module")
def nodes() -> dict[str, int]:
    """Ids of the example's nodes by type; of several, the last."""
    return {node["type"]: node["id"] for node in example(EXAMPLE)["nodes"]}


@pytest.fixture(scope="module")
def ran(editor: Editor, comfy_server: ComfyServer, nodes: dict[str, int]) -> dict[str, Any]:
    """The example after a quick run, as saved, and what the server says of it."""
    open_quick(editor, nodes)
    outputs = finished(editor, comfy_server, editor.queue())
    return {"saved": editor.saved(), "outputs": outputs}


@pytest.fixture
def page(editor: Editor, ran: dict[str, Any]) -> Iterator[Editor]:
    """The example after its run, in the classic renderer, the dark theme."""
    editor.use()
    editor.open(ran["saved"])
    yield editor
    editor.page.keyboard.press("Escape")


def open_quick(editor: Editor, nodes: dict[str, int], latents: int = 1) -> None:
    """The example, with as little work as shows something."""
    editor.open(example(EXAMPLE))
    editor.set_widget(nodes["PURE_EraseConcept"], "latents", latents)
    editor.set_widget(nodes["PURE_EraseConcept"], "run_steps", 2)
    editor.set_widget(nodes["PURE_EraseConcept"], "neighbours", "Waffle\nFennel\nQuibble")
    editor.set_widget(nodes["EmptyLatentImage"], "batch_size", 2)
    for node in example(EXAMPLE)["nodes"]:
        if node["type"] == "KSampler":
            editor.set_widget(node["id"], "steps", 4)


def shot(editor: Editor, server: ComfyServer, name: str) -> None:
    editor.screenshot(server.base / "screenshots" / f"{name}.png")


def shown(editor: Editor, nodes: dict[str, int]) -> None:
    """Both panels show the run."""
    editor.wait_for_bars(editor.panel(nodes["PURE_EraseConcept"], REPORT))
    editor.wait_for_pictures(editor.panel(nodes["PURE_Compare"], COMPARE))


def report_in_view(editor: Editor, nodes: dict[str, int]) -> ElementHandle:
    """The report's panel with its layers, as large as the window allows."""
    editor.look_at(nodes["PURE_EraseConcept"])
    panel = editor.panel(nodes["PURE_EraseConcept"], REPORT)
    editor.wait_for_bars(panel)
    return panel


def comparison_in_view(editor: Editor, nodes: dict[str, int]) -> ElementHandle:
    """The comparison's panel with its pictures, as large as the window allows."""
    editor.look_at(nodes["PURE_Compare"])
    panel = editor.panel(nodes["PURE_Compare"], COMPARE)
    editor.wait_for_pictures(panel)
    return panel


def with_another_concept(saved: dict[str, Any]) -> dict[str, Any]:
    """The same workflow, erasing something else."""
    other = json.loads(json.dumps(saved))
    for node in other["nodes"]:
        if node["type"] == "PURE_EraseConcept":
            node["widgets_values"][0] = "Bramble"
    return other


def assert_stays_empty(editor: Editor, nodes: dict[str, int]) -> None:
    """No run comes to the report's panel."""
    editor.page.wait_for_timeout(2000)
    report = editor.panel(nodes["PURE_EraseConcept"], REPORT)
    assert not report.query_selector_all(".pure-bar")


@pytest.mark.parametrize("look", itertools.product(RENDERERS, ("dark", "light")), ids="-".join)
def test_the_report_shows_every_layer(
    page: Editor,
    ran: dict[str, Any],
    nodes: dict[str, int],
    comfy_server: ComfyServer,
    look: tuple[str, str],
) -> None:
    renderer, theme = look
    ((report,),) = [out[REPORT] for out in ran["outputs"].values() if REPORT in out]
    page.use(renderer, theme)
    panel = report_in_view(page, nodes)
    bars = panel.query_selector_all(".pure-bar")
    assert len(bars) == len(report["layers"]) == LAYERS
    layer = report["layers"][2]
    bars[2].hover()
    details = panel.query_selector(".pure-details").inner_text()
    assert layer["short_name"] in details
    for measure in ("removed", "shift", "kept"):
        assert f"{measure} {round(100 * layer[measure] + 1e-9)}%" in details.replace("\n", " ")
    assert f"{layer['rank']} of {layer['width']}" in details
    shot(page, comfy_server, f"report-{renderer}-{theme}")
    page.look_at(nodes["PURE_Compare"])
    shot(page, comfy_server, f"compare-{renderer}-{theme}")


@each_renderer
def test_a_layer_is_kept_and_measures_change(
    page: Editor, nodes: dict[str, int], renderer: str
) -> None:
    page.use(renderer)
    panel = report_in_view(page, nodes)
    panel.query_selector_all(".pure-bar")[1].click()
    page.page.mouse.move(5, 500)
    kept = panel.query_selector(".pure-details").inner_text()
    assert "layer" in kept and "mean of" not in kept
    panel.query_selector(".pure-choice button:last-child").click()
    assert panel.query_selector(".pure-bars").get_attribute("data-measure") == "rank"


def test_keys_go_from_layer_to_layer(page: Editor, nodes: dict[str, int]) -> None:
    panel = report_in_view(page, nodes)
    for group in (".pure-bars", ".pure-choice"):
        assert len(panel.query_selector_all(f"{group} [tabindex='0']")) == 1
    bars = panel.query_selector_all(".pure-bar")
    bars[0].focus()
    for _ in range(2):
        page.page.keyboard.press("ArrowRight")
    focused = page.page.evaluate("document.activeElement.ariaLabel")
    assert focused == bars[2].get_attribute("aria-label")
    name = focused.partition(":")[0]
    assert name in panel.query_selector(".pure-details").inner_text()
    page.page.keyboard.press("Tab")
    assert "mean of" in panel.query_selector(".pure-details").inner_text()


@each_renderer
def test_the_slider_follows_the_pointer(page: Editor, nodes: dict[str, int], renderer: str) -> None:
    page.use(renderer)
    panel = comparison_in_view(page, nodes)
    stage = panel.query_selector(".pure-stage")
    box = stage.bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    part = "stage => parseFloat(stage.style.getPropertyValue('--part'))"
    assert page.page.evaluate(part, stage) == pytest.approx(25, abs=2)
    first = panel.query_selector("img.pure-before").get_attribute("src")
    panel.query_selector(".pure-pairs button:last-child").click()
    page.wait_for_pictures(panel)
    assert panel.query_selector("img.pure-before").get_attribute("src") != first
    assert "2 of 2" in panel.inner_text()
    for mode in ("difference", "side by side"):
        panel.query_selector(f"button:text-is('{mode}')").click()
        assert stage.get_attribute("data-mode") == mode.replace(" ", "_")


@each_renderer
def test_dragging_the_slider_leaves_the_node(
    page: Editor, nodes: dict[str, int], renderer: str
) -> None:
    page.use(renderer)
    panel = comparison_in_view(page, nodes)
    where = f"Array.from(app.graph.getNodeById({nodes['PURE_Compare']}).pos)"
    before = page.page.evaluate(where)
    box = panel.query_selector(".pure-stage").bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4, steps=5)
    page.page.mouse.up()
    assert page.page.evaluate(where) == before


def test_the_wheel_over_a_panel_zooms_the_canvas(page: Editor, nodes: dict[str, int]) -> None:
    page.look_at(nodes["PURE_Compare"])
    box = page.panel(nodes["PURE_Compare"], COMPARE).bounding_box()
    before = page.page.evaluate("app.canvas.ds.scale")
    page.page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.page.mouse.wheel(0, 240)
    page.page.wait_for_timeout(500)
    assert page.page.evaluate("app.canvas.ds.scale") < before


def test_panels_are_saved_nowhere(page: Editor, ran: dict[str, Any], nodes: dict[str, int]) -> None:
    shown(page, nodes)
    saved = page.saved()
    assert [node.get("widgets_values") for node in saved["nodes"]] == [
        node.get("widgets_values") for node in ran["saved"]["nodes"]
    ]
    ours = json.dumps([node for node in saved["nodes"] if node["type"].startswith("PURE_")])
    assert "pure_report" not in ours and "Suggest" not in ours
    assert set(page.prompt()[str(nodes["PURE_Compare"])]["inputs"]) == {"before", "after"}


@each_renderer
def test_undo_and_another_workflow_in_between_keep_the_panels(
    page: Editor, ran: dict[str, Any], nodes: dict[str, int], renderer: str
) -> None:
    page.use(renderer)
    shown(page, nodes)
    # A change, and undo.
    node = nodes["PURE_EraseConcept"]
    strength = f"app.graph.getNodeById({node}).widgets.find(each => each.name === 'strength')"
    capture = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    page.page.evaluate(f"{capture}.checkState(); {strength}.value = .5; {capture}.checkState()")
    page.page.evaluate(f"{capture}.undo()")
    page.page.wait_for_function(f"{strength}.value === 1")
    shown(page, nodes)
    # Another workflow, and back.
    page.open(example("Use a saved eraser"))
    page.open(ran["saved"])
    shown(page, nodes)


def test_a_copy_of_a_node_has_an_empty_panel(page: Editor, nodes: dict[str, int]) -> None:
    shown(page, nodes)
    copy = page.page.evaluate(
        """node => {
            const before = new Set(app.graph.nodes);
            app.canvas.selectNode(app.graph.getNodeById(node));
            app.canvas.copyToClipboard();
            app.canvas.pasteFromClipboard();
            return String(app.graph.nodes.find(each => !before.has(each)).id);
        }""",
        nodes["PURE_Compare"],
    )
    assert "Run" in page.panel(copy, COMPARE).text_content()
    shown(page, nodes)


def test_a_page_loaded_again_shows_the_last_run(
    page: Editor, ran: dict[str, Any], nodes: dict[str, int]
) -> None:
    page.reload()
    page.open(ran["saved"])
    shown(page, nodes)
    # With other settings that run would be wrong.
    page.reload()
    page.open(with_another_concept(ran["saved"]))
    assert_stays_empty(page, nodes)


def test_a_page_loaded_again_in_the_middle_of_a_run_shows_it(
    page: Editor, nodes: dict[str, int], comfy_server: ComfyServer
) -> None:
    open_quick(page, nodes, latents=2)
    saved = page.saved()
    running = page.queue()
    page.page.wait_for_timeout(1000)
    page.reload()
    page.open(saved)
    finished(page, comfy_server, running)
    shown(page, nodes)


@pytest.mark.parametrize("reloaded", [False, True], ids=["another tab", "after a reload"])
def test_a_run_of_another_workflow_is_not_shown(
    page: Editor, nodes: dict[str, int], comfy_server: ComfyServer, reloaded: bool
) -> None:
    open_quick(page, nodes, latents=3 + reloaded)
    other = with_another_concept(page.saved())
    running = page.queue()
    page.page.wait_for_timeout(500)
    if reloaded:
        page.reload()
    page.open(other)
    finished(page, comfy_server, running)
    assert_stays_empty(page, nodes)


def test_in_a_subgraph_panels_show_the_run(
    page: Editor, nodes: dict[str, int], comfy_server: ComfyServer
) -> None:
    page.page.evaluate(
        """ids => {
            const nodes = ids.map(id => app.graph.getNodeById(id));
            app.canvas.graph.convertToSubgraph(new Set(nodes));
        }""",
        [nodes["PURE_EraseConcept"], nodes["PURE_Compare"]],
    )
    finished(page, comfy_server, page.queue())
    shown_in_subgraph(page)
    # Used twice, it has two runs and one panel.
    page.page.evaluate(
        """() => {
            const node = app.graph.nodes.find(each => each.subgraph);
            const copy = Object.assign(node.clone(), { id: -1 });
            app.graph.add(copy);
            for (const [slot, { link }] of node.inputs.entries()) {
                if (link == null) continue;
                const { origin_id, origin_slot } = app.graph.getLink(link);
                app.graph.getNodeById(origin_id).connect(origin_slot, copy, slot);
            }
        }"""
    )
    finished(page, comfy_server, page.queue())
    shown_in_subgraph(page)
    saved = page.saved()
    assert len(saved["definitions"]["subgraphs"]) == 1
    page.reload()
    page.open(saved)
    shown_in_subgraph(page)


def shown_in_subgraph(editor: Editor) -> None:
    """Both panels in the only subgraph show a run."""
    panels = editor.page.evaluate_handle(
        """() => app.graph.nodes.find(node => node.subgraph).subgraph.nodes
            .flatMap(node => node.widgets ?? []).filter(widget => widget.name.startsWith("pure_"))
            .map(widget => widget.element)"""
    )
    both = "panels => panels.length === 2 && panels.every(p => p.querySelector('.pure-bar, img'))"
    editor.page.wait_for_function(both, arg=panels)


def button(editor: Editor, node: int, renderer: str) -> None:
    """Press Suggest neighbours."""
    editor.look_at(node)
    if renderer == "nodes2":
        editor.page.locator("button", has_text="Suggest neighbours").first.click()
        return
    where = editor.page.evaluate(
        f"""(() => {{
            const node = app.graph.getNodeById({node});
            const button = node.widgets.find(each => each.type === "button");
            const [x, y] = app.canvasPosToClientPos?.([
                node.pos[0] + node.size[0] / 2, node.pos[1] + button.last_y + 10]) ?? [0, 0];
            return [x, y];
        }})()"""
    )
    editor.page.mouse.click(*where)


@each_renderer
def test_neighbours_are_suggested_and_chosen(
    page: Editor, nodes: dict[str, int], comfy_server: ComfyServer, renderer: str
) -> None:
    node = nodes["PURE_EraseConcept"]
    page.use(renderer)
    for name, value in (("concept", "van gogh"), ("kind", "style"), ("neighbours", "")):
        page.set_widget(node, name, value)
    button(page, node, renderer)
    suggestions = page.page.locator(".pure-suggestions")
    assert "Post-Impressionists" in suggestions.inner_text()
    names = suggestions.locator(".pure-names button")
    offered = names.all_inner_texts()
    assert "Vincent van Gogh" not in offered and "Paul Cezanne" in offered
    suggestions.locator(".pure-add").click()
    assert page.page.evaluate("document.activeElement.className") == "pure-add"
    names.nth(9).click()
    names.nth(0).click()
    expected = [*offered[1:9], offered[9]]
    assert written(page, node) == expected
    shot(page, comfy_server, f"suggestions-{renderer}")
    page.page.keyboard.press("Escape")
    assert suggestions.count() == 0
    assert page.prompt()[str(node)]["inputs"]["neighbours"].split("\n") == expected
    # Undo takes the last step back.
    page.page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    page.page.wait_for_timeout(500)
    assert written(page, node) == offered[:10]


def written(editor: Editor, node: int) -> list[str]:
    """The neighbours in the node's widget."""
    widget = f"app.graph.getNodeById({node}).widgets.find(each => each.name === 'neighbours')"
    return editor.page.evaluate(f"{widget}.value").split("\n")


def test_for_custom_there_are_no_suggestions(page: Editor, nodes: dict[str, int]) -> None:
    page.set_widget(nodes["PURE_EraseConcept"], "kind", "custom")
    button(page, nodes["PURE_EraseConcept"], "classic")
    assert "custom" in page.page.locator(".pure-suggestions p").inner_text()
    page.page.mouse.click(5, 500)
    assert page.page.locator(".pure-suggestions").count() == 0


def test_suggestions_are_well_formed() -> None:
    known = json.loads((ROOT / "web" / "neighbours.json").read_text(encoding="utf-8"))
    assert list(known) == ["object", "style", "character", "person", "unsafe content"]
    for kind, groups in known.items():
        names = [name.casefold() for group in groups for name in group["names"]]
        assert len(names) == len(set(names)), kind
        assert len({group["group"] for group in groups}) == len(groups)
        for group in groups:
            assert set(group) <= {"group", "also", "names"}
            assert len(group["names"]) >= 10, group["group"]
            assert all(name == name.strip() and "\n" not in name for name in group["names"])


@each_renderer
def test_in_a_blueprint_suggestions_go_where_the_list_is_set(page: Editor, renderer: str) -> None:
    page.use(renderer)
    page.open(load(ROOT / "subgraphs" / "Erase a concept, step by step (PURE).json"))
    page.page.evaluate(
        """() => {
            const outside = app.graph.nodes[0];
            for (const [name, value] of [["concept", "van gogh"], ["kind", "style"]])
                outside.widgets.find(each => each.name === name).value = value;
            app.canvas.setGraph(outside.subgraph);
            outside.subgraph.nodes.find(each => each.type === "PURE_Concept")
                .widgets.find(each => each.type === "button").callback();
        }"""
    )
    suggestions = page.page.locator(".pure-suggestions")
    assert "Post-Impressionists" in suggestions.inner_text()
    suggestions.locator(".pure-add").click()
    page.page.keyboard.press("Escape")
    assert suggestions.count() == 0
    (inputs,) = (
        node["inputs"] for node in page.prompt().values() if node["class_type"] == "PURE_Concept"
    )
    assert len(inputs["neighbours"].split("\n")) == 9
    assert "Paul Cezanne" in inputs["neighbours"]


def test_the_template_browser_offers_the_examples(
    editor: Editor, comfy_server: ComfyServer
) -> None:
    editor.use()
    page = editor.page
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    module = comfy_server.node("PURE_Fit")["python_module"].rpartition(".")[2]
    page.get_by_text(module, exact=True).first.click()
    cards = page.locator("[data-testid^='template-workflow-']")
    for shown in range(1, len(FILES)):  # it adds more once one scrolls to the last
        cards.nth(shown).scroll_into_view_if_needed()
    for file in FILES:
        card = page.get_by_test_id(f"template-workflow-{file.stem}")
        card.scroll_into_view_if_needed()
        editor.wait_for_picture(card.locator("img"))
    shot(editor, comfy_server, "template-browser")
    page.get_by_test_id(f"template-workflow-{EXAMPLE}").click()
    editor.wait_for_nodes(len(example(EXAMPLE)["nodes"]))
    assert editor.unknown_nodes() == []


def test_help_opens_beside_the_node(
    page: Editor, nodes: dict[str, int], comfy_server: ComfyServer
) -> None:
    node = nodes["PURE_EraseConcept"]
    # In the middle of the window: its buttons, above it, lie under the tabs otherwise.
    page.page.evaluate(
        f"""() => {{
            const node = app.graph.getNodeById({node});
            app.canvas.ds.scale = 0.5;
            app.canvas.ds.offset = [1400 - node.pos[0], 700 - node.pos[1]];
            app.canvas.selectNode(node);
            app.canvas.setDirty(true, true);
        }}"""
    )
    page.page.wait_for_timeout(1000)
    page.page.locator(
        "[data-testid=info-button], .help-button, [aria-label*='info' i]"
    ).first.click()
    page.page.get_by_role("heading", name="In the paper").wait_for()
    page.wait_for_picture(page.page.locator("img[src*='docs/pictures/PURE_EraseConcept']"))
    shot(page, comfy_server, "help")


def inserted(editor: Editor, name: str, patience: float) -> bool:
    """Double-click the canvas, type a name, press Enter; whether that node is there then.

    `patience` is what the search is given, in its usual time: nothing shows that it has ended.
    """
    page = editor.page
    page.mouse.dblclick(700, 500)
    page.wait_for_timeout(800 * patience)
    page.keyboard.type(name)
    page.wait_for_timeout(1200 * patience)
    page.keyboard.press("Enter")
    page.wait_for_timeout(800 * patience)
    page.mouse.click(900, 600)  # newer editors hang the node on the pointer first
    page.evaluate("app.canvas.setDirty(true, true)")
    page.wait_for_timeout(300 * patience)
    if page.evaluate("name => app.graph.nodes.some(node => node.title === name)", name):
        return True
    page.keyboard.press("Escape")
    page.evaluate("app.graph.clear()")
    return False


@each_renderer
def test_blueprints_are_found_and_complete(
    editor: Editor, comfy_server: ComfyServer, renderer: str
) -> None:
    names = [file.stem for file in sorted((ROOT / "subgraphs").glob("*.json"))]
    offered = [entry["name"] for entry in comfy_server.get("/global_subgraphs").values()]
    assert set(names) <= set(offered)
    editor.use(renderer)
    editor.open(example("Use a saved eraser"))
    editor.page.evaluate("app.graph.clear()")
    for name in names:
        assert any(inserted(editor, name, patience) for patience in (1, 2, 4))
        inner = "name => app.graph.nodes.find(node => node.title === name).subgraph.nodes"
        types = editor.page.evaluate(f"{inner}.map(node => node.type)", name)
        assert len(types) >= 5
        editor.page.evaluate("app.graph.clear()")
    shot(editor, comfy_server, f"blueprints-{renderer}")


@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_the_editor_speaks_the_language(
    editor: Editor,
    comfy_server: ComfyServer,
    comfy_version: tuple[int, ...],
    nodes: dict[str, int],
    language: str,
) -> None:
    words = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
    definitions = json.loads(
        (ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")
    )
    editor.set("Comfy.Locale", language)
    try:
        editor.reload()
        editor.open(example(EXAMPLE))
        node = nodes["PURE_EraseConcept"]
        editor.look_at(node)
        labels = editor.page.evaluate(
            f"Object.fromEntries(app.graph.getNodeById({node}).widgets.map(w => [w.name, w.label]))"
        )
        if comfy_version >= (0, 30):  # 0.3.75 loads its own texts over those of all custom nodes
            expected = definitions["PURE_EraseConcept"]
            title = editor.page.evaluate(f"app.graph.getNodeById({node}).title")
            assert title == expected["display_name"]
            assert labels["neighbours"] == expected["inputs"]["neighbours"]["name"]
        assert labels["Suggest neighbours"] == words["pure"]["suggest"]
        assert editor.panel(node, REPORT).text_content() == words["pure"]["report_empty"]
        shot(editor, comfy_server, f"language-{language}")
    finally:
        editor.set("Comfy.Locale", "en")
