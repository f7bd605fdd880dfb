// SPDX-License-Identifier: GPL-3.0-or-later
import assert from "node:assert/strict";
import { test } from "node:test";
import { branchOf, recalled } from "../../web/js/kept.js";

const prompt = (strength, seed, apply = "2") => ({
  1: { class_type: "Loader", inputs: { name: "a.safetensors" } },
  [apply]: { class_type: "SafeGenApply", inputs: { strength, model: ["1", 0] } },
  3: { class_type: "KSampler", inputs: { model: [apply, 0], seed } },
});
const entry = (graph, outputs) => ({ prompt: [0, "id", graph, {}, []], outputs });
const info = (headline) => ({ safegen_patch: [{ headline }] });

test("a branch is what leads to the node, whatever the ids and whatever comes after", () => {
  assert.equal(branchOf(prompt(1, 5), "2"), branchOf(prompt(1, 6, "9"), "9"));
  assert.notEqual(branchOf(prompt(1, 5), "2"), branchOf(prompt(0, 5), "2"));
  assert.notEqual(branchOf(prompt(1, 5), "3"), branchOf(prompt(1, 6), "3"));
  const other = prompt(1, 5);
  other[1].inputs.name = "b.safetensors";
  assert.notEqual(branchOf(prompt(1, 5), "2"), branchOf(other, "2"));
});

test("a widget's list of two is not taken for a link, and a circle ends", () => {
  const graph = { 1: { class_type: "A", inputs: { size: [8, 8] } } };
  assert.notEqual(branchOf(graph, "1"), branchOf({ 1: { class_type: "A", inputs: { size: [8, 9] } } }, "1"));
  const loop = { 1: { class_type: "A", inputs: { x: ["1", 0] } } };
  assert.equal(branchOf(loop, "1"), branchOf(loop, "1"));
});

test("a kept node gets what its own branch gave, not what any node of its id gave last", async () => {
  const server = {
    "/history/3": { 3: entry(prompt(1, 3), {}) },
    "/history?max_items=32": {
      1: entry(prompt(1, 1), { 2: info("on") }),
      2: entry(prompt(0, 2), { 2: info("off") }),
      3: entry(prompt(1, 3), {}),
    },
  };
  const asked = [];
  const ask = async (path) => (asked.push(path), server[path]);
  assert.deepEqual(await recalled("3", ["2"], ask), [["2", info("on")]]);
  assert.deepEqual(await recalled("3", ["2"], ask), [["2", info("on")]]);
  assert.equal(asked.length, 3, "what is known is not asked for again");
});

test("nothing known: nothing said", async () => {
  const ask = async (path) => (path === "/history/9" ? { 9: entry(prompt(0.3, 1), {}) } : {});
  assert.deepEqual(await recalled("9", ["2"], ask), []);
  assert.deepEqual(await recalled("10", ["2"], async () => ({})), []);
});
