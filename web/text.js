// What the extension says, in the editor's language.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const ENGLISH = {
    report: "What was removed and kept",
    report_empty: "Run, and this shows what is removed and kept in every layer.",
    report_method: "Method {method}; edits {edit}; {forget} forget and {retain} retain prompts.",
    report_mean: "mean of {n} layers",
    removed: "removed",
    removed_tip: "Share of the concept's energy that is removed. Energy is the squared length of "
        + "the activations, their mean included: little has to go for the concept to go.",
    shift: "shift",
    shift_tip: "How far the concept moved towards its neighbours, or what it is to become: at "
        + "100% it is at their mean, or there, above 100% beyond. Below 50% expect the concept to remain.",
    kept: "kept",
    kept_tip: "Share of the energy of neighbours and replacement that stays as it was: should be near 100%.",
    rank: "rank",
    rank_tip: "How many directions of the layer are changed.",
    layer: "layer",
    edit_rank: "directions changed",
    forget_rank: "directions of the concept",
    retain_rank: "directions of the neighbours",
    width: "of {n}",
    spectrum: "share of the energy in the first directions",
    spectrum_mean: "Point at a layer for its numbers, click to keep it.",
    concept: "concept",
    neighbours: "neighbours",
    nothing: "not measured",
    suggest: "Suggest neighbours",
    suggest_tip: "Other concepts of this kind, to add with a click. Built in, nothing is sent.",
    suggest_title: "Neighbours: {kind}",
    suggest_similar: "Nearest to {concept}: {group}",
    suggest_unknown: "Choose a group that resembles the concept.",
    suggest_custom: "For the kind custom there is no list: write your own neighbours, or choose "
        + "another kind.",
    suggest_hint: "Click to add or remove. About nine are good, the closest ones; leave out what is "
        + "another name of the concept. You can edit the list in the node.",
    suggest_add: "Replace the list by the first {n}",
    suggest_count: "{n} in the list",
    suggest_linked: "The list of neighbours comes in by a connection: edit it where that begins.",
    close: "Close",
    compare: "Before and after",
    compare_empty: "Run, and this shows the pictures before and after.",
    compare_gone: "The picture is no longer on the server: run again.",
    before: "before",
    after: "after",
    slider: "slider",
    side_by_side: "side by side",
    difference: "difference",
    difference_tip: "What changed: black where both pictures agree.",
    previous: "previous pair",
    next: "next pair",
    pair: "{n} of {m}",
}

let translated = {} // language -> its texts, ours among them

/** Loads the words of all languages; only another language than English has to wait for them. */
export async function loadWords() {
    const loading = load()
    if (language() !== "en") await loading
}

/** English stays where this fails. */
async function load() {
    try {
        const answer = await api.fetchApi("/i18n")
        if (answer.ok) translated = await answer.json()
    } catch (error) {
        console.warn("PURE: no translations, English it is.", error)
    }
}

function language() {
    return app.extensionManager?.setting?.get("Comfy.Locale") ?? "en"
}

/** A text by its key, with what stands for its {names}. */
export function say(key, values = {}) {
    const text = translated[language()]?.pure?.[key] ?? ENGLISH[key]
    return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole)
}
