// SPDX-License-Identifier: GPL-3.0-or-later
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { say, speak, TEXTS } from "../../web/js/text.js";

test("every text is there in all four languages, with the same places to fill", () => {
  for (const [key, texts] of Object.entries(TEXTS)) {
    assert.equal(texts.length, 4, key);
    const places = texts.map((text) => (text.match(/\{\w+\}/g) ?? []).sort().join());
    assert.equal(new Set(places).size, 1, key);
    assert.ok(texts.every((text) => text.trim()), key);
  }
});

test("the front end's locale chooses; one that is not there is English", () => {
  const words = {};
  for (const locale of ["en", "zh", "zh-TW", "ja", "ko", "fr", undefined]) {
    speak(locale);
    words[locale] = say("withheld");
  }
  assert.equal(words.zh, words["zh-TW"]);
  assert.equal(words.fr, "withheld");
  assert.equal(words[undefined], "withheld");
  assert.equal(new Set(Object.values(words)).size, 4);
});

test("places are filled, and what has no text is shown as it came", () => {
  speak("en");
  assert.equal(say("pictures", { n: 2, all: 4 }), "2 of 4");
  assert.equal(say("a label of tomorrow"), "a label of tomorrow");
  assert.equal(say("constructor"), "constructor");
});

test("no module asks for a text that is not there", () => {
  const ours = ["check_card", "marks", "patch_card", "prompt_card", "report", "safegen"];
  for (const name of [...ours.map((one) => `web/js/${one}.js`), "javascript/safegen.mjs"]) {
    const source = readFileSync(new URL(`../../${name}`, import.meta.url), "utf8");
    for (const [, key] of source.matchAll(/(?:say|about)\("([^"]+)"/g)) assert.ok(key in TEXTS, `${name}: ${key}`);
  }
});
