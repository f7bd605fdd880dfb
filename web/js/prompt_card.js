// SPDX-License-Identifier: GPL-3.0-or-later
/**
 * What the sanitizer found in a prompt and did to it, as a card: each word on a chip whose colour,
 * bar and number say how much it carries the concept. safegen_core/sanitize/heatmap.py draws the
 * same as a picture, in the same colours.
 */

import { card, head } from "./patch_card.js";
import { reportLine } from "./report.js";
import { make } from "./style.js";
import { say } from "./text.js";

const LOOKS = {
  pass: ["green", "✓"],
  cleaned: ["amber", "~"],
  anchored: ["amber", "~"],
  refused: ["red", "✕"],
};

// From 0 to 1, evenly apart. Away from the ground: darker on light, lighter on dark.
const SCALES = {
  light: [[246, 239, 230], [253, 205, 148], [226, 108, 20], [127, 39, 4]],
  dark: [[46, 42, 38], [92, 58, 24], [186, 108, 26], [255, 205, 116]],
};

const CSS = `
.safegen-prompt { margin-top: 6px; font-size: 12px; max-height: 230px; text-align: start; }
.safegen-prompt.whole, .safegen-line.legend { font-size: 11px; }
.safegen-prompt .aside { color: var(--soft); font-size: 10px; }
.safegen-chip, .safegen-new {
  display: inline-block; box-sizing: border-box; max-width: 100%; margin: 2px 0; border-radius: 5px;
  vertical-align: middle;
}
.safegen-chip {
  --chip: var(--light); --ink: var(--light-ink); color: var(--ink); padding: 1px 5px 4px;
  background: linear-gradient(var(--ink) 0 0) 5px calc(100% - 1px) no-repeat, var(--chip);
  background-size: calc((100% - 10px) * var(--heat)) 2px, auto;
}
.safegen-chip small { font-size: 9px; font-variant-numeric: tabular-nums; }
.safegen-new { border: 1px solid; padding: 0 5px; }
.safegen-arrow::before { content: "→"; }
.safegen-arrow:dir(rtl)::before { content: "←"; }
.safegen-scale {
  position: relative; display: inline-block; width: 100px; height: 8px; margin: 0 3px; background: var(--light);
}
.safegen-scale i { position: absolute; inset-block: -4px; border-left: 2px solid var(--input-text); }
.dark-theme .safegen-chip { --chip: var(--dark); --ink: var(--dark-ink); }
.dark-theme .safegen-scale { background: var(--dark); }
`;

/** `[chip, letters]` for 0..1; black or white letters, whichever has the larger contrast. */
export function colours(heat, theme) {
  const stops = SCALES[theme];
  const at = heat * (stops.length - 1);
  const left = Math.min(Math.floor(at), stops.length - 2);
  const chip = stops[left].map((a, i) => Math.round(a + (stops[left + 1][i] - a) * (at - left)));
  const [red, green, blue] = chip.map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue; // WCAG 2
  return [chip, (luminance + 0.05) ** 2 > 1.05 * 0.05 ? [0, 0, 0] : [255, 255, 255]];
}

/** A report that may be passed on: without the prompt. */
export const withoutWords = (info) => ({
  ...info,
  words: info.words.map(({ text, ...rest }) => rest),
});

/**
 * @param {object} node the node on the canvas
 * @param {object} info an explanation's JSON, as the node gives it under `safegen_prompt`
 */
export function promptCard(node, info) {
  const element = heatMap(info);
  element.append(reportLine(node, withoutWords(info), info));
  return element;
}

/** The card alone, for every host: what was found, word by word. */
export function heatMap(info) {
  dress();
  const verdict = Object.hasOwn(LOOKS, info.verdict) ? info.verdict : "refused";
  const [tone, sign] = LOOKS[verdict];
  const scores = info.after == null ? shown(info.score) : `${shown(info.score)} → ${shown(info.after)}`;
  const element = card(tone, head(sign, say(verdict), scores));
  const code = info.code ? ` [${info.code}]` : "";
  element.append(make("div.safegen-line", info.reason + code));
  element.append(words(info.words));
  if (info.whole.length) element.append(whole(info.whole));
  element.append(legend(info));
  return element;
}

function words(all) {
  // Of the class by which a panel knows what the wheel scrolls.
  const line = make("div.safegen-pictures.safegen-prompt");
  line.dir = "auto";
  let chunk = 0;
  for (const word of all) {
    if (word.chunk !== chunk) line.append(make("br"), aside(say("part", { n: word.chunk + 1 })), " ");
    chunk = word.chunk;
    const heat = word.delta ?? word.score;
    const plain = visible(word.text);
    const text = word.weight === 1 ? plain : `(${plain}:${word.weight})`;
    line.append(chip(text, heat, word.why, word.action === "replace" ? "s" : "span"), " ");
    if (word.replacement) line.append(make("span.safegen-arrow"), " ", make("span.safegen-new", visible(word.replacement)), " ");
  }
  if (!all.length) line.append(aside(say("emptyPrompt")));
  return line;
}

function whole(views) {
  const line = make("div.safegen-prompt.whole", aside(say("wholePrompt")), " ");
  for (const view of views) {
    const name = `${view.encoder.toUpperCase()}, ${say(view.role)}`;
    line.append(chip(name, view.score, view.why), " ");
    if (view.after != null) line.append(make("span.safegen-arrow"), " ", chip("", view.after, view.why), " ");
  }
  return line;
}

function legend({ threshold, strength, forwards }) {
  const mark = make("i");
  mark.style.left = `${threshold * 100}%`;
  const scale = make("span.safegen-scale", mark);
  for (const [theme, stops] of Object.entries(SCALES)) {
    scale.style.setProperty(`--${theme}`, `linear-gradient(90deg, ${stops.map(css).join()})`);
  }
  const told = say("promptFacts", { limit: shown(threshold), strength, forwards });
  return make("div.safegen-line.soft.legend", "0", scale, "1 · ", told);
}

function chip(text, heat, why, tag = "span") {
  const element = make("span.safegen-chip", make(tag, text), text && " ", make("small", shown(heat)));
  for (const theme of ["light", "dark"]) {
    const [ground, ink] = colours(heat, theme);
    element.style.setProperty(`--${theme}`, css(ground));
    element.style.setProperty(`--${theme}-ink`, css(ink));
  }
  element.style.setProperty("--heat", heat);
  element.title = why;
  return element;
}

/** A text in which nothing hides: no zero width, no turned direction. */
const visible = (text) => text.replace(/\p{C}/gu, (c) => `U+${c.codePointAt(0).toString(16).toUpperCase()}`);

const aside = (text) => make("span.aside", text);
const css = (colour) => `rgb(${colour.join(" ")})`;

// Cut, not rounded: a score under its limit must not read as the limit.
const shown = (score) => (Math.floor(score * 100 + 1e-6) / 100).toFixed(2);

function dress() {
  if (document.getElementById("safegen-prompt-style")) return;
  const style = make("style", CSS);
  style.id = "safegen-prompt-style";
  document.head.append(style);
}
