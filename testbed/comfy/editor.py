"""ComfyUI's editor in a headless Chromium, driven as a person's browser would be."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import (
    ConsoleMessage,
    ElementHandle,
    Locator,
    Page,
    Route,
    sync_playwright,
)

from testbed.comfy.server import ComfyServer

PATIENCE = 120.0
"""Seconds that the page may take for one thing, on a busy machine."""

MOST_FPS = 5
"""Pictures of the graph a second while the server computes."""

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)

STOCK_ERRORS = (
    # Files that a fresh user has not made yet, and pictures of templates that are not installed.
    r"status of 404 .* /user\.css",
    r"status of 404 .* /api/userdata",
    r"status of 404 .* /templates/",
    # A node's help in the editor's own language, before the one for all languages.
    r"status of 404 .*/docs/\w+/\w+\.md",
    r"Error loading (fuse options|core workflow templates)",
    r"ComfyApp graph accessed before initialization",
    r"TypeError: Cannot read properties of undefined \(reading 'id'\)\s+at onChange",
    # Its small map, when a workflow with a subgraph is opened.
    r"Attempted to cleanup event listeners for graph that was never set up",
    # It asks ComfyUI's registry about the nodes of every workflow, and the server forbids it.
    r"https://api\.comfy\.org/.*Content Security Policy",
    # It asks for the size of the models that its own first workflow misses.
    r"https://huggingface\.co/.*Content Security Policy",
)
"""What the consoles of the pinned ComfyUI versions show without any plugin."""

READY = """() => window.LiteGraph?.registered_node_types[{!r}]
    && window.app?.extensionManager?.workflow?.activeWorkflow"""
"""The node is known, and the page has opened its own first workflow: one that a test opens before
that would be replaced by it."""

SAVED = "JSON.stringify(app.graph.serialize())"

SET_WIDGET = """([node, name, value]) => {
    app.graph.getNodeById(node).widgets.find(widget => widget.name === name).value = value;
}"""

CHOOSE = """([id, name, value]) => {
    const node = app.graph.getNodeById(id);
    const widget = node.widgets.find(widget => widget.name === name);
    const before = widget.value;
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
    node.onWidgetChanged?.(name, value, before, widget);
}"""

ADD = """([type, position]) => {
    const node = LiteGraph.createNode(type);
    node.pos = position;
    app.graph.add(node);
    return Number(node.id);
}"""

REMOVE = "node => app.graph.remove(app.graph.getNodeById(node))"

CONNECT = """([source, output, target, input]) => {
    const slot = app.graph.getNodeById(target).inputs.findIndex(each => each.name === input);
    app.graph.getNodeById(source).connect(output, app.graph.getNodeById(target), slot);
}"""

SWITCH = "([node, on]) => { app.graph.getNodeById(node).mode = on ? 0 : 4; }"

BOUNDS = "app.graph.nodes.map(node => [node.id, Array.from(node.boundingRect)])"

FIT_TO_WINDOW = """bounds => {
    const left = Math.min(...bounds.map(b => b[0])), top = Math.min(...bounds.map(b => b[1]));
    const right = Math.max(...bounds.map(b => b[0] + b[2]));
    const bottom = Math.max(...bounds.map(b => b[1] + b[3]));
    const view = app.canvas.canvas.getBoundingClientRect();
    const scale = Math.min(
        (view.width - 100) / (right - left), (view.height - 180) / (bottom - top));
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [70 / scale - left, 100 / scale - top];
    app.canvas.setDirty(true, true);
}"""

LOADED = "image => image.complete && image.naturalWidth > 0"

PICTURES = f"""panel => {{
    const images = [...panel.querySelectorAll("img")];
    return panel.isConnected && images.length && images.every({LOADED});
}}"""

PANEL = """([node, name]) => {
    const found = graph => graph.nodes.flatMap(
        each => each.subgraph ? [...found(each.subgraph), each] : [each]);
    return found(app.graph.rootGraph ?? app.graph).find(each => String(each.id) === String(node))
        ?.widgets.find(widget => widget.name === name)?.element;
}"""

DROP = """async ([name, base64]) => {
    const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
    app.canvas.canvas.dispatchEvent(
        new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""

RENDERERS = {"classic": False, "nodes2": True}
"""Name of a way to draw nodes -> value of ComfyUI's setting for it."""


class Editor:
    """An open page of the editor."""

    def __init__(self, page: Page, awaited_node: str) -> None:
        self.page = page
        self.awaited_node = awaited_node
        self.errors: list[str] = []
        """What the console showed and a page without the plugin does not."""
        self._look: tuple[str, str] | None = None
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self._note(f"{error.name}: {error.message}"))

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._note(f"{message.text} {urlsplit(message.location['url']).path}")

    def _note(self, text: str) -> None:
        if not any(re.search(pattern, text) for pattern in STOCK_ERRORS):
            self.errors.append(text)

    def open(self, workflow: dict[str, Any]) -> None:
        """Open a workflow, as dropping its file onto the page does, all of it in view."""
        self.page.evaluate("graph => app.loadGraphData(graph)", workflow)
        self.page.keyboard.press("Escape")  # the template browser of a first visit
        self.look_at()

    def reload(self) -> None:
        """Load the page again, as F5 does."""
        self.page.reload()
        self.page.wait_for_function(READY.format(self.awaited_node))

    def set(self, setting: str, value: Any) -> None:
        """Change one of the editor's settings, as its dialog does."""
        change = "([name, value]) => app.extensionManager.setting.set(name, value)"
        self.page.evaluate(change, [setting, value])

    def use(self, renderer: str = "classic", theme: str = "dark") -> None:
        """Draw nodes in one of `RENDERERS`, in a colour palette."""
        if self._look == (renderer, theme):
            return
        self._look = renderer, theme
        self.set("Comfy.VueNodes.Enabled", RENDERERS[renderer])
        self.set("Comfy.ColorPalette", theme)
        self.page.wait_for_timeout(1000)

    @contextmanager
    def drawing_seldom(self) -> Iterator[None]:
        """Leave the CPU to the server: drawn without a graphics card, the canvas takes a core."""
        change = "(fps) => { app.canvas.maximumFps = fps }"
        self.page.evaluate(change, MOST_FPS)
        try:
            yield
        finally:
            self.page.evaluate(change, 0)

    def look_at(self, *nodes: int) -> None:
        """Bring nodes into view, as large as the window allows; all of them if none is named."""
        bounds = self.bounds()
        self.page.evaluate(FIT_TO_WINDOW, [bounds[node] for node in nodes or bounds])
        self.page.wait_for_timeout(700)

    def panel(self, node: int | str, name: str) -> ElementHandle:
        """The element of a panel on a node, in a subgraph too."""
        element = self.page.evaluate_handle(PANEL, [node, name]).as_element()
        assert element is not None, f"node {node} has no panel {name}"
        return element

    def drop(self, name: str, file: bytes) -> None:
        """Drop a picture onto the canvas."""
        self.page.evaluate(DROP, [name, base64.b64encode(file).decode()])

    def set_widget(self, node: int, name: str, value: Any) -> None:
        """Turn a node's widget."""
        self.page.evaluate(SET_WIDGET, [node, name, value])

    def choose(self, node: int, name: str, value: Any) -> None:
        """Turn a node's widget and let the editor notice it, as it does a person's click."""
        self.page.evaluate(CHOOSE, [node, name, value])

    def add(self, node_type: str, position: tuple[int, int]) -> int:
        """Put a new node on the canvas; its id."""
        return self.page.evaluate(ADD, [node_type, position])

    def remove(self, node: int) -> None:
        """Take a node from the canvas."""
        self.page.evaluate(REMOVE, node)

    def connect(self, source: int, output: int, target: int, name: str) -> None:
        """Draw a link from an output to an input, in place of the one that is there."""
        self.page.evaluate(CONNECT, [source, output, target, name])

    def switch(self, node: int, on: bool) -> None:
        """End a node's bypass or begin it, as Ctrl+B does."""
        self.page.evaluate(SWITCH, [node, on])

    def saved(self) -> dict[str, Any]:
        """The workflow as the editor would save it now."""
        return json.loads(self.page.evaluate(SAVED))

    def prompt(self) -> dict[str, Any]:
        """What the editor would queue: node id -> class_type and inputs."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def unknown_nodes(self) -> list[str]:
        """Types on the canvas that this ComfyUI does not have."""
        return self.page.evaluate(
            "app.graph.nodes.map(node => node.type)"
            ".filter(type => !LiteGraph.registered_node_types[type])"
        )

    def bounds(self) -> dict[int, list[float]]:
        """Node id -> left, top, width, height on the canvas, its title included."""
        return {int(node): bounds for node, bounds in self.page.evaluate(BOUNDS)}

    def queue(self) -> str:
        """Press Run; the id of the queued prompt."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/prompt")) as answer:
            self.page.evaluate("app.queuePrompt(0, 1)")
        assert answer.value.ok, answer.value.text()
        return answer.value.json()["prompt_id"]

    def wait_for_picture(self, image: Locator) -> None:
        """Wait until one picture of the page has come."""
        self.page.wait_for_function(LOADED, arg=image.element_handle())

    def wait_for_nodes(self, count: int) -> None:
        """Wait until so many nodes are on the canvas."""
        self.page.wait_for_function("count => app.graph.nodes.length === count", arg=count)

    def wait_for_pictures(self, panel: ElementHandle) -> None:
        """Wait until a panel is on the page with its pictures, in view or not."""
        self.page.wait_for_function(PICTURES, arg=panel)

    def wait_for_bars(self, panel: ElementHandle) -> None:
        """Wait until a panel is on the page with its layers, in view or not."""
        there = "panel => panel.isConnected && panel.querySelector('.pure-bar')"
        self.page.wait_for_function(there, arg=panel)

    def screenshot(self, path: Path) -> None:
        """The page, for a person to look at."""
        self.page.wait_for_timeout(500)  # for the next frame
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)


def finished(editor: Editor, server: ComfyServer, prompt_id: str) -> dict[str, Any]:
    """The outputs of a queued prompt, once it has ended well."""
    deadline = time.monotonic() + 600
    with editor.drawing_seldom():
        while time.monotonic() < deadline:
            if done := server.get(f"/history/{prompt_id}").get(prompt_id):
                assert done["status"]["status_str"] == "success", done["status"]
                return done["outputs"]
            editor.page.wait_for_timeout(200)  # lets the page go on
    raise TimeoutError(server.log())


@contextmanager
def opened(address: str, chromium: str, awaited_node: str) -> Iterator[Editor]:
    """The editor of the server at `address`, once it knows the node `awaited_node`.

    Requests to anywhere but that server are refused, so that a test sees the same page with and
    without a network.
    """

    def local_only(route: Route) -> None:
        route.continue_() if route.request.url.startswith(address) else route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            page = browser.new_page(viewport={"width": 1920, "height": 1080})
            page.set_default_timeout(PATIENCE * 1000)
            page.route("**/*", local_only)
            editor = Editor(page, awaited_node)
            page.goto(address)
            page.wait_for_function(READY.format(awaited_node))
            editor.use()  # the server keeps what a killed run has set
            yield editor
        finally:
            browser.close()
