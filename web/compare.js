// PURE Compare: pictures before and after on top of each other.

import { api } from "../../scripts/api.js"
import { choiceOf, make } from "./dom.js"
import { addPanel } from "./panel.js"
import { say } from "./text.js"

const HEIGHT = 300
const WIDTH = 400
const FEW_PIXELS = 256 // smaller pictures are shown with their pixels

export function addCompare(node) {
    const element = make("div", { class: "pure-compare" },
        make("p", { class: "pure-empty" }, say("compare_empty")))
    let mode = "slider"
    addPanel(node, {
        name: "pure_compare", key: "pure_before", element, height: HEIGHT, width: WIDTH,
        show: ({ pure_before, pure_after }) => {
            const choose = (chosen) => { mode = chosen }
            element.replaceChildren(...drawn(pure_before, pure_after, mode, choose))
        },
    })
}

function drawn(before, after, mode, choose) {
    let pair = 0
    const first = picture("before")
    const second = picture("after")
    const slider = make("input", {
        type: "range", min: 0, max: 100, step: 0.5, value: 50, "aria-label": say("slider"),
        oninput: () => stage.style.setProperty("--part", `${slider.value}%`),
    })
    const stage = make("div", {
        class: "pure-stage", "data-mode": mode,
        onpointermove: (event) => {
            const { left, width } = second.getBoundingClientRect()
            slider.value = 100 * (event.clientX - left) / width
            slider.dispatchEvent(new Event("input"))
        },
    }, first, second, make("i", { class: "pure-divider" }),
    make("span", { class: "pure-tag" }, say("before")),
    make("span", { class: "pure-tag" }, say("after")), slider)
    const count = make("output")

    function turn(step) {
        pair = (pair + step + before.length) % before.length
        first.src = address(before[pair])
        second.src = address(after[pair])
        count.textContent = say("pair", { n: pair + 1, m: before.length })
    }

    turn(0)
    const modes = ["slider", "side_by_side", "difference"]
    const arrow = (text, step, name) => make("button", {
        type: "button", title: say(name), "aria-label": say(name), onclick: () => turn(step),
    }, text)
    return [
        make("div", { class: "pure-bar-top" },
            choiceOf(say("compare"),
                modes.map((each) => [
                    each, say(each), each === "difference" ? say("difference_tip") : null]),
                mode, (chosen) => { choose(chosen); stage.dataset.mode = chosen }),
            before.length > 1 && make("div", { class: "pure-pairs" },
                arrow("‹", -1, "previous"), count, arrow("›", 1, "next"))),
        stage,
    ]
}

function picture(name) {
    return make("img", {
        class: `pure-${name}`, alt: say(name), draggable: "false",
        onload: ({ target }) => {
            target.classList.toggle("pure-pixels", target.naturalWidth < FEW_PIXELS)
            target.closest(".pure-stage")?.removeAttribute("data-gone")
        },
        onerror: ({ target }) =>
            target.closest(".pure-stage")?.setAttribute("data-gone", say("compare_gone")),
    })
}

function address(file) {
    return api.apiURL(`/view?${new URLSearchParams(file)}`)
}
