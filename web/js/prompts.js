// SPDX-License-Identifier: GPL-3.0-or-later
/** The prompt texts that a graph's samplers read, for a report whose sender ticked "with prompt". */

import { asleep, everyNode, origins } from "./links.js";

/** `{ positive: [...], negative: [...] }`, each text once, in no order that means anything. */
export function promptsOf(root) {
  const texts = { positive: new Set(), negative: new Set() };
  for (const node of everyNode(root, true)) {
    if (asleep(node)) continue;
    (node.inputs ?? []).forEach((input, i) => {
      if (input.type !== "CONDITIONING" || input.link == null) return;
      // A basic guider names its only input "conditioning"; what merely edits has the same input.
      const guider = (node.outputs ?? []).some((output) => output.type === "GUIDER");
      const side = input.name in texts ? input.name : guider ? "positive" : null;
      if (side) for (const from of origins(node, i)) gather(from, side, texts[side], new Set());
    });
  }
  return { positive: [...texts.positive], negative: [...texts.negative] };
}

function gather({ node, path, muted }, side, texts, seen) {
  if (muted || seen.has(node)) return;
  seen.add(node);
  const inputs = node.inputs ?? [];
  const named = inputs.some((input) => input.type === "CONDITIONING" && input.name === side);
  let upstream = false;
  inputs.forEach((input, i) => {
    // ControlNet and its like hand both sides on by name: keep to ours.
    const ours = input.type === "CONDITIONING" && (!named || input.name === side);
    if (input.link == null || !ours) return;
    upstream = true;
    for (const from of origins(node, i, path)) gather(from, side, texts, seen);
  });
  if (!upstream) written(node, path).forEach((text) => texts.add(text));
}

/** The texts typed into a node, or into the node that a text input is linked to. */
function written(node, path) {
  const inputs = node.inputs ?? [];
  const typed = (node.widgets ?? []).filter((widget) => {
    const linked = inputs.some((input) => input.widget?.name === widget.name && input.link != null);
    return !linked && isProse(widget);
  });
  const wired = inputs.flatMap((input, i) =>
    input.type === "STRING" && input.link != null
      ? origins(node, i, path).flatMap((from) => (from.node.widgets ?? []).filter(isProse))
      : []
  );
  return [...typed, ...wired].map((widget) => widget.value.trim()).filter(Boolean);
}

// A prompt's box has several lines; names of files and choices have other widgets.
const isProse = (widget) =>
  typeof widget.value === "string" &&
  (widget.type === "customtext" || widget.type === "text" || widget.type === "string");
