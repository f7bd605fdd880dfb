// SPDX-License-Identifier: GPL-3.0-or-later
/** SafeGen in ComfyUI's browser window: panels on our nodes, marks on samplers, one setting. */

import { app } from "../../../scripts/app.js";
import { checkCard } from "./check_card.js";
import { recalled } from "./kept.js";
import { keepMarks, lookAgain, SETTING } from "./marks.js";
import { has, show } from "./panel.js";
import { failedCard, patchCard, waitingCard } from "./patch_card.js";
import { promptCard } from "./prompt_card.js";
import { APPLY } from "./protection.js";
import { say, speak } from "./text.js";

const WITH_PANEL = new Set([
  APPLY,
  "SafeGenCheckImage",
  "SafeGenGuardClip",
  "SafeGenSanitizeConditioning",
  "SafeGenExplainPrompt",
]);
const OURS = /^SafeGen/;

/** Show what a node's run gave for us, if anything. */
function receive(node, output) {
  const patch = output?.safegen_patch?.[0];
  const check = output?.safegen_check?.[0];
  const prompt = output?.safegen_prompt?.[0];
  if (patch) show(node, patchCard(patch));
  if (check) show(node, checkCard(node, check));
  if (prompt) show(node, promptCard(node, prompt));
}

/** A node by the ids the front end uses: "3", "5:3" through subgraph nodes, "<subgraph's id>:3". */
function nodeAt(id) {
  const steps = String(id).split(":");
  let graph = app.rootGraph;
  if (graph.subgraphs?.has(steps[0])) graph = graph.subgraphs.get(steps.shift());
  const last = steps.pop();
  for (const step of steps) graph = graph?.getNodeById(step)?.subgraph;
  return graph?.getNodeById(last);
}

function failed({ detail }) {
  const node = nodeAt(detail.node_id);
  if (node && has(node)) show(node, failedCard(String(detail.exception_message ?? "").trim()));
}

const GRAVITY = ["pass", "cleaned", "anchored", "refused"];
const judged = new Map(); // node -> the run it guarded prompts in, and the gravest verdict there

/** A guard has judged a prompt. Of a run's prompts, the card shows the one that matters most. */
function guarded({ detail }) {
  const node = nodeAt(detail.node);
  if (!node || !has(node)) return;
  const weight = GRAVITY.indexOf(detail.prompt.verdict);
  const known = judged.get(node);
  if (known?.run === run && known.weight > weight) return;
  judged.set(node, { run, weight });
  show(node, promptCard(node, detail.prompt));
}

const refused = new Set(); // nodes whose card says why the last graph was not queued

/**
 * Say on our cards why the graph was not queued: ComfyUI has the sentence two clicks away. A node
 * without a card has it told by the node that takes its output.
 */
function tellRefusals(nodeErrors) {
  for (const [id, { errors }] of Object.entries(nodeErrors ?? {})) {
    const node = nodeAt(id);
    if (!OURS.test(node?.comfyClass)) continue;
    const told = errors
      .filter(({ type }) => /^(custom_validation|exception)/.test(type)) // our sentences
      .map(({ details, extra_info: at }) => details.replace(`${at?.input_name} - `, ""));
    if (!told.length) continue;
    const tellers = has(node) ? [node] : (node.getOutputNodes?.(0) ?? []).filter(has);
    for (const one of tellers) {
      show(one, failedCard([...new Set(told)].join("\n")));
      refused.add(one);
    }
  }
}

function forgetRefusals() {
  for (const node of refused) show(node, waitingCard());
  refused.clear();
}

/** There is no event for a graph that the server refuses. */
function watchQueue(api) {
  const queue = api.queuePrompt;
  api.queuePrompt = function (...given) {
    forgetRefusals();
    const answer = queue.apply(this, given);
    answer.then(
      (taken) => tellRefusals(taken?.node_errors), // of outputs that were left out
      (error) => tellRefusals(error?.response?.node_errors)
    );
    return answer;
  };
}

let run = null; // the one that is going on: its id, and those of our nodes that need not run

function started({ detail }) {
  const ours = (id) => {
    const node = nodeAt(id);
    return node && has(node);
  };
  run = { id: detail.prompt_id, kept: detail.nodes.filter(ours) };
}

/** The worker says that it executes nothing any more; from now on the run is in the history. */
async function ended({ detail }) {
  if (detail !== null || !run) return;
  const { id, kept } = run;
  run = null;
  const ask = async (path) => (await app.api.fetchApi(path)).json();
  for (const [at, output] of await recalled(id, kept, ask)) {
    const node = nodeAt(at);
    if (node) receive(node, output);
  }
}

speak(navigator.language);

app.registerExtension({
  name: "SafeGen",
  settings: [
    {
      id: SETTING,
      category: ["SafeGen", "SafeGen", "Samplers"],
      name: say("setting"),
      tooltip: say("settingWhy"),
      type: "boolean",
      defaultValue: true,
      onChange: () => lookAgain(),
    },
  ],
  init() {
    speak(app.extensionManager?.setting?.get("Comfy.Locale"));
  },
  setup() {
    app.api.addEventListener("execution_error", failed);
    app.api.addEventListener("execution_cached", started);
    app.api.addEventListener("executing", ended);
    app.api.addEventListener("safegen.prompt", guarded);
    watchQueue(app.api);
    keepMarks();
  },
  nodeCreated(node) {
    if (WITH_PANEL.has(node.comfyClass)) show(node, waitingCard());
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.call(this, output);
      receive(this, output);
    };
    lookAgain();
  },
  afterConfigureGraph: lookAgain,
  // A tab one comes back to, or a run opened from the queue: results without a run.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs ?? {})) {
      const node = nodeAt(id);
      if (node) receive(node, output);
    }
  },
});
