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
        if (!output?.[key]) return
        if (isOfAnotherWorkflow(output)) delete app.nodeOutputs[locator(this)]
        else panel.show(output)
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
            // Older editors would drag the node along with the slider.
            if (!middle && event.target.closest("button, input")) event.stopPropagation()
        })
    }
}

/**
 * Whether an output comes from a run of a workflow that is open, but not in view. The editor gives
 * it to the node of the same number in the one in view, and to that other workflow's tracker.
 */
function isOfAnotherWorkflow(output) {
    const { openWorkflows = [], activeWorkflow } = app.extensionManager?.workflow ?? {}
    return openWorkflows.some((workflow) => workflow.path !== activeWorkflow?.path
        && Object.values(workflow.changeTracker?.nodeOutputs ?? {}).includes(output))
}

/**
 * Shows again what earlier runs gave, on panels that are new: after undo, after another workflow
 * was in view, after the page was loaded again.
 */
export function restorePanels() {
    restore().catch((error) => console.warn("PURE: earlier runs are not shown.", error))
}

async function restore() {
    const empty = withPanel().filter(([, node]) => !panels.get(node).shown)
    for (const [, node] of empty) {
        const kept = app.nodeOutputs?.[locator(node)]
        const panel = panels.get(node)
        if (kept?.[panel.key]) panel.show(kept)
    }
    const missing = empty.filter(([, node]) => !panels.get(node).shown && isComputed(node))
    if (!missing.length) return
    const answer = await api.fetchApi(`/history?max_items=${RUNS_LOOKED_AT}`)
    if (!answer.ok) return
    const newestFirst = Object.values(await answer.json()).reverse()
    const runsOf = ([id, node]) =>
        newestFirst.filter((run) => run.outputs?.[id]?.[panels.get(node).key])
    const found = missing.filter((each) => runsOf(each).length && each[1].graph)
    if (!found.length) return
    const { output: prompt } = await app.graphToPrompt() // asks every node: not without need
    for (const [id, node] of found) {
        const panel = panels.get(node)
        const now = node.graph && ancestry(prompt, id) // none if another workflow came into view
        const run = runsOf([id, node]).find((run) => now && ancestry(run.prompt[2], id) === now)
        if (run && !panel.shown) panel.show(run.outputs[id])
    }
}

/**
 * Nodes with a panel, in subgraphs too, with their ids as the server has them. What lies in two
 * copies of one subgraph has two ids and one panel: the last copy's run is shown, as after a run.
 */
function withPanel() {
    const ids = new Map()
    const look = (graph, path) => {
        for (const node of graph?.nodes ?? []) {
            if (panels.has(node)) ids.set(node, [...(ids.get(node) ?? []), `${path}${node.id}`])
            if (node.subgraph) look(node.subgraph, `${path}${node.id}:`)
        }
    }
    look(app.rootGraph ?? app.graph, "")
    return [...ids].flatMap(([node, found]) => found.reverse().map((id) => [id, node]))
}

/** Whether a run computes the node: it is neither muted nor bypassed. */
function isComputed(node) {
    return node.mode !== 2 && node.mode !== 4
}

/** The node's key among the outputs that the editor keeps for the workflow in view. */
function locator(node) {
    const inside = node.graph && node.graph.isRootGraph === false
    return inside ? `${node.graph.id}:${node.id}` : String(node.id)
}

/** Everything that a node's result depends on, as a text that can be compared; "" for no node. */
function ancestry(prompt, id) {
    const found = new Map()
    const walk = (id) => {
        if (!prompt?.[id] || found.has(id)) return
        const { class_type, inputs } = prompt[id]
        found.set(id, [class_type, Object.entries(inputs).sort(([a], [b]) => (a < b ? -1 : 1))])
        for (const value of Object.values(inputs)) if (Array.isArray(value)) walk(String(value[0]))
    }
    walk(id)
    return found.size ? JSON.stringify([...found].sort(([a], [b]) => (a < b ? -1 : 1))) : ""
}
