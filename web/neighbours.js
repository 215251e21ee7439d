// The button "Suggest neighbours" and its list.

import { app } from "../../scripts/app.js"
import { make } from "./dom.js"
import { say } from "./text.js"

const ENOUGH = 9 // neighbours, as the paper's plots suggest
const FEWEST_LETTERS = 3
const NAME = "Suggest neighbours" // in every language: workflows name a button on a subgraph by it

let known = null // kind -> groups of similar names
let inView = null // the list

export function addSuggestions(node) {
    const open = () => show(node).catch((error) => app.extensionManager.toast.add({
        severity: "error", summary: say("suggest"), detail: String(error), life: 5000,
    }))
    const button = node.addWidget("button", NAME, null, open, {
        serialize: false, tooltip: say("suggest_tip"),
    })
    button.label = say("suggest")
    button.serialize = false
}

async function show(node) {
    if (!known) {
        const answer = await fetch(new URL("./neighbours.json", import.meta.url))
        if (!answer.ok) throw new Error(`neighbours.json: ${answer.status} ${answer.statusText}`)
        known = await answer.json()
    }
    closeSuggestions()
    inView = list(node)
    document.body.append(inView)
    place(inView, node)
    inView.querySelector("button")?.focus()
}

/** Closes the list: its node may be gone. */
export function closeSuggestions() {
    inView?.remove()
    inView = null
}

/** Beside the node, within the window. */
function place(element, node) {
    const { left, top } = app.canvas.canvas.getBoundingClientRect()
    const { scale, offset } = app.canvas.ds
    const x = left + (node.pos[0] + node.size[0] + offset[0]) * scale + 8
    const y = top + (node.pos[1] + offset[1]) * scale
    const { offsetWidth, offsetHeight } = element
    const within = (value, most) => Math.min(Math.max(value, 8), Math.max(8, most - 8))
    element.style.left = `${within(x, window.innerWidth - offsetWidth)}px`
    element.style.top = `${within(y, window.innerHeight - offsetHeight)}px`
}

function list(node) {
    const widget = (name) => node.widgets?.find((each) => each.name === name)
    const linked = (name) =>
        node.inputs?.some((input) => input.name === name && input.link != null)
    const kind = widget("kind")?.value
    const concepts = linked("concept") ? [] : lines(widget("concept")?.value)
    const groups = known[kind] ?? []
    const first = (fits) => groups.find((group) => concepts.some((each) => fits(each, group)))
    const nearest = first(isIn) ?? first(resembles)

    const chosen = () => lines(widget("neighbours")?.value)
    const write = (names) => setValue(node, widget("neighbours"), names.join("\n"))
    const has = (name) => chosen().some((each) => plain(each) === plain(name))
    const names = make("div", { class: "pure-names" })
    const foot = make("footer")

    function drawNames(group) {
        const offered = nearestFirst(group, concepts)
        const chips = offered.map((name) => make("button", {
            type: "button", "aria-pressed": String(has(name)),
            onclick: ({ currentTarget }) => {
                const there = chosen()
                write(has(name) ? there.filter((each) => plain(each) !== plain(name))
                    : [...there, name])
                currentTarget.setAttribute("aria-pressed", String(has(name)))
                drawFoot(offered, chips)
            },
        }, name))
        names.replaceChildren(...chips)
        drawFoot(offered, chips)
    }

    function drawFoot(offered, chips) {
        const some = offered.slice(0, ENOUGH)
        foot.replaceChildren(
            make("span", {}, say("suggest_count", { n: chosen().length })),
            make("button", {
                type: "button", class: "pure-add",
                onclick: () => {
                    write(some)
                    for (const [index, name] of offered.entries())
                        chips[index].setAttribute("aria-pressed", String(has(name)))
                    drawFoot(offered, chips)
                },
            }, say("suggest_add", { n: some.length })))
    }

    const choose = make("select", {
        "aria-label": say("suggest_unknown"),
        onchange: () => {
            choose.querySelector("option[disabled]")?.remove()
            drawNames(groups[choose.value])
        },
    },
    !nearest && make("option", { disabled: true, selected: true }, say("suggest_unknown")),
    ...groups.map((group, index) =>
        make("option", { value: index, selected: group === nearest }, group.group)))

    const close = () => { panel.remove(); window.removeEventListener("pointerdown", outside, true) }
    const outside = (event) => { if (!panel.contains(event.target)) close() }
    const panel = make("div", {
        class: "pure-panel pure-suggestions", role: "dialog", "aria-label": say("suggest"),
        tabindex: -1, // keeps the focus, and with it Ctrl+Z, inside
        onkeydown: (event) => {
            event.stopPropagation() // the editor's shortcuts
            if (event.key === "Escape") close()
        },
    },
    make("header", {}, make("b", {}, say("suggest_title", { kind })),
        make("button", { type: "button", title: say("close"), onclick: close }, "✕")))
    window.addEventListener("pointerdown", outside, true)

    if (linked("neighbours") || linked("kind")) panel.append(make("p", {}, say("suggest_linked")))
    else if (!groups.length) panel.append(make("p", {}, say("suggest_custom")))
    else {
        const found = nearest && say("suggest_similar", {
            concept: concepts.find((each) => belongs(each, nearest)), group: nearest.group,
        })
        panel.append(make("p", {}, found ?? say("suggest_unknown")), choose, names,
            make("small", {}, say("suggest_hint")), foot)
        if (nearest) drawNames(nearest)
    }
    return panel
}

/** A widget's value as a person would set it, undo included. */
function setValue(node, widget, value) {
    widget.value = value
    widget.callback?.(value)
    node.graph?.setDirtyCanvas(true, true)
    const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker
    if (tracker?.captureCanvasState) tracker.captureCanvasState()
    else tracker?.checkState()
}

function lines(text) {
    return String(text ?? "").split("\n").map((line) => line.trim()).filter(Boolean)
}

/** Letters alone, so that 'Hergé' and 'herge' are one. */
function plain(name) {
    return name.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().trim()
}

/** Whether a concept is one of a group, by its whole name. */
function isIn(concept, group) {
    return called(group).some((name) => plain(name) === plain(concept))
}

/** Whether all words of a concept are in a name of a group, or all words of the name in it. */
function resembles(concept, group) {
    const words = (text) => plain(text).split(/[^\p{L}\p{N}]+/u).filter(Boolean)
    const within = (some, others) => some.length > 0 && some.every((word) => others.includes(word))
    const asked = words(concept)
    return asked.join("").length >= FEWEST_LETTERS && called(group)
        .some((name) => within(words(name), asked) || within(asked, words(name)))
}

function belongs(concept, group) {
    return isIn(concept, group) || resembles(concept, group)
}

function called(group) {
    return [...group.names, ...(group.also ?? [])]
}

/** A group's names without the concepts, those listed next to a concept first. */
function nearestFirst({ names }, concepts) {
    const same = (name) => concepts.some((concept) => belongs(concept, { names: [name] }))
    const places = names.flatMap((name, place) => (same(name) ? [place] : []))
    const distance = (place) => Math.min(...places.map((other) => Math.abs(other - place)))
    return names
        .map((name, place) => ({ name, far: places.length ? distance(place) : 0 }))
        .filter(({ name }) => !same(name))
        .sort((one, other) => one.far - other.far)
        .map(({ name }) => name)
}
