// SPDX-License-Identifier: GPL-3.0-or-later
/**
 * A panel at the foot of a node, on the classic canvas and with Vue nodes alike.
 *
 * It is a DOM widget that is saved nowhere: neither in the workflow nor in the queued prompt. It is
 * as high as what it shows; the node grows and shrinks with it and keeps the width the user gave it.
 */

import { app } from "../../../scripts/app.js";
import { dress, make } from "./style.js";

const NAME = "safegen";
const MARGIN = 8;
const panels = new WeakMap();

/** Show a card in a node's panel; the panel is made when first needed. */
export function show(node, card) {
  const panel = panels.get(node) ?? attach(node);
  panel.element.replaceChildren(card);
  panel.watch(card);
  setTimeout(() => settle(node, panel.element), 250);
}

/** Whether the node has a panel. */
export const has = (node) => panels.has(node);

function attach(node) {
  dress();
  const element = make("div.safegen-panel");
  let height = 34;
  const widget = node.addDOMWidget(NAME, "safegen_panel", element, {
    serialize: false,
    hideOnZoom: false,
    margin: MARGIN,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: () => height + 2 * MARGIN,
    getMaxHeight: () => height + 2 * MARGIN,
  });
  widget.serialize = false;

  const measured = new ResizeObserver(([entry]) => {
    const now = Math.ceil(entry.borderBoxSize[0].blockSize);
    if (!now || now === height) return; // 0: the node is out of sight
    const grown = now - height;
    height = now;
    if (!globalThis.LiteGraph?.vueNodesMode) fit(node, grown);
  });
  const panel = {
    element,
    watch(card) {
      measured.disconnect();
      measured.observe(card);
    },
  };
  panels.set(node, panel);
  letThrough(element);

  const removed = widget.onRemove;
  widget.onRemove = function () {
    measured.disconnect();
    removed?.call(this);
  };
  return panel;
}

/**
 * Vue nodes of another workflow with the same id are not made anew, and some versions then go on
 * showing the old node's panel.
 */
function settle(node, element) {
  if (!globalThis.LiteGraph?.vueNodesMode || node.graph !== app.canvas?.graph) return;
  const place = document.querySelector(`[data-node-id="${CSS.escape(node.id)}"] .safegen-panel`);
  if (place && place !== element) place.replaceWith(element);
}

function fit(node, grown) {
  const least = node.computeSize()[1];
  node.setSize([node.size[0], Math.max(least, node.size[1] + grown)]);
  app.canvas?.setDirty(true, true);
}

/** On the classic canvas the wheel still zooms and the middle button still pans over a panel. */
function letThrough(element) {
  const classic = () => !globalThis.LiteGraph?.vueNodesMode;
  element.addEventListener("wheel", (event) => {
    const list = event.target.closest(".safegen-pictures, textarea");
    const scrolls = list && list.scrollHeight > list.clientHeight;
    if (classic() && !scrolls) app.canvas?.processMouseWheel(event);
  });
  const middle = (handler) => (event) => {
    if (classic() && (event.button === 1 || event.buttons === 4)) app.canvas?.[handler](event);
  };
  element.addEventListener("pointerdown", middle("processMouseDown"));
  element.addEventListener("pointermove", middle("processMouseMove"));
  element.addEventListener("pointerup", middle("processMouseUp"));
}
