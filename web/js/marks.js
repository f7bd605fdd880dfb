// SPDX-License-Identifier: GPL-3.0-or-later
/**
 * A mark over every node that samples from an unprotected model, in graphs that use Apply SafeGen.
 *
 * The classic canvas has badges for that. Vue nodes read a node's badges once, when they are made,
 * so there a style sheet of ours draws the mark, by the nodes' ids.
 */

import { app } from "../../../scripts/app.js";
import { survey } from "./protection.js";
import { say } from "./text.js";

export const SETTING = "SafeGen.MarkUnprotectedSamplers";
const LOOKS = {
  none: { text: "markNone", why: "markNoneWhy", sign: "✕", fgColor: "#ffffff", bgColor: "#b3302b" },
  partly: { text: "markPartly", why: "markPartlyWhy", sign: "~", fgColor: "#1d1400", bgColor: "#e0a02e" },
};
const HEIGHT = 20;

let found = new Map(); // node -> "none" or "partly"
const badges = new Map(); // node -> { state, badge }, on the classic canvas
const sheet = document.createElement("style");
let waiting = 0;

/** Look again soon; many changes in a row count as one. */
export function lookAgain() {
  clearTimeout(waiting);
  waiting = setTimeout(look, 120);
}

/** From now on keep the marks right, and explain them to whoever points at one. */
export function keepMarks() {
  document.head.append(sheet);
  app.api.addEventListener("graphChanged", lookAgain);
  app.canvas.canvas.addEventListener("litegraph:set-graph", lookAgain);
  app.ui?.settings?.addEventListener?.("Comfy.VueNodes.Enabled.change", lookAgain);
  document.addEventListener("pointermove", explain);
}

const vue = () => Boolean(globalThis.LiteGraph?.vueNodesMode);

function look() {
  const wanted = app.extensionManager?.setting?.get(SETTING) ?? true;
  found = wanted && app.rootGraph ? survey(app.rootGraph) : new Map();
  pin(vue() ? new Map() : found);
  sheet.textContent = vue() ? rules() : "";
  app.canvas?.setDirty(true, true);
}

function pin(states) {
  for (const [node, { state, badge }] of badges) {
    if (states.get(node) === state) continue;
    const at = node.badges.indexOf(badge);
    if (at >= 0) node.badges.splice(at, 1);
    badges.delete(node);
  }
  for (const [node, state] of states) {
    if (badges.has(node)) continue;
    const { text, sign, fgColor, bgColor } = LOOKS[state];
    const words = `${sign} ${say(text)}`;
    const badge = new globalThis.LGraphBadge({ text: words, fgColor, bgColor, height: HEIGHT });
    node.badges.push(badge);
    badges.set(node, { state, badge });
  }
}

function rules() {
  return [...found]
    .filter(([node]) => node.graph === app.canvas.graph) // ids are told apart only within a graph
    .map(([node, state]) => {
      const { text, sign, fgColor, bgColor } = LOOKS[state];
      return `[data-node-id="${CSS.escape(node.id)}"]::before {
        content: ${JSON.stringify(`${sign} ${say(text)}`)};
        position: absolute; right: 0; top: -${HEIGHT + 4}px; height: ${HEIGHT}px; padding: 0 7px;
        border-radius: 5px; font: 12px/${HEIGHT}px system-ui, sans-serif; white-space: nowrap;
        color: ${fgColor}; background: ${bgColor}; }`;
    })
    .join("\n");
}

/** The reason as a tooltip. A mark is no element of its own, so it is told by where it is drawn. */
function explain(event) {
  const canvas = app.canvas.canvas;
  if (!found.size && !canvas.title) return;
  if (event.target === canvas) {
    canvas.title = under(app.canvas.graph_mouse);
  } else if (vue()) {
    const element = event.target.closest?.("[data-node-id]");
    const state = element && found.get(app.canvas.graph.getNodeById(element.dataset.nodeId));
    if (state) element.title = event.clientY < element.getBoundingClientRect().top ? say(LOOKS[state].why) : "";
  }
}

function under([x, y]) {
  for (const [node, { state, badge }] of badges) {
    if (node.graph !== app.canvas.graph) continue;
    const [left, top, width, height] = badge.boundingRect;
    const [dx, dy] = [x - node.pos[0] - left, y - node.pos[1] - top];
    if (dx >= 0 && dy >= 0 && dx <= width && dy <= height) return say(LOOKS[state].why);
  }
  return "";
}
