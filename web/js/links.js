// SPDX-License-Identifier: GPL-3.0-or-later
/**
 * Where a value on a canvas really comes from: past reroutes, bypassed nodes, the walls of subgraphs
 * and Set/Get pairs. Nothing here knows the browser, so it is tested on graphs made by hand.
 *
 * A *path* is the chain of subgraph nodes one has walked into, outermost first. A subgraph may stand
 * in a graph several times and its nodes exist only once, so a node alone does not say where it is.
 */

export const MUTED = 2;
export const BYPASSED = 4;
const FROM_OUTSIDE = -10; // litegraph's id of a subgraph's input side

export const kind = (node) => node.comfyClass ?? node.type;
export const asleep = (node) => node.mode === MUTED || node.mode === BYPASSED;
const isSubgraph = (node) => Boolean(node.isSubgraphNode?.() && node.subgraph);
const rootOf = (graph) => graph.rootGraph ?? graph;

/** Names a graph as it stands at the end of a path, for telling circles. */
export const placeOf = (graph, path) =>
  `${graph.id ?? ""}/${path.map((outer) => outer.id).join(":")}`;

/** The node's inputs of one type that have a link, as indices. */
export function linked(node, ...types) {
  return (node.inputs ?? []).flatMap((input, i) =>
    input.link != null && types.includes(input.type) ? [i] : []
  );
}

/**
 * Every node of the graph and of its subgraphs, each once.
 *
 * @param {boolean} awake leave out subgraphs whose every instance is muted or bypassed
 */
export function everyNode(root, awake = false, seen = new Set()) {
  if (seen.has(root)) return [];
  seen.add(root);
  return (root.nodes ?? []).flatMap((node) =>
    isSubgraph(node) && !(awake && asleep(node))
      ? [node, ...everyNode(node.subgraph, awake, seen)]
      : [node]
  );
}

/**
 * The outputs that feed one input: `[{ node, slot, path, muted }]`, empty if nothing does. There is
 * more than one only where a subgraph stands in several places.
 */
export function origins(node, index, path = [], seen = new Set()) {
  const id = node.inputs?.[index]?.link;
  const link = id == null ? null : node.graph.getLink(id);
  return link ? follow(node.graph, link, path, seen) : [];
}

function follow(graph, link, path, seen) {
  const step = `${placeOf(graph, path)}/${link.id}`;
  if (seen.has(step)) return []; // a circle, as a host would refuse to run it
  const walked = new Set(seen).add(step);
  if (Number(link.origin_id) === FROM_OUTSIDE) {
    return outside(graph, path).flatMap(({ outer, above }) =>
      origins(outer, link.origin_slot, above, walked)
    );
  }
  const node = graph.getNodeById(link.origin_id);
  return node ? emitted(node, link.origin_slot, path, walked) : [];
}

function outside(graph, path) {
  if (path.length) return [{ outer: path.at(-1), above: path.slice(0, -1) }];
  return everyNode(rootOf(graph), true)
    .filter((node) => node.subgraph === graph && !asleep(node))
    .map((outer) => ({ outer, above: [] }));
}

function emitted(node, slot, path, seen) {
  if (node.mode === MUTED) return [{ node, slot, path, muted: true }];
  if (node.mode === BYPASSED) return through(node, slot, path, seen);
  if (isSubgraph(node)) {
    const inner = node.subgraph.outputs?.[slot]?.linkIds?.[0];
    const link = inner == null ? null : node.subgraph.getLink(inner);
    return link ? follow(node.subgraph, link, [...path, node], seen) : [];
  }
  if (kind(node) === "Reroute") return origins(node, 0, path, seen);
  if (kind(node) === "GetNode") {
    const setter = setterOf(node, path);
    return setter ? origins(setter.node, 0, setter.path, seen) : [];
  }
  return [{ node, slot, path, muted: false }];
}

/** What a bypassed node hands on: the input at the output's place, else the first of its type. */
function through(node, slot, path, seen) {
  const type = node.outputs?.[slot]?.type;
  const inputs = node.inputs ?? [];
  const index = [slot, ...inputs.keys()].find((i) => inputs[i]?.type === type);
  return index === undefined ? [] : origins(node, index, path, seen);
}

/** KJNodes: a Get reads the Set of the same name, in its own graph or in one around it. */
function setterOf(getter, path) {
  const name = getter.widgets?.[0]?.value;
  const graphs = [{ graph: getter.graph, path }];
  for (let depth = path.length; depth > 0; depth--) {
    graphs.push({ graph: path[depth - 1].graph, path: path.slice(0, depth - 1) });
  }
  if (!path.length) graphs.push({ graph: rootOf(getter.graph), path: [] });
  for (const { graph, path: above } of graphs) {
    const node = (graph.nodes ?? []).find(
      (other) => kind(other) === "SetNode" && other.widgets?.[0]?.value === name
    );
    if (node) return { node, path: above };
  }
  return null;
}
