// On PURE Fit and PURE Fit Text: only the chosen method's settings are shown.
//
// All settings stay in the workflow and in what is sent to the server, so files carry over between
// versions of ComfyUI and values survive a change of the method. Which methods use a setting comes
// from the server, with the input's other options.

import { app } from "../../scripts/app.js"

const usersOf = new Map() // type of node -> name of a setting -> the methods that use it
const sizes = new WeakMap() // hidden widget -> what it had as a computeSize of its own

/** Remembers what the server says of a type of node. */
export function learnMethods(type, inputs) {
    const found = new Map()
    for (const [name, [, options]] of Object.entries(inputs?.optional ?? {}))
        if (options?.pure_methods) found.set(name, options.pure_methods)
    usersOf.set(type, found)
}

/** Hides and shows the widgets of settings as the chosen method uses them. */
export function showOnlyTheMethods(node) {
    const method = node.widgets?.find((widget) => widget.name === "method")
    if (!method) return
    let isSaved = false // a node from a workflow keeps the size that it has there
    const show = () => {
        for (const widget of node.widgets) {
            const users = usersOf.get(node.comfyClass)?.get(widget.name)
            if (users) setHidden(widget, !users.includes(method.value) && !isLinked(node, widget))
        }
    }
    const callback = method.callback
    method.callback = function (...values) {
        callback?.apply(this, values)
        show()
        fit(node)
    }
    const configured = node.onConfigure
    node.onConfigure = function (...values) {
        configured?.apply(this, values)
        isSaved = true
        show()
    }
    setTimeout(() => { // the node is whole then
        show()
        if (!isSaved) fit(node)
    })
}

/** A setting that another node gives stays visible, with its link. */
function isLinked(node, widget) {
    return node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null)
}

function setHidden(widget, hidden) {
    // Newer editors draw their new nodes from a copy of the options. Those of older editors do not
    // look again when a widget is to be shown: there all settings stay in view.
    const page = /** @type {any} */ (document.querySelector("#vue-app"))
    const stores = page?.__vue_app__?.config?.globalProperties?.$pinia?._s
    const copy = stores?.get("widgetValue")?.getWidget?.(widget.widgetId)
    const gone = hidden && (!!copy || !window["LiteGraph"]?.vueNodesMode)
    widget.hidden = gone
    widget.options.hidden = gone
    if (copy?.options) copy.options.hidden = gone
    takeRoom(widget, !gone)
}

/** Older editors leave room for hidden widgets, unless they say that they need none. */
function takeRoom(widget, takes) {
    if (!takes && !sizes.has(widget)) {
        sizes.set(widget, Object.getOwnPropertyDescriptor(widget, "computeSize"))
        widget.computeSize = () => [0, -4] // the space between widgets is 4
    } else if (takes && sizes.has(widget)) {
        delete widget.computeSize
        const own = sizes.get(widget)
        if (own) Object.defineProperty(widget, "computeSize", own)
        sizes.delete(widget)
    }
}

/** Makes the node as high as its widgets need. */
function fit(node) {
    const [, height] = node.computeSize()
    node.setSize?.([node.size[0], height])
    app.canvas?.setDirty(true, true)
}
