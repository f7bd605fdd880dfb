// SPDX-License-Identifier: GPL-3.0-or-later
/**
 * Whether the model a sampler works with has passed an Apply SafeGen node.
 *
 * The answer is read off the drawn graph, so it is an aid for whoever draws it and proves nothing:
 * what a node does inside, and what a checkpoint holds, is not seen here.
 */

import { asleep, everyNode, kind, linked, origins, placeOf } from "./links.js";

export const APPLY = "SafeGenApply";
// Compare means to sample without the patch; AddNoise only asks the model for its noise levels.
const NEVER_MARKED = new Set(["SafeGenCompare", "AddNoise"]);

/**
 * Whether the node samples from a MODEL: a sampler, a guider, or a node that samples inside and
 * gives pictures (a detailer, an upscaler by parts).
 */
export function isSampler(node) {
  const takes = (type) => (node.inputs ?? []).some((input) => input.type === type);
  const gives = (type) => (node.outputs ?? []).some((output) => output.type === type);
  return (
    takes("MODEL") &&
    !NEVER_MARKED.has(kind(node)) &&
    (gives("LATENT") || gives("GUIDER") || (gives("IMAGE") && takes("CONDITIONING")))
  );
}

/**
 * What protects a node that samples, or a subgraph's node by the samplers inside.
 *
 * @returns {"protected" | "partly" | "none" | "unknown"} `unknown`: it does not run, samples
 *     nothing, or its model comes from where the drawing does not show it
 */
export function protection(node, path = []) {
  if (asleep(node)) return "unknown";
  if (node.isSubgraphNode?.() && node.subgraph) {
    if (path.includes(node)) return "unknown";
    return together(node.subgraph.nodes.map((inner) => protection(inner, [...path, node])));
  }
  return isSampler(node) ? supply(node, linked(node, "MODEL"), path) : "unknown";
}

/** Every node to mark, with `partly` or `none`; empty where the graph uses no Apply SafeGen. */
export function survey(root) {
  const found = new Map();
  if (!everyNode(root).some((node) => kind(node) === APPLY)) return found;
  for (const node of everyNode(root, true)) {
    const state = protection(node);
    if (state === "partly" || state === "none") found.set(node, state);
  }
  return found;
}

function supply(node, indices, path, known = new Map()) {
  return together(
    indices.flatMap((i) => origins(node, i, path).map((origin) => given(origin, known)))
  );
}

function given({ node, path, muted }, known) {
  if (kind(node) === APPLY) return muted || isOff(node) ? "none" : "protected";
  if (muted) return "unknown";
  const place = `${placeOf(node.graph, path)}/${node.id}`;
  if (!known.has(place)) {
    known.set(place, "unknown"); // what a circle comes back to
    known.set(place, handedOn(node, path, known));
  }
  return known.get(place);
}

function handedOn(node, path, known) {
  const models = linked(node, "MODEL");
  const inputs = models.length ? models : carriers(node, path);
  if (!inputs.length) return "none"; // what takes no model in is where models come from
  const state = supply(node, inputs, path, known);
  // Subtracting one protected model from another cancels the patch.
  return kind(node) === "ModelMergeSubtract" && state === "protected" ? "partly" : state;
}

/** Inputs of no fixed type that may hold a model: switches, and the pipes that bundle several. */
function carriers(node, path) {
  const mayHold = (type) => type === "MODEL" || type === "*" || /pipe|context/i.test(String(type));
  return (node.inputs ?? []).flatMap((input, i) => {
    if (input.link == null || input.type === "MODEL" || !mayHold(input.type)) return [];
    const sources = origins(node, i, path);
    return sources.some((from) => mayHold(from.node.outputs?.[from.slot]?.type)) ? [i] : [];
  });
}

function isOff(apply) {
  const strength = (apply.inputs ?? []).find((input) => input.name === "strength");
  if (strength?.link != null) return false; // given by another node: not seen here
  return apply.widgets?.find((widget) => widget.name === "strength")?.value === 0;
}

function together(states) {
  const known = new Set(states.filter((state) => state !== "unknown"));
  if (!known.size) return "unknown";
  return known.size === 1 ? [...known][0] : "partly";
}
