// SPDX-License-Identifier: GPL-3.0-or-later
import assert from "node:assert/strict";
import { test } from "node:test";
import { isSampler, protection, survey } from "../../web/js/protection.js";
import { Graph, apply, loader, sampler } from "./graphs.mjs";

const BYPASSED = 4;
const MUTED = 2;

/** loader -> apply -> through a node of one MODEL in and out -> sampler */
function chain(middle = "ModelSamplingDiscrete", more = {}) {
  const graph = new Graph();
  const [from, safe, to] = [loader(graph), apply(graph), sampler(graph)];
  const between = graph.add(middle, "MODEL", "MODEL", more);
  graph.link(from, 0, safe, 0);
  graph.link(safe, 0, between, 0);
  graph.link(between, 0, to, 0);
  return { graph, from, safe, between, to };
}

test("what counts as a sampler", () => {
  const graph = new Graph();
  const of = (type, inputs, outputs) => isSampler(graph.add(type, inputs, outputs));
  assert.ok(of("KSampler", "MODEL LATENT", "LATENT"));
  assert.ok(of("BasicGuider", "MODEL CONDITIONING", "GUIDER"));
  assert.ok(of("UltimateSDUpscale", "IMAGE MODEL CONDITIONING", "IMAGE"));
  assert.ok(!of("LoraLoaderModelOnly", "MODEL", "MODEL"));
  assert.ok(!of("BasicScheduler", "MODEL", "SIGMAS"));
  assert.ok(!of("SamplerCustomAdvanced", "NOISE GUIDER LATENT", "LATENT"));
  assert.ok(!of("AddNoise", "MODEL LATENT", "LATENT"));
  assert.ok(!of("SafeGenCompare", "MODEL CONDITIONING LATENT", "IMAGE"));
});

test("a model through Apply SafeGen is protected, one beside it is not", () => {
  const { graph, from, to } = chain();
  assert.equal(protection(to), "protected");
  const other = graph.link(from, 0, sampler(graph), 0);
  assert.equal(protection(other), "none");
  assert.deepEqual([...survey(graph)], [[other, "none"]]);
});

test("graphs without Apply SafeGen are left alone", () => {
  const graph = new Graph();
  graph.link(loader(graph), 0, sampler(graph), 0);
  assert.equal(survey(graph).size, 0);
});

test("an Apply SafeGen that does nothing protects nothing, yet the graph uses it", () => {
  for (const change of [{ mode: BYPASSED }, { mode: MUTED }, { widgets: [{ name: "strength", value: 0 }] }]) {
    const { graph, safe, to } = chain();
    Object.assign(safe, change);
    assert.deepEqual([...survey(graph)], [[to, "none"]], JSON.stringify(change));
  }
});

test("a strength that another node gives may be anything, so it is not called off", () => {
  const { graph, safe, to } = chain();
  safe.widgets[0].value = 0;
  safe.inputs.push({ type: "FLOAT", name: "strength", link: null });
  graph.link(graph.add("PrimitiveFloat", "", "FLOAT"), 0, safe, 2);
  assert.equal(protection(to), "protected");
});

test("bypassed nodes hand the model on, muted ones cut the branch", () => {
  assert.equal(protection(chain("Any", { mode: BYPASSED }).to), "protected");
  assert.equal(protection(chain("Any", { mode: MUTED }).to), "unknown");
});

test("a bypassed node hands on the input at its output's place first", () => {
  const graph = new Graph();
  const merge = graph.add("Merge", "MODEL MODEL", "CLIP MODEL", { mode: BYPASSED });
  const to = sampler(graph);
  graph.link(loader(graph), 0, merge, 0);
  const safe = apply(graph);
  graph.link(loader(graph), 0, safe, 0);
  graph.link(safe, 0, merge, 1);
  graph.link(merge, 1, to, 0);
  assert.equal(protection(to), "protected");
  merge.outputs.reverse(); // now the model leaves at place 0
  graph.link(merge, 0, to, 0);
  assert.equal(protection(to), "none");
});

test("samplers that do not run are not judged", () => {
  for (const mode of [MUTED, BYPASSED]) {
    const { to, safe } = chain();
    Object.assign(to, { mode });
    safe.mode = BYPASSED;
    assert.equal(protection(to), "unknown");
  }
  const { to } = chain();
  to.inputs[0].link = null;
  assert.equal(protection(to), "unknown");
});

test("a merge is protected only if both sides are", () => {
  const { graph, from, safe, to } = chain();
  for (const [type, second, expected] of [
    ["ModelMergeSimple", safe, "protected"],
    ["ModelMergeSimple", from, "partly"],
    ["ModelMergeSubtract", safe, "partly"],
  ]) {
    const merge = graph.add(type, "MODEL MODEL", "MODEL");
    graph.link(safe, 0, merge, 0);
    graph.link(second, 0, merge, 1);
    graph.link(merge, 0, to, 0);
    assert.equal(protection(to), expected, type);
  }
});

test("reroutes, switches and pipes are followed", () => {
  const { graph, safe, to } = chain();
  const reroute = graph.link(safe, 0, graph.add("Reroute", "*", "*"), 0);
  const any = graph.add("Any Switch (rgthree)", "* *", "*");
  graph.link(reroute, 0, any, 0);
  const pipe = graph.link(any, 0, graph.add("ToBasicPipe", "MODEL CLIP", "BASIC_PIPE"), 0);
  const out = graph.link(pipe, 0, graph.add("FromBasicPipe", "BASIC_PIPE", "MODEL CLIP"), 0);
  graph.link(out, 0, to, 0);
  assert.equal(protection(to), "protected");
  safe.mode = BYPASSED;
  assert.equal(protection(to), "none");
});

test("Set and Get meet by name", () => {
  const { graph, safe, to } = chain();
  const named = (value) => ({ widgets: [{ name: "Constant", value }] });
  graph.link(safe, 0, graph.add("SetNode", "MODEL", "*", named("safe")), 0);
  graph.link(loader(graph), 0, graph.add("SetNode", "MODEL", "*", named("raw")), 0);
  graph.link(graph.add("GetNode", "", "MODEL", named("safe")), 0, to, 0);
  assert.equal(protection(to), "protected");
  graph.link(graph.add("GetNode", "", "MODEL", named("raw")), 0, to, 0);
  assert.equal(protection(to), "none");
  graph.link(graph.add("GetNode", "", "MODEL", named("missing")), 0, to, 0);
  assert.equal(protection(to), "unknown");
});

test("a circle ends", () => {
  const graph = new Graph();
  const [a, b] = [graph.add("A", "MODEL", "MODEL"), graph.add("B", "MODEL", "MODEL")];
  graph.link(a, 0, b, 0);
  graph.link(b, 0, a, 0);
  assert.equal(protection(graph.link(b, 0, sampler(graph), 0)), "unknown");
  const loop = graph.add("Reroute", "*", "*");
  graph.link(loop, 0, loop, 0);
  assert.equal(protection(graph.link(loop, 0, sampler(graph), 0)), "unknown");
});

test("out of a subgraph: Apply SafeGen inside protects a sampler outside", () => {
  const graph = new Graph();
  const sub = new Graph("sub", graph);
  const safe = apply(sub);
  sub.link(-10, 0, safe, 0);
  sub.link(safe, 0, -20, 0);
  sub.link(-10, 0, -20, 1); // straight through
  const node = graph.instance(sub, "MODEL", "MODEL MODEL");
  graph.link(loader(graph), 0, node, 0);
  const to = sampler(graph);
  assert.equal(protection(graph.link(node, 0, to, 0)), "protected");
  assert.equal(protection(graph.link(node, 1, to, 0)), "none");
  graph.link(node, 0, to, 0);
  node.mode = BYPASSED;
  assert.equal(protection(to), "none");
});

test("into a subgraph: each instance counts for the samplers it shares", () => {
  const graph = new Graph();
  const sub = new Graph("sub", graph);
  const inner = sampler(sub);
  sub.link(-10, 0, inner, 0);
  const [good, bad] = [graph.instance(sub, "MODEL", "LATENT"), graph.instance(sub, "MODEL", "LATENT")];
  const [from, safe] = [loader(graph), apply(graph)];
  graph.link(from, 0, safe, 0);
  graph.link(safe, 0, good, 0);
  graph.link(from, 0, bad, 0);
  assert.equal(protection(good), "protected");
  assert.equal(protection(bad), "none");
  assert.equal(protection(inner), "partly");
  assert.deepEqual(new Set(survey(graph).keys()), new Set([inner, bad]));
  bad.mode = MUTED;
  assert.equal(protection(inner), "protected");
  assert.equal(survey(graph).size, 0);
});

test("two levels down, and Get reads a Set of the graph around", () => {
  const graph = new Graph();
  const [outer, deep] = [new Graph("outer", graph), new Graph("deep", graph)];
  const named = { widgets: [{ name: "Constant", value: "m" }] };
  const inner = sampler(deep);
  deep.link(-10, 0, inner, 0);
  const second = sampler(deep);
  deep.link(deep.add("GetNode", "", "MODEL", named), 0, second, 0);
  outer.link(-10, 0, outer.instance(deep, "MODEL", "LATENT"), 0);
  const safe = apply(graph);
  graph.link(loader(graph), 0, safe, 0);
  graph.link(safe, 0, graph.add("SetNode", "MODEL", "*", named), 0);
  const top = graph.link(safe, 0, graph.instance(outer, "MODEL", "LATENT"), 0);
  for (const node of [inner, second, top]) assert.equal(protection(node), "protected");
  safe.mode = BYPASSED;
  for (const node of [inner, second, top]) assert.equal(protection(node), "none");
});

test("a node that stands in many merges is followed in no time", { timeout: 5000 }, () => {
  const { graph, safe, to } = chain();
  let last = safe;
  for (let i = 0; i < 60; i++) {
    const merge = graph.add("ModelMergeSimple", "MODEL MODEL", "MODEL");
    graph.link(last, 0, merge, 0);
    last = graph.link(last, 0, merge, 1);
  }
  assert.equal(protection(graph.link(last, 0, to, 0)), "protected");
});
