// SPDX-License-Identifier: GPL-3.0-or-later
// Graphs by hand, with the few members of litegraph's classes that web/js reads.

let links = 0;

export class Graph {
  constructor(id = "root", root = null) {
    Object.assign(this, { id, nodes: [], links: new Map(), rootGraph: root ?? this });
    Object.assign(this, { inputs: [], outputs: [] }); // a subgraph's own sides
  }

  getNodeById(id) {
    return this.nodes.find((node) => node.id === Number(id));
  }

  getLink(id) {
    return this.links.get(id);
  }

  /** `add("KSampler", "MODEL CONDITIONING:positive", "LATENT")`; an input's name is optional. */
  add(type, inputs = "", outputs = "", more = {}) {
    const slots = (text) =>
      text.split(" ").filter(Boolean).map((slot) => {
        const [kind, name = kind.toLowerCase()] = slot.split(":");
        return { type: kind, name, link: null };
      });
    const node = { id: this.nodes.length + 1, type, mode: 0, graph: this, widgets: [], ...more };
    Object.assign(node, { inputs: slots(inputs), outputs: slots(outputs) });
    this.nodes.push(node);
    return node;
  }

  /** Node to node; -10 as origin and -20 as target are a subgraph's input and output sides. */
  link(from, slot, to, index) {
    const id = ++links;
    const origin_id = from === -10 ? -10 : from.id;
    this.links.set(id, { id, origin_id, origin_slot: slot });
    if (to === -20) (this.outputs[index] ??= { linkIds: [] }).linkIds.push(id);
    else to.inputs[index].link = id;
    return to;
  }

  /** A node that stands for a subgraph. */
  instance(subgraph, inputs, outputs, more = {}) {
    return this.add(subgraph.id, inputs, outputs, { subgraph, isSubgraphNode: () => true, ...more });
  }
}

export const loader = (graph) => graph.add("CheckpointLoaderSimple", "", "MODEL CLIP VAE");

export function apply(graph, strength = 1) {
  const widgets = [{ name: "strength", value: strength }];
  return graph.add("SafeGenApply", "MODEL SAFEGEN_PATCH", "MODEL", { widgets });
}

export const sampler = (graph) =>
  graph.add("KSampler", "MODEL CONDITIONING:positive CONDITIONING:negative LATENT", "LATENT");
