// A panel on a node: an HTML element that shows what the node's last run gave.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { everyNode } from "./graph.js"

const RUNS_LOOKED_AT = 32
const panels = new WeakMap() // node -> the panel on it
let history = null // the server's last runs, newest first, until something is queued or has ended

/**
 * Puts a panel on a node.
 *
 * `key` is the part of the node's output that it shows, `show` draws an output of the node that
 * has that part. Heights are in the canvas's units; without `tallest` it takes all there is. The
 * panel is saved neither in the workflow nor in the prompt.
 *
 * @param {any} node
 * @param {{
 *     name: string, key: string, element: HTMLElement, show: (output: any) => void,
 *     height: number, tallest?: number, width: number,
 * }} panel
 */
export function addPanel(node, { name, key, element, height, tallest, width, show }) {
    element.classList.add("pure-panel", "widget-expands")
    element.style.minHeight = `${height}px`
    const margins = 20
    const widget = node.addDOMWidget(name, name, element, {
        serialize: false,
        getMinHeight: () => height + margins,
        ...(tallest && { getMaxHeight: () => tallest + margins }),
        hideInPanel: true, // the side panel would set the width
        getValue: () => "",
        setValue: () => {},
    })
    widget.serialize = false
    passOnToCanvas(element)

    const panel = { key, element, shown: null, inDoubt: false }
    panel.show = (output) => {
        const isNew = JSON.stringify(output) !== JSON.stringify(panel.shown)
        if (isNew) show(output) // a cached result is told again at every run
        Object.assign(panel, { shown: output, inDoubt: false })
    }
    panels.set(node, panel)
    const executed = node.onExecuted
    node.onExecuted = function (output) {
        executed?.apply(this, arguments)
        if (!output?.[key]) return
        if (isOfWorkflowInView(output)) {
            panel.show(output)
            return
        }
        panel.inDoubt = true // until the end of the run: see `restore`
        if (panel.shown) app.nodeOutputs[locator(this)] = panel.shown
        else delete app.nodeOutputs[locator(this)]
    }
    const [wide, high] = node.computeSize()
    node.setSize([Math.max(wide, width), high])
}

/** What the panel does not use, zooming and panning, stays the canvas's. */
function passOnToCanvas(element) {
    const classic = () => !globalThis.LiteGraph?.vueNodesMode // the other renderer sees to it itself
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
 * Whether an output is known to come from a run of the workflow in view. The editor gives it to the
 * node of the same number in the one in view, and to the tracker of the one that was run; to none if
 * that was closed, or the page was loaded again, or the run ended before its number was known.
 */
function isOfWorkflowInView(output) {
    const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker
    return Object.values(tracker?.nodeOutputs ?? {}).includes(output)
}

/**
 * Shows again what earlier runs gave, on panels that are new: after undo, after another workflow
 * was in view, after the page was loaded again.
 */
export function restorePanels() {
    restore().catch((error) => {
        forgetRuns()
        console.warn("PURE: earlier runs are not shown.", error)
    })
}

async function restore() {
    const all = withPanel()
    for (const [, node] of all) putInPlace(node)
    const empty = all.filter(([, node]) => !panels.get(node).shown)
    for (const [id, node] of empty) {
        const kept = app.nodeOutputs?.[locator(node)] ?? app.nodeOutputs?.[id]
        const panel = panels.get(node)
        if (kept?.[panel.key]) panel.show(kept)
    }
    const isMissing = ({ shown, inDoubt }) => !shown || inDoubt
    const missing = all.filter(([, node]) => isMissing(panels.get(node)) && isComputed(node))
    if (!missing.length) return
    const newestFirst = await (history ??= lastRuns())
    const known = missing.filter(([id, node]) => node.graph && newestFirst.some(
        (run) => run.prompt[2][id]?.class_type === node.comfyClass))
    if (!known.length) return
    const { output: prompt } = await app.graphToPrompt() // asks every node: not without need
    for (const [id, node] of known) {
        const panel = panels.get(node)
        const now = node.graph && ancestry(prompt, id) // none if another workflow came into view
        const output = now && outputOf(newestFirst, panel.key, now)
        if (output && isMissing(panel)) panel.show(output)
    }
}

/**
 * The newest output with the part `key` of a node with that ancestry. Its number may be another one:
 * a result from the cache is told only for nodes that end a workflow, so a node that has been moved
 * into a subgraph is in no run under its new number.
 */
function outputOf(newestFirst, key, ancestors) {
    for (const run of newestFirst)
        for (const [id, output] of Object.entries(run.outputs))
            if (output[key] && ancestry(run.prompt[2], id) === ancestors) return output
    return null
}

/** The server's last runs, newest first. */
async function lastRuns() {
    const answer = await api.fetchApi(`/history?max_items=${RUNS_LOOKED_AT}`)
    return answer.ok ? Object.values(await answer.json()).reverse() : []
}

/** Something was queued or has ended: the runs known so far are not the last ones. */
export function forgetRuns() {
    history = null
}

/**
 * After undo the new renderer goes on showing the element of the node that was there before, until
 * somebody puts the new one in its place.
 */
function putInPlace(node) {
    const { element } = panels.get(node)
    const inView = node.graph === app.canvas.graph
        && document.querySelector(`[data-node-id="${node.id}"] .pure-panel`)
    if (inView && inView !== element) inView.replaceWith(element)
}

/**
 * Nodes with a panel, with their ids. What lies in two copies of one subgraph has two ids and one
 * panel: the last copy comes first, for its run is shown, as after a run.
 */
function withPanel() {
    return [...everyNode()].filter(([, node]) => panels.has(node)).reverse()
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

/**
 * Everything that a node's result depends on, itself included, as a text that can be compared: nodes
 * are numbered as they are found, whatever their ids. "" for no node.
 */
function ancestry(prompt, id) {
    const numbers = new Map()
    const found = []
    const walk = (id) => {
        if (!prompt[id] || numbers.has(id)) return
        const number = numbers.size
        numbers.set(id, number)
        const inputs = Object.entries(prompt[id].inputs).sort(([a], [b]) => (a < b ? -1 : 1))
        for (const [, value] of inputs) if (Array.isArray(value)) walk(String(value[0]))
        found[number] = [prompt[id].class_type, inputs.map(([name, value]) =>
            [name, Array.isArray(value) ? [numbers.get(String(value[0])), value[1]] : value])]
    }
    walk(id)
    return found.length ? JSON.stringify(found) : ""
}
