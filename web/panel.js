// A panel on a node: an HTML element that shows what the node's last run gave.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const RUNS_LOOKED_AT = 32
const panels = new WeakMap() // node -> the panel on it

/**
 * Puts a panel on a node.
 *
 * `key` is the part of the node's output that it shows, `show` draws an output of the node that
 * has that part. Heights are in the canvas's units; without `tallest` it takes all there is. The
 * panel is saved neither in the workflow nor in the prompt.
 */
export function addPanel(node, { name, key, element, height, tallest, width, show }) {
    element.classList.add("pure-panel", "widget-expands")
    element.style.minHeight = `${height}px`
    const margins = 20
    const widget = node.addDOMWidget(name, name, element, {
        serialize: false,
        getMinHeight: () => height + margins,
        ...(tallest && { getMaxHeight: () => tallest + margins }),
        getValue: () => "",
        setValue: () => {},
    })
    widget.serialize = false
    widget.label = "" // nothing beside it in a list of widgets
    passOnToCanvas(element)

    const panel = { key, shown: false, show: (output) => { panel.shown = true; show(output) } }
    panels.set(node, panel)
    const executed = node.onExecuted
    node.onExecuted = function (output) {
        executed?.apply(this, arguments)
        if (output?.[key]) panel.show(output)
    }
    const [wide, high] = node.computeSize()
    node.setSize([Math.max(wide, width), high])
}

/** What the panel does not use, zooming and panning, stays the canvas's. */
function passOnToCanvas(element) {
    const classic = () => !window.LiteGraph?.vueNodesMode // the other renderer sees to it itself
    element.addEventListener("wheel", (event) => {
        if (!classic()) return
        event.preventDefault()
        app.canvas.processMouseWheel(event)
    }, { passive: false })
    for (const [type, method] of [
        ["pointerdown", "processMouseDown"],
        ["pointermove", "processMouseMove"],
        ["pointerup", "processMouseUp"],
    ]) {
        element.addEventListener(type, (event) => {
            const middle = event.button === 1 || (event.buttons & 4) !== 0
            if (classic() && middle) app.canvas[method](event)
        })
    }
}

/**
 * Shows again what earlier runs gave, on panels that are new: after undo, after another workflow
 * was in view, after the page was loaded again.
 */
export function restorePanels() {
    restore().catch((error) => console.warn("PURE: earlier runs are not shown.", error))
}

async function restore() {
    const found = [...withPanel(app.rootGraph ?? app.graph)]
    const empty = found.filter(([, node]) => !panels.get(node).shown)
    for (const [, node] of empty) {
        const kept = app.nodeOutputs?.[locator(node)]
        const panel = panels.get(node)
        if (kept?.[panel.key]) panel.show(kept)
    }
    const missing = empty.filter(([, node]) => !panels.get(node).shown)
    if (!missing.length) return
    const { output: prompt } = await app.graphToPrompt()
    const answer = await api.fetchApi(`/history?max_items=${RUNS_LOOKED_AT}`)
    if (!answer.ok) return
    const newestFirst = Object.values(await answer.json()).reverse()
    for (const [id, node] of missing) { // another workflow may be in view by now: not its nodes
        const panel = panels.get(node)
        const now = ancestry(prompt, id)
        const run = newestFirst.find(
            (run) => run.outputs?.[id]?.[panel.key] && ancestry(run.prompt[2], id) === now)
        if (run && !panel.shown) panel.show(run.outputs[id])
    }
}

/** Nodes with a panel, in subgraphs too, with their ids as the server has them. */
function* withPanel(graph, path = "") {
    for (const node of graph?.nodes ?? []) {
        if (panels.has(node)) yield [`${path}${node.id}`, node]
        if (node.subgraph) yield* withPanel(node.subgraph, `${path}${node.id}:`)
    }
}

/** The node's key among the outputs that the editor keeps for the workflow in view. */
function locator(node) {
    const inside = node.graph && node.graph.isRootGraph === false
    return inside ? `${node.graph.id}:${node.id}` : String(node.id)
}

/** Everything that a node's result depends on, as a text that can be compared. */
function ancestry(prompt, id, found = new Map()) {
    if (!prompt?.[id] || found.has(id)) return ""
    const { class_type, inputs } = prompt[id]
    found.set(id, [class_type, Object.entries(inputs).sort(([a], [b]) => (a < b ? -1 : 1))])
    for (const value of Object.values(inputs))
        if (Array.isArray(value)) ancestry(prompt, String(value[0]), found)
    return JSON.stringify([...found].sort(([a], [b]) => (a < b ? -1 : 1)))
}
