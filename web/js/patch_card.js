// SPDX-License-Identifier: GPL-3.0-or-later
/** What Apply SafeGen did, as a card: a state one sees at once, a sentence, and the facts. */

import { say } from "./text.js";
import { cut, make } from "./style.js";

// Never by colour alone: each state has its own sign and word.
const STATES = {
  green: ["green", "✓"],
  amber: ["amber", "~"],
  red: ["red", "✕"],
  unknown: ["grey", "○"],
  baked: ["green", "✓"],
  off: ["grey", "○"],
  unsupported: ["amber", "✕"],
  failed: ["red", "✕"],
};

/** The head of a card: a coloured sign, a word, and something small at the right. */
export function head(sign, word, aside = "") {
  const line = make("div.safegen-head", make("span.safegen-dot", sign), make("span.word", word));
  if (aside) line.append(make("span.aside", aside));
  return line;
}

/** A card of one tone. */
export function card(tone, ...children) {
  const element = make("div.safegen-card", ...children);
  element.dataset.tone = tone;
  return element;
}

/** Before the first run. */
export function waitingCard() {
  const element = card("grey", say("waiting"));
  element.classList.add("waiting");
  return element;
}

/** The node raised an error: what stood here before no longer holds. */
export function failedCard(message) {
  const [tone, sign] = STATES.failed;
  return card(tone, head(sign, say("failed")), make("div.safegen-line", message));
}

/**
 * @param {{ state: string, headline: string, facts: [string, string][], notes: string[] }} info
 *     as the node gives it under `safegen_patch`
 */
export function patchCard(info) {
  const state = Object.hasOwn(STATES, info.state) ? info.state : "unknown";
  const [tone, sign] = STATES[state];
  const element = card(tone, head(sign, say(state)));
  if (info.headline) element.append(make("div.safegen-line", info.headline));
  const facts = make("dl.safegen-facts");
  for (const [label, value] of info.facts ?? []) {
    facts.append(make("dt", say(label)), cut("dd", String(value)));
  }
  if (facts.childElementCount) element.append(facts);
  for (const note of info.notes ?? []) element.append(make("div.safegen-line.note", note));
  return element;
}
