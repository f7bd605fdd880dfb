// SPDX-License-Identifier: GPL-3.0-or-later
/** What Check Image decided, as a card: the weightiest verdict, the count, and every picture. */

import { card, head } from "./patch_card.js";
import { reportLine } from "./report.js";
import { cut, make } from "./style.js";
import { say } from "./text.js";

// The weightiest last. A picture nobody could judge is withheld like an unsafe one, and comes first
// because something is to be mended.
const WEIGHTS = ["released", "censored", "withheld", "unjudged"];
const LOOKS = {
  released: ["green", "✓"],
  censored: ["amber", "~"],
  withheld: ["red", "✕"],
  unjudged: ["red", "○"],
};

/** What became of one picture, as one of `WEIGHTS`: what left counts, not what the policy asked for. */
export function decided(picture) {
  if (picture.cause === "error") return "unjudged";
  return { "as it is": "released", censored: "censored" }[picture.left] ?? "withheld";
}

/** The weightiest thing found and its score over its limit; an error's code; or nothing. */
export function found(picture) {
  if (picture.cause === "error") return [picture.code ?? "", ""];
  const finding = picture.findings?.[0];
  if (!finding) return ["", ""];
  const label = finding.label.toLowerCase().replaceAll("_", " ");
  return [label, `${places(finding.score)} / ${places(finding.threshold)}`];
}

// Cut, not rounded: a score under its limit must not read as the limit.
const places = (score) => (Math.floor(score * 100 + 1e-6) / 100).toFixed(2);

/**
 * @param {object} node the node on the canvas
 * @param {object} report the dictionary under `safegen_check`
 */
export function checkCard(node, report) {
  const element = checked(report);
  element.append(reportLine(node, report));
  return element;
}

/** The card alone, for every host: the weightiest verdict, the count, and every picture. */
export function checked(report) {
  const pictures = report.pictures ?? [];
  const worst = Math.max(0, ...pictures.map((one) => WEIGHTS.indexOf(decided(one))));
  const state = pictures.length ? WEIGHTS[worst] : "unjudged";
  const chosen = pictures.filter((one) => decided(one) === state);
  const [tone, sign] = LOOKS[state];
  const element = card(tone, head(sign, say(state), count(chosen.length, pictures.length)));

  if (pictures.length && pictures.every((one) => one.left === "blocked")) {
    element.append(
      make("div.safegen-line.strong", say("nothing")),
      make("div.safegen-line.soft", say("nothingWhy"))
    );
  }
  // In a clip, frames in which nothing was found share the fate of those that were flagged.
  const telling = [...chosen, ...pictures].find((one) => one.cause !== "clear") ?? chosen[0];
  if (telling?.reason) element.append(make("div.safegen-line", telling.reason));
  for (const note of report.notes ?? []) element.append(make("div.safegen-line.note", note));
  if (pictures.length > 1) element.append(list(pictures));
  return element;
}

const count = (n, all) => (all > 1 ? say("pictures", { n, all }) : "");

function list(pictures) {
  const rows = pictures.map((picture, i) => {
    const [tone, sign] = LOOKS[decided(picture)];
    const [label, score] = found(picture);
    const row = make(
      "li",
      make("span.number", `#${i + 1}`),
      make("span.safegen-dot", sign),
      make("span.left", say(picture.left ?? "")),
      cut("span.found", label),
      make("span.score", score)
    );
    row.dataset.tone = tone;
    row.title = picture.reason ?? "";
    return row;
  });
  return make("ol.safegen-pictures", ...rows);
}
