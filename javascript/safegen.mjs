// SPDX-License-Identifier: GPL-3.0-or-later
/**
 * What became of a request, under SafeGen's accordion in A1111, Forge and reForge.
 *
 * Every request carries this page's secret, which nobody else knows; with it, and the name that the
 * host gives to a task, the page asks for its own results. They hold its prompts.
 */

import { checked } from "../web/js/check_card.js";
import { card, head, patchCard } from "../web/js/patch_card.js";
import { heatMap, withoutWords } from "../web/js/prompt_card.js";
import { copyLine } from "../web/js/report.js";
import { dress, make } from "../web/js/style.js";
import { say, speak } from "../web/js/text.js";

const MOST_PROMPTS = 4;
const LEFT = { release: "as it is", censor: "censored", withhold: "sign" };
const TABS = /^(txt2img|img2img)_/;

const secret = remembered();

/** Of this tab of the browser; it outlives a reload, so that a running request is found again. */
function remembered() {
  const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), hex).join("");
  const hex = (byte) => byte.toString(16).padStart(2, "0");
  try {
    sessionStorage.safegen ||= random();
    return sessionStorage.safegen;
  } catch {
    return random(); // storage is switched off
  }
}

/** Put the secret where every request takes it from; the host may draw the page anew. */
function handOver() {
  for (const box of gradioApp().querySelectorAll(".safegen-page textarea, .safegen-page input")) {
    if (box.value === secret) continue;
    box.value = secret;
    updateInput(box);
  }
}

/** Show a request's result when the host says that it is over. */
function follow() {
  const original = window.requestProgress;
  window.requestProgress = function (task, container, gallery, atEnd, ...rest) {
    const tab = TABS.exec(container?.id ?? "")?.[1];
    const place = tab && gradioApp().querySelector(`#script_${tab}_safegen_card`);
    if (!place) return original.call(this, task, container, gallery, atEnd, ...rest);
    place.replaceChildren();
    const ended = function () {
      show(place, task);
      return atEnd?.apply(this, arguments);
    };
    return original.call(this, task, container, gallery, ended, ...rest);
  };
}

async function show(place, task) {
  speak(String(opts?.localization ?? "en").split(/[_-]/)[0].toLowerCase());
  for (let tries = 0; tries < 20; tries++) {
    const job = await ask("job", { task, page: secret }).catch(() => ({ known: false }));
    if (!job.known) return;
    if (!job.running) return place.replaceChildren(...cards(job, task));
    await new Promise((done) => setTimeout(done, 500));
  }
}

/** The answer of one of our routes; an error's sentence is thrown. */
async function ask(route, body) {
  const answer = await fetch(`./safegen/${route}`, { method: "POST", body: JSON.stringify(body) });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.detail);
  return told;
}

function cards(job, task) {
  const found = [];
  if (job.refused) {
    found.push(card("red", head("✕", say("refusedRequest")), make("div.safegen-line", job.refused)));
  } else if (!job.policies.length) {
    found.push(card("grey", head("○", say("notChecked"))));
  }
  if (job.pictures.length) {
    const check = about("checkOf", checked({ pictures: job.pictures.map(seen) }));
    if (job.recheck.length) check.append(recheckLine(job.recheck, task));
    found.push(check);
  }
  found.push(...patchCards(job), ...prompts(job.prompts), copy(job));
  return found;
}

/** A card of which layer: nothing else on this page says so. */
function about(key, element) {
  element.querySelector(".word").before(make("span.about", `${say(key)}:`));
  return element;
}

const seen = (verdict) => ({ ...verdict, left: LEFT[verdict.action] });

/** One card a model; amber where none fits, with the ways to one. */
function patchCards({ asked, patch, notes, refused }) {
  const models = Object.entries(patch);
  const without = models.filter(([, put]) => !put && asked.patch !== "off").map(([name]) => name);
  const shown = models.filter(([, put]) => put).map(([model, put]) => about("patch", patchCard(told(model, put))));
  if (without.length && !refused) {
    shown.push(about("patch", patchCard({ state: "unsupported", headline: without.join(", "), notes })));
  } else if (notes.length) {
    shown.push(card("amber", ...notes.map((note) => make("div.safegen-line.note", note))));
  }
  return shown;
}

function told(model, put) {
  const state = { "baked in": "baked", "strength 0": "off" }[put.route] ?? put.match ?? "unknown";
  const facts = [
    ["patch", put.name],
    ["model", model],
    ["family", put.family],
    ["strength", put.strength],
    ["trust", put.reason],
  ];
  return { state, headline: "", facts, notes: [] };
}

function prompts(all) {
  const shown = all.slice(0, MOST_PROMPTS).map((one) => about("prompt", heatMap(one)));
  const n = all.length - shown.length;
  return n > 0 ? [...shown, make("div.safegen-more", say("more", { n }))] : shown;
}

/** Without prompts, unless the user ticks the box; a refusal's sentence may name words of them. */
function copy({ known, running, recheck, refused, prompts: all, ...rest }) {
  const bare = { ...rest, prompts: all.map(withoutWords) };
  return copyLine(bare, () => ({ ...rest, refused, prompts: all }), say("withPromptHere"));
}

function recheckLine(policies, task) {
  const menu = make("select", ...policies.map((name) => make("option", name)));
  menu.setAttribute("aria-label", say("recheck"));
  const button = make("button", say("recheck"));
  button.type = "button";
  button.title = say("recheckWhy");
  const result = make("div.safegen-again");
  button.addEventListener("click", async () => {
    button.disabled = true;
    result.replaceChildren(say("rechecking"));
    try {
      const answer = await ask("recheck", { task, page: secret, policy: menu.value });
      result.replaceChildren(...again(answer.pictures));
    } catch (error) {
      result.replaceChildren(make("div.safegen-line.note", error.message));
    }
    button.disabled = false;
  });
  return make("div", make("div.safegen-report", button, menu), result);
}

/** The pictures as another policy lets them out; each under the weightiest of its verdicts. */
function again(pictures) {
  const weights = Object.keys(LEFT);
  return pictures.map(({ image, verdicts }) => {
    const verdict = verdicts.reduce((a, b) => (weights.indexOf(b.action) > weights.indexOf(a.action) ? b : a));
    const picture = make("img");
    picture.src = `data:image/png;base64,${image}`;
    picture.alt = "";
    return make("figure", picture, checked({ pictures: [seen(verdict)] }));
  });
}

dress();
follow();
onAfterUiUpdate(handOver);
handOver();
