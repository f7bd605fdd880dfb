// SPDX-License-Identifier: GPL-3.0-or-later
/**
 * Results that ComfyUI kept from an earlier run.
 *
 * A node that need not run again sends nothing, so after the page was loaded anew its panel would stay
 * empty, and with a large cache it would go on showing another run's result. What was kept is told by
 * the branch of the prompt that leads to the node: the same branch gave the same result.
 */

const MOST = 256;
const numbers = new Map(); // a node with its inputs, as text -> a number that stands for it
const results = new Map(); // number of a branch -> what its last node gave for us

/** The number of the branch that leads to a node of a prompt in the API's form. */
export function branchOf(prompt, id, seen = new Map()) {
  if (seen.has(id)) return seen.get(id);
  seen.set(id, -1); // a circle; no host runs it
  const { class_type: kind, inputs = {} } = prompt[id] ?? {};
  const given = Object.keys(inputs)
    .sort()
    .map((name) => {
      const value = inputs[name];
      const from = Array.isArray(value) && value.length === 2 && Object.hasOwn(prompt, value[0]);
      return from ? [name, "from", branchOf(prompt, value[0], seen), value[1]] : [name, value];
    });
  const text = JSON.stringify([kind, given]);
  if (!numbers.has(text)) numbers.set(text, numbers.size);
  seen.set(id, numbers.get(text));
  return seen.get(id);
}

/** Learn from one run's entry in the history: which branch gave what. */
export function learn(entry) {
  const prompt = entry?.prompt?.[2];
  for (const [id, output] of Object.entries((prompt && entry.outputs) ?? {})) {
    if (!output?.safegen_patch && !output?.safegen_check && !output?.safegen_prompt) continue;
    const branch = branchOf(prompt, id);
    results.delete(branch);
    results.set(branch, output);
    if (results.size > MOST) results.delete(results.keys().next().value);
  }
}

/**
 * What the kept nodes of a finished run had given when they last ran.
 *
 * @param {string} run the run's id
 * @param {string[]} ids nodes of it that ComfyUI did not run again
 * @param {(path: string) => Promise<object>} ask asks the server for one path's JSON
 * @returns {Promise<[string, object][]>} ids with what is known of them
 */
export async function recalled(run, ids, ask) {
  const entry = (await ask(`/history/${run}`))[run];
  learn(entry);
  const prompt = entry?.prompt?.[2];
  if (!prompt || !ids.length) return [];
  if (ids.some((id) => !results.has(branchOf(prompt, id)))) {
    const earlier = await ask("/history?max_items=32"); // oldest first
    Object.values(earlier).forEach(learn);
  }
  return ids.flatMap((id) => {
    const output = results.get(branchOf(prompt, id));
    return output ? [[id, output]] : [];
  });
}
