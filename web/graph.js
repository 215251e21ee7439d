// The workflow in view.

import { app } from "../../scripts/app.js"

/** Its nodes, in subgraphs too, each with its id as the server has it. */
export function* everyNode(graph = app.rootGraph ?? app.graph, path = "") {
    for (const node of graph?.nodes ?? []) {
        yield [`${path}${node.id}`, node]
        if (node.subgraph) yield* everyNode(node.subgraph, `${path}${node.id}:`)
    }
}
