// Small helpers for the panels.

/** An element with attributes, event handlers (on...) and children. */
export function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag)
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value)
        else if (value === true) element.setAttribute(name, "")
        else if (value !== false && value != null) element.setAttribute(name, value)
    }
    element.append(...children.filter((child) => child != null && child !== false))
    return element
}

/** Makes one stop of the Tab key of several buttons: arrow keys go from one to the next. */
export function asOneStop(buttons, first = 0) {
    const stopAt = (stop) => {
        for (const [index, button] of buttons.entries()) button.tabIndex = index === stop ? 0 : -1
    }
    for (const [index, button] of buttons.entries()) {
        button.addEventListener("focus", () => stopAt(index))
        button.addEventListener("keydown", (event) => {
            const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key]
            if (!step) return
            event.preventDefault()
            event.stopPropagation()
            const next = buttons[(index + step + buttons.length) % buttons.length]
            next.focus()
            if (next.role === "radio") next.click()
        })
    }
    stopAt(first)
}

/** Buttons of which one is chosen: `choices` are [value, label, tooltip], `choose` gets a value. */
export function choiceOf(label, choices, chosen, choose) {
    const buttons = choices.map(([value, text, tooltip]) =>
        make("button", {
            type: "button", role: "radio", title: tooltip, "aria-checked": String(value === chosen),
            onclick: (event) => {
                for (const button of buttons)
                    button.setAttribute("aria-checked", String(button === event.currentTarget))
                choose(value)
            },
        }, text))
    asOneStop(buttons, choices.findIndex(([value]) => value === chosen))
    return make("div", { class: "pure-choice", role: "radiogroup", "aria-label": label }, ...buttons)
}
