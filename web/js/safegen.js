// SPDX-License-Identifier: GPL-3.0-or-later
/** SafeGen in ComfyUI's browser window: panels on our nodes, marks on samplers, one setting. */

import { app } from "../../../scripts/app.js";
import { checkCard } from "./check_card.js";
import { recalled } from "./kept.js";
import { keepMarks, lookAgain, SETTING } from "./marks.js";
import { has, show } from "./panel.js";
import { failedCard, patchCard, waitingCard } from "./patch_card.js";
import { APPLY } from "./protection.js";
import { say, speak } from "./text.js";

const WITH_PANEL = new Set([APPLY, "SafeGenCheckImage"]);

/** Show what a node's run gave for us, if anything. */
function receive(node, output) {
  const patch = output?.safegen_patch?.[0];
  const check = output?.safegen_check?.[0];
  if (patch) show(node, patchCard(patch));
  if (check) show(node, checkCard(node, check));
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
