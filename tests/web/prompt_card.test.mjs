// SPDX-License-Identifier: GPL-3.0-or-later
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { colours, promptCard, withoutWords } from "../../web/js/prompt_card.js";
import { speak } from "../../web/js/text.js";
import { Graph, sampler } from "./graphs.mjs";

// A page by hand, with the few members of the browser's elements that a card uses.
class Element {
  children = [];
  dataset = {};
  listeners = {};
  style = { setProperty: (name, value) => (this.style[name] = value) };

  constructor(tag) {
    this.tag = tag;
  }

  append(...children) {
    this.children.push(...children);
  }

  addEventListener(name, listener) {
    this.listeners[name] = listener;
  }

  querySelector() {
    return null;
  }

  get textContent() {
    return this.children.map((child) => child.textContent ?? child).join("");
  }

  set textContent(text) {
    this.children = [text];
  }

  /** All elements in it of a tag or, after a dot, of a class. */
  all(wanted) {
    return this.children.flatMap((child) => {
      if (!(child instanceof Element)) return [];
      const classes = (child.className ?? "").split(" ").map((name) => `.${name}`);
      const here = child.tag === wanted || classes.includes(wanted);
      return [...(here ? [child] : []), ...child.all(wanted)];
    });
  }
}

let copied;

beforeEach(() => {
  speak("en");
  copied = null;
  const head = new Element("head");
  globalThis.document = {
    head,
    createElement: (tag) => new Element(tag),
    getElementById: (id) => head.children.find((child) => child.id === id) ?? null,
  };
  const clipboard = { writeText: async (text) => (copied = text) };
  Object.defineProperty(globalThis, "navigator", { value: { clipboard }, configurable: true });
});

const word = (text, more) => ({
  text,
  weight: 1,
  score: 0.1,
  delta: null,
  action: "keep",
  replacement: null,
  chunk: 0,
  why: "kept",
  ...more,
});

const view = (role, after = null) => ({ encoder: "l", role, score: 0.9, after, why: "of all" });

const explained = (words, more) => ({
  version: 1,
  verdict: "cleaned",
  threshold: 0.5,
  strength: 1,
  score: 0.97,
  after: 0.31,
  words,
  whole: [],
  forwards: 3,
  reason: "It was cleaned.",
  code: null,
  ...more,
});

/** A node in a graph whose sampler reads a prompt. */
function nodeBy(prompt) {
  const graph = new Graph();
  const widgets = [{ name: "text", type: "customtext", value: prompt }];
  const encode = graph.add("CLIPTextEncode", "CLIP", "CONDITIONING", { widgets });
  graph.link(encode, 0, sampler(graph), 1);
  return graph.add("SafeGenExplainPrompt");
}

const cardOf = (info) => promptCard(nodeBy(""), info);
const chips = (card) => card.all(".safegen-chip").map((chip) => chip.textContent);

test("a chip for every word, with its weight, its score and its reason", () => {
  const card = cardOf(
    explained([word("a"), word("striped", { weight: 1.3, score: 0.99, delta: 0.97, why: "left out" })])
  );
  assert.deepEqual(chips(card), ["a 0.10", "(striped:1.3) 0.97"]);
  const [, striped] = card.all(".safegen-chip");
  assert.equal(striped.title, "left out");
  assert.equal(striped.style["--heat"], 0.97, "of delta, where there is one");
  for (const theme of ["light", "dark"]) {
    const [ground, ink] = colours(0.97, theme).map((colour) => `rgb(${colour.join(" ")})`);
    assert.equal(striped.style[`--${theme}`], ground);
    assert.equal(striped.style[`--${theme}-ink`], ink);
  }
});

test("what was replaced is struck out, and what stands in its place beside it", () => {
  const card = cardOf(
    explained([
      word("striped", { action: "replace", replacement: "plain" }),
      word("star", { action: "replace", replacement: "" }),
      word("night"),
    ])
  );
  assert.deepEqual(card.all("s").map((struck) => struck.textContent), ["striped", "star"]);
  assert.deepEqual(card.all(".safegen-new").map((one) => one.textContent), ["plain"]);
});

test("a new part is announced, and an empty prompt is said to be one", () => {
  const parts = cardOf(explained([word("a"), word("b", { chunk: 1 }), word("c", { chunk: 1 })]));
  assert.deepEqual(parts.all(".aside").map((one) => one.textContent), ["0.97 → 0.31", "part 2:"]);
  assert.match(cardOf(explained([])).textContent, /The prompt is empty/);
});

test("the whole prompt as each encoder tells it, before and after", () => {
  const card = cardOf(explained([], { whole: [view("end", 0.12), view("pooled")] }));
  assert.deepEqual(chips(card), ["L, end of text 0.90", "0.12", "L, pooled 0.90"]);
});

test("every verdict and every place has its word in another language", () => {
  speak("ja");
  const foreign = (text) => assert.doesNotMatch(text, /[a-z]{3}/);
  for (const verdict of ["pass", "cleaned", "anchored", "refused"]) {
    const [head] = cardOf(explained([], { verdict })).all(".word");
    foreign(head.textContent);
  }
  for (const role of ["end", "pad", "pooled"]) chips(cardOf(explained([], { whole: [view(role)] }))).forEach(foreign);
});

test("a verdict of tomorrow is shown as refused, never as harmless", () => {
  for (const verdict of ["fine", "constructor", undefined]) {
    const card = cardOf(explained([word("a")], { verdict }));
    assert.equal(card.dataset.tone, "red");
    assert.equal(card.all(".word")[0].textContent, "refused");
  }
});

test("a score is cut, so that it never reads as the limit it did not reach", () => {
  const info = explained([word("a", { score: 0.4999 })], { score: 0.4999, after: null });
  const card = cardOf(info);
  assert.deepEqual(chips(card), ["a 0.49"]);
  assert.equal(card.all(".aside")[0].textContent, "0.49");
});

test("nothing hides in a word", () => {
  const card = cardOf(explained([word("a\u202eb\u200bc", { action: "replace", replacement: "\u0000" })]));
  assert.deepEqual(chips(card), ["aU+202EbU+200Bc 0.10"]);
  assert.equal(card.all(".safegen-new")[0].textContent, "U+0");
});

test("its style is put into the page once", () => {
  cardOf(explained([]));
  cardOf(explained([]));
  assert.equal(document.head.children.length, 1);
});

const PROMPT = explained(
  [
    word("zebrine", { why: "left out: it scores 0.91", action: "replace", replacement: "plain" }),
    word("starlet", { weight: 1.2 }),
  ],
  { whole: [view("end", 0.2)] }
);

async function reported(ticked) {
  const card = promptCard(nodeBy("zebrine (starlet:1.2)"), PROMPT);
  const [box, button] = [card.all("input")[0], card.all("button")[0]];
  box.checked = ticked;
  await button.listeners.click();
  return copied;
}

test("no word of the prompt is in a copied report, but all the numbers are", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const text = await reported(false);
  assert.doesNotMatch(text, /zebrine|starlet/);
  const report = JSON.parse(text);
  assert.deepEqual(report, withoutWords(PROMPT));
  assert.deepEqual(report.words.map(({ score, weight }) => [score, weight]), [[0.1, 1], [0.1, 1.2]]);
});

test("they are, and the graph's prompts as well, where the box is ticked", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { prompts, ...report } = JSON.parse(await reported(true));
  assert.deepEqual(report, PROMPT);
  assert.deepEqual(prompts, { positive: ["zebrine (starlet:1.2)"], negative: [] });
});
