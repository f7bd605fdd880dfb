// SPDX-License-Identifier: GPL-3.0-or-later
/**
 * *Copy report*: what a card tells, as text, for a colleague or a bug report. Pictures are never in
 * it; prompts only if the user ticks the box, for this one report.
 */

import { promptsOf } from "./prompts.js";
import { make } from "./style.js";
import { say } from "./text.js";

/**
 * The line with the button and the box.
 *
 * @param {object} node the node on the canvas
 * @param {object} report what is copied
 * @param {object} [withPrompt] what is copied instead where the box is ticked
 */
export function reportLine(node, report, withPrompt = report) {
  const graph = () => ({ prompts: promptsOf(node.graph.rootGraph ?? node.graph) });
  return copyLine(report, () => ({ ...withPrompt, ...graph() }), say("withPromptWhy"));
}

/**
 * The line, for every host.
 *
 * @param {object} report what is copied
 * @param {() => object} withPrompt what is copied instead where the box is ticked
 * @param {string} why what the box is for
 */
export function copyLine(report, withPrompt, why) {
  const box = make("input");
  box.type = "checkbox";
  const tick = make("label", box, say("withPrompt"));
  tick.title = why;
  const button = make("button", say("copy"));
  button.type = "button";
  const line = make("div.safegen-report", button, tick);
  let back = 0;

  button.addEventListener("click", async () => {
    line.querySelector("textarea")?.remove();
    const text = JSON.stringify(box.checked ? withPrompt() : report, null, 2);
    const done = await copy(text);
    button.textContent = say(done ? "copied" : "copyYourself");
    if (!done) offer(line, text);
    clearTimeout(back);
    back = setTimeout(() => (button.textContent = say("copy")), done ? 1800 : 8000);
  });
  return line;
}

/** Whether the text is in the clipboard now. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No permission, or a page served without TLS, where browsers have no clipboard at all.
    const area = make("textarea");
    area.value = text;
    area.style.cssText = "position: fixed; opacity: 0";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** The last resort: the text itself, selected. */
function offer(line, text) {
  const area = make("textarea");
  area.readOnly = true;
  area.value = text;
  line.append(area);
  area.select();
}
