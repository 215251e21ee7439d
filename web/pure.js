// PURE in the editor: panels on nodes. Everything else is the editor's own.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { addCompare } from "./compare.js"
import { make } from "./dom.js"
import { learnMethods, showOnlyTheMethods } from "./methods.js"
import { addSuggestions, closeSuggestions } from "./neighbours.js"
import { forgetRuns, restorePanels } from "./panel.js"
import { addReport } from "./report.js"
import { loadWords } from "./text.js"

const PARTS = {
    PURE_EraseConcept: [addSuggestions, addReport],
    PURE_Concept: [addSuggestions],
    PURE_Fit: [showOnlyTheMethods, addReport],
    PURE_FitText: [showOnlyTheMethods],
    PURE_Compare: [addCompare],
}

app.registerExtension({
    name: "PURE",
    async init() {
        const href = new URL("./pure.css", import.meta.url).href
        document.head.append(make("link", { rel: "stylesheet", href }))
        await loadWords()
    },
    setup() {
        api.addEventListener("status", forgetRuns)
        // No node: the run has ended, well or not, and is in the history.
        api.addEventListener("executing", ({ detail }) => { if (detail == null) restorePanels() })
    },
    beforeRegisterNodeDef(_type, definition) {
        if (definition.name in PARTS) learnMethods(definition.name, definition.input)
    },
    nodeCreated(node) {
        for (const add of PARTS[node.comfyClass] ?? []) add(node)
    },
    afterConfigureGraph() {
        closeSuggestions()
        setTimeout(restorePanels)
    },
    onNodeOutputsUpdated(outputs) { // the editor has put back those that it keeps
        if (Object.keys(outputs ?? {}).length) restorePanels()
    },
})
