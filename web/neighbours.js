// The button "Suggest neighbours" and its list.

import { app } from "../../scripts/app.js"
import { make } from "./dom.js"
import { everyNode } from "./graph.js"
import { say } from "./text.js"

const ENOUGH = 9 // neighbours, as the paper's plots suggest
const FEWEST_LETTERS = 3
const SUBGRAPH_INPUT = "-10" // the editor's id of the place where a subgraph's inputs come in
const NAME = "Suggest neighbours" // in every language: workflows name a button on a subgraph by it

let known = null // kind -> groups of similar names
let inView = null // the list

export function addSuggestions(node) {
    const open = () => show(node).catch((error) => app.extensionManager.toast.add({
        severity: "error", summary: say("suggest"), detail: String(error), life: 5000,
    }))
    const options = { serialize: false, hideInPanel: true } // the side panel would not call it
    const button = node.addWidget("button", NAME, null, open, options)
    button.label = say("suggest")
    button.tooltip = say("suggest_tip")
    button.serialize = false
}

async function show(node) {
    if (!known) {
        const answer = await fetch(new URL("./neighbours.json", import.meta.url))
        if (!answer.ok) throw new Error(`neighbours.json: ${answer.status} ${answer.statusText}`)
        known = await answer.json()
        for (const group of Object.values(known).flat())
            group.called = [...group.names, ...(group.also ?? [])].map(folded)
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

/**
 * Where an input's value is set: the widget, and the node that it is on. That is the subgraph's
 * node where the input is one of the subgraph's; null if it comes from elsewhere, or if the subgraph
 * is used more than once.
 */
function setOn(node, name) {
    const link = node.graph?.getLink(node.inputs?.find((input) => input.name === name)?.link)
    if (!link) {
        const widget = node.widgets?.find((each) => each.name === name)
        return widget ? { node, widget } : null
    }
    const slot = String(link.origin_id) === SUBGRAPH_INPUT && node.graph.inputs?.[link.origin_slot]
    if (!slot) return null
    const [user, ...others] = [...everyNode()].filter(([, each]) => each.subgraph === node.graph)
    return user && !others.length ? setOn(user[1], slot.name) : null
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
    const [concept, edited, kinds] = ["concept", "neighbours", "kind"].map((name) => setOn(node, name))
    const kind = kinds?.widget.value
    const concepts = lines(concept?.widget.value).map(folded)
    const groups = known[kind] ?? []
    const first = (fits) => groups.find((group) => concepts.some((each) => fits(each, group.called)))
    const nearest = first(isIn) ?? first(resembles)

    const chosen = () => lines(edited.widget.value)
    const write = (names) => setValue(edited, names.join("\n"))
    const has = (name) => chosen().some((each) => plain(each) === plain(name))
    const names = make("div", { class: "pure-names" })
    const foot = make("footer")
    const count = make("span")
    const replace = make("button", { type: "button", class: "pure-add" })

    function drawNames(group) {
        const offered = nearestFirst(group, concepts)
        const chips = offered.map((name) => make("button", {
            type: "button", "aria-pressed": String(has(name)),
            onclick: ({ currentTarget }) => {
                const there = chosen()
                write(has(name) ? there.filter((each) => plain(each) !== plain(name))
                    : [...there, name])
                currentTarget.setAttribute("aria-pressed", String(has(name)))
                tellCount()
            },
        }, name))
        const some = offered.slice(0, ENOUGH)
        replace.textContent = say("suggest_add", { n: some.length })
        replace.onclick = () => {
            write(some)
            for (const [index, name] of offered.entries())
                chips[index].setAttribute("aria-pressed", String(has(name)))
            tellCount()
        }
        names.replaceChildren(...chips)
        foot.replaceChildren(count, replace)
        tellCount()
    }

    function tellCount() {
        count.textContent = say("suggest_count", { n: chosen().length })
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

    const opener = /** @type {HTMLElement?} */ (document.activeElement)
    const close = () => {
        panel.remove()
        window.removeEventListener("pointerdown", outside, true)
        opener?.focus()
    }
    const outside = (event) => { if (!panel.contains(event.target)) close() }
    const panel = make("div", {
        class: "pure-panel pure-suggestions", role: "dialog", "aria-label": say("suggest"),
        tabindex: -1, // keeps the focus, and with it Ctrl+Z, inside
        onkeydown: (event) => {
            event.stopPropagation() // the editor's shortcuts
            if (event.key === "Escape") close()
        },
    },
    make("header", {}, make("b", {}, say("suggest_title", { kind: kind ?? "…" })),
        make("button", {
            type: "button", title: say("close"), "aria-label": say("close"), onclick: close,
        }, "✕")))
    window.addEventListener("pointerdown", outside, true)

    if (!edited || !kinds) panel.append(make("p", {}, say("suggest_linked")))
    else if (!groups.length) panel.append(make("p", {}, say("suggest_custom")))
    else {
        const found = nearest && say("suggest_similar", {
            concept: concepts.find((each) => belongs(each, nearest.called))?.name,
            group: nearest.group,
        })
        panel.append(make("p", {}, found ?? say("suggest_unknown")), choose, names,
            make("small", {}, say("suggest_hint")), foot)
        if (nearest) drawNames(nearest)
    }
    return panel
}

/** A widget's value as a person would set it, undo included. */
function setValue({ node, widget }, value) {
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

/** A name and what it is compared by. */
function folded(name) {
    const text = plain(name)
    return { name, text, words: text.split(/[^\p{L}\p{N}]+/u).filter(Boolean) }
}

/** Whether a concept is one of the names, as a whole. */
function isIn({ text }, names) {
    return names.some((name) => name.text === text)
}

/** Whether all words of a concept are in one of the names, or all words of a name in it. */
function resembles({ words }, names) {
    const within = (some, others) => some.length > 0 && some.every((word) => others.includes(word))
    return words.join("").length >= FEWEST_LETTERS
        && names.some((name) => within(name.words, words) || within(words, name.words))
}

function belongs(concept, names) {
    return isIn(concept, names) || resembles(concept, names)
}

/** A group's names without the concepts, those listed next to a concept first. */
function nearestFirst({ names }, concepts) {
    const isConcept = names.map((name) => concepts.some((each) => belongs(each, [folded(name)])))
    const places = [...isConcept.keys()].filter((place) => isConcept[place])
    const distance = (place) => Math.min(...places.map((other) => Math.abs(other - place)))
    return names
        .map((name, place) => ({ name, place, far: places.length ? distance(place) : 0 }))
        .filter(({ place }) => !isConcept[place])
        .sort((one, other) => one.far - other.far)
        .map(({ name }) => name)
}
