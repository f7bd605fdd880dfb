// SPDX-License-Identifier: GPL-3.0-or-later
import assert from "node:assert/strict";
import { test } from "node:test";
import { decided, found } from "../../web/js/check_card.js";

test("what left decides, whatever the policy asked for", () => {
  const of = (left, action = "censor", cause = "detection") => decided({ left, action, cause });
  assert.equal(of("as it is", "release", "clear"), "released");
  assert.equal(of("censored"), "censored");
  assert.equal(of("censored", "release", "clear"), "censored", "a clip's clean frame");
  for (const left of ["sign", "replaced", "dropped", "blocked"]) assert.equal(of(left), "withheld");
  assert.equal(of("sign", "withhold", "error"), "unjudged");
  assert.equal(of("something of tomorrow"), "withheld");
});

test("a score is cut, so that it never reads as the limit it did not reach", () => {
  const finding = (score) => ({ findings: [{ label: "SOME_LABEL", score, threshold: 0.25 }] });
  assert.deepEqual(found(finding(0.2499)), ["some label", "0.24 / 0.25"]);
  assert.deepEqual(found(finding(0.29)), ["some label", "0.29 / 0.25"]);
  assert.deepEqual(found({ cause: "error", code: "detector_missing" }), ["detector_missing", ""]);
  assert.deepEqual(found({ cause: "clear", findings: [] }), ["", ""]);
});
