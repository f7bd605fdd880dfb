// SPDX-License-Identifier: GPL-3.0-or-later
import assert from "node:assert/strict";
import { test } from "node:test";
import { promptsOf } from "../../web/js/prompts.js";
import { Graph, sampler } from "./graphs.mjs";

const text = (value) => ({ widgets: [{ name: "text", type: "customtext", value }] });
const encode = (graph, value) => graph.add("CLIPTextEncode", "CLIP", "CONDITIONING", text(value));

test("both sides of a sampler, past nodes that edit them", () => {
  const graph = new Graph();
  const to = sampler(graph);
  const both = graph.add("ConditioningCombine", "CONDITIONING:conditioning_1 CONDITIONING:conditioning_2", "CONDITIONING");
  graph.link(encode(graph, "a harbour"), 0, both, 0);
  graph.link(encode(graph, " at dawn "), 0, both, 1);
  graph.link(both, 0, to, 1);
  graph.link(encode(graph, "blurry"), 0, to, 2);
  encode(graph, "connected to nothing");
  assert.deepEqual(promptsOf(graph), { positive: ["a harbour", "at dawn"], negative: ["blurry"] });
});

test("ControlNet's two sides stay apart", () => {
  const graph = new Graph();
  const to = sampler(graph);
  const sides = "CONDITIONING:positive CONDITIONING:negative";
  const control = graph.add("ControlNetApplyAdvanced", sides, "CONDITIONING CONDITIONING");
  graph.link(encode(graph, "a boat"), 0, control, 0);
  graph.link(encode(graph, "noise"), 0, control, 1);
  graph.link(control, 0, to, 1);
  graph.link(control, 1, to, 2);
  assert.deepEqual(promptsOf(graph), { positive: ["a boat"], negative: ["noise"] });
});

test("guiders, texts from other nodes, each text once, nothing of muted samplers", () => {
  const graph = new Graph();
  const guider = graph.add("BasicGuider", "MODEL CONDITIONING:conditioning", "GUIDER");
  const encoder = graph.add("CLIPTextEncode", "STRING:text CLIP", "CONDITIONING", text("not this"));
  encoder.inputs[0].widget = { name: "text" };
  graph.link(graph.add("PrimitiveStringMultiline", "", "STRING", text("a lighthouse")), 0, encoder, 0);
  graph.link(encoder, 0, guider, 1);
  graph.link(encoder, 0, sampler(graph), 1);
  const asleep = Object.assign(sampler(graph), { mode: 2 });
  graph.link(encode(graph, "unused"), 0, asleep, 1);
  assert.deepEqual(promptsOf(graph), { positive: ["a lighthouse"], negative: [] });
});
