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
    return make("div", { class: "pure-choice", role: "radiogroup", "aria-label": label }, ...buttons)
}
