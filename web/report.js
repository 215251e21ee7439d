// The fit report on PURE Fit and PURE Erase Concept: a bar per layer, numbers and spectra.

import { asOneStop, choiceOf, make } from "./dom.js"
import { addPanel } from "./panel.js"
import { say } from "./text.js"

const SHARES = ["removed", "shift", "kept"]
const MEASURES = [...SHARES, "rank"]
const PLOT = { width: 320, height: 84 }
const HEIGHT = 300
const TALLEST = 380
const WIDTH = 400
const SVG = "http://www.w3.org/2000/svg"

export function addReport(node) {
    const element = make("div", { class: "pure-report" },
        make("p", { class: "pure-empty" }, say("report_empty")))
    addPanel(node, {
        name: "pure_report", key: "pure_report", element, height: HEIGHT,
        tallest: TALLEST, width: WIDTH,
        show: ({ pure_report: [report] }) => element.replaceChildren(...drawn(report)),
    })
}

/** The report's parts. */
function drawn(report) {
    let measure = report.layers.some((layer) => layer.shift != null) ? "shift" : "removed"
    let pinned = null
    const bars = make("div", {
        class: "pure-bars", role: "group", "aria-label": say("report"),
        onmouseleave: () => tell(pinned),
        onfocusout: () => tell(pinned),
    })
    const details = make("div", { class: "pure-details" })
    const plot = make("div", { class: "pure-plot" })

    function drawBars() {
        const values = report.layers.map((layer) => layer[measure])
        const most = Math.max(1, ...values.map((value) => value ?? 0))
        bars.style.setProperty("--whole", measure === "rank" ? "" : 1 / most)
        bars.dataset.measure = measure
        bars.replaceChildren(...report.layers.map((layer, index) =>
            make("button", {
                type: "button", class: "pure-bar",
                style: `--share: ${Math.max(0, layer[measure] ?? 0) / most}`,
                "aria-label": `${layer.short_name}: ${shown(layer, measure)}`,
                "aria-pressed": String(pinned === index),
                onmouseenter: () => tell(index),
                onfocus: () => tell(index),
                onclick: () => {
                    pinned = pinned === index ? null : index
                    for (const [other, bar] of [...bars.children].entries())
                        bar.setAttribute("aria-pressed", String(pinned === other))
                    tell(index)
                },
            })))
        asOneStop([...bars.children], pinned ?? 0)
    }

    /** The numbers and spectra of one layer, or of all. */
    function tell(index) {
        details.replaceChildren(...(index == null ? inMean(report) : inLayer(report.layers[index])))
        plot.replaceChildren(...spectra(index == null ? report.layers : [report.layers[index]]))
    }

    drawBars()
    tell(null)
    return [
        make("div", { class: "pure-title", title: describe(report) }, report.concept,
            make("span", {}, report.method)),
        ...report.warnings.map((text) => make("p", { class: "pure-warning", title: text }, text)),
        choiceOf(say("report"), MEASURES.map((each) => [each, say(each), say(`${each}_tip`)]),
            measure, (chosen) => { measure = chosen; drawBars() }),
        bars,
        details,
        plot,
    ]
}

function describe(report) {
    return [
        report.concept,
        say("report_method", {
            method: report.method, edit: report.edit,
            forget: report.forget_prompts, retain: report.retain_prompts,
        }),
        Object.entries(report.settings).map(([name, value]) => `${name} ${value}`).join(", "),
        `${report.source}, ${report.created}`,
    ].join("\n")
}

function inMean({ layers }) {
    const means = SHARES.map((measure) => {
        const known = layers.map((layer) => layer[measure]).filter((value) => value != null)
        const mean = known.length ? known.reduce((sum, value) => sum + value) / known.length : null
        return figure(measure, percent(mean))
    })
    return [
        make("b", {}, say("report_mean", { n: layers.length })),
        make("div", {}, ...means),
        make("small", {}, say("spectrum_mean")),
    ]
}

function inLayer(layer) {
    const ranks = [
        `${say("edit_rank")}: ${layer.rank} ${say("width", { n: layer.width })}`,
        `${say("forget_rank")}: ${layer.forget_rank}`,
        layer.retain_rank == null ? null : `${say("retain_rank")}: ${layer.retain_rank}`,
    ]
    return [
        make("b", { title: layer.name }, `${say("layer")} ${layer.short_name}`),
        make("div", {}, ...SHARES.map((measure) =>
            figure(measure, percent(layer[measure])))),
        make("small", {}, ranks.filter(Boolean).join("; ")),
    ]
}

function figure(measure, text) {
    return make("span", { "data-measure": measure, title: say(`${measure}_tip`) },
        `${say(measure)} `, make("b", {}, text))
}

function shown(layer, measure) {
    return measure === "rank" ? String(layer.rank) : percent(layer[measure])
}

function percent(share) {
    return share == null ? say("nothing") : `${Math.round(100 * share)}%`
}

/** Cumulative energy over the number of directions: a curve per layer, earlier ones fainter. */
function spectra(layers) {
    const sides = [["forget_curve", "concept"], ["retain_curve", "neighbours"]]
    const curves = layers.flatMap((layer, index) => sides
        .filter(([key]) => layer[key]?.length)
        .map(([key, side]) => ({ side, points: layer[key], age: (index + 1) / layers.length })))
    const most = Math.max(2, ...curves.map(({ points }) => points.at(-1)[0]))
    const least = Math.min(1, ...curves.map(({ points }) => points[0][1]))
    const floor = Math.max(0, Math.floor(10 * least - 0.2) / 10)
    const place = ([count, share]) => [
        PLOT.width * Math.log(count) / Math.log(most),
        PLOT.height * (1 - (share - floor) / (1 - floor)),
    ]
    const svg = document.createElementNS(SVG, "svg")
    svg.setAttribute("viewBox", `0 -2 ${PLOT.width} ${PLOT.height + 4}`)
    svg.setAttribute("preserveAspectRatio", "none")
    svg.setAttribute("aria-hidden", "true")
    for (const { side, points, age } of curves) {
        const line = document.createElementNS(SVG, "polyline")
        const whole = [...points, [most, points.at(-1)[1]]] // the rest lies in these directions
        line.setAttribute("points", whole.map((point) => place(point).join(",")).join(" "))
        line.setAttribute("data-side", side)
        line.setAttribute("opacity", String(0.35 + 0.65 * age))
        svg.append(line)
    }
    return [
        make("div", { class: "pure-axis" }, say("spectrum"),
            ...sides.map(([, side]) => make("span", { "data-side": side }, say(side)))),
        make("div", { class: "pure-curves" },
            make("i", {}, "100%"), make("i", {}, `${Math.round(100 * floor)}%`), svg),
        make("div", { class: "pure-ticks" }, make("i", {}, "1"), make("i", {}, String(most))),
    ]
}
