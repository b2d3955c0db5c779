// The active policy, the candidate, their evaluation, and the actions of an admin.

import { h } from "./dom.js";
import { ago, percent } from "./text.js";

export function policies(state) {
  const { registry } = state;
  if (registry === null) return [serves(state), h("p", { class: "empty" },
    "No registry: only the configuration sets the policy. To keep versions here: ",
    h("code", {}, "draftpick policies add FOLDER --registry DIR"), ", then ", h("code", {}, "router.policy: DIR"), ".")];
  if (registry.error) return [serves(state), h("p", { class: "empty", "data-tone": "bad" }, `The registry is not readable: ${registry.error}`)];
  return [
    active(state), candidate(state), versions(state),
    h("details", {}, h("summary", {}, `History (${registry.history.length} last changes)`), history(registry.history)),
    state.keys ? null : h("p", { class: "hint" }, "Policies cannot be changed here: this router has no keys (draftpick keys new NAME --admin, then router.keys.file)."),
  ];
}

function serves(state) {
  return [h("p", {}, h("strong", {}, state.policy), " serves."), safeMode(state, state.policy)];
}

function safeMode(state, policy) {
  const found = state.safe_mode.find((one) => one.policy === policy);
  return found ? h("p", { "data-tone": "bad" }, `Safe mode: its routing was measured slower than ${found.arm} alone (now ${percent(found.lost, true)}), so ${found.arm} serves.`) : null;
}

function active(state) {
  const { registry } = state;
  const one = registry.policies.find((policy) => policy.id === registry.active);
  if (!one) return h("p", { class: "empty" }, "No policy is active: ", h("strong", {}, state.policy), " serves.");
  return h("div", { class: "card" },
    h("p", { class: "head" }, h("strong", {}, one.id), h("span", { class: "pill", "data-tone": "good" }, registry.pinned ? "active, pinned" : "active"),
      h("span", { class: "code" }, one.policy)),
    one.policy === state.policy ? null : h("p", { "data-tone": "warn" }, `This router serves ${state.policy}.`),
    safeMode(state, one.policy),
    gate(one),
    h("p", { class: "actions" },
      registry.pinned ? change(state, "unpin", null, "Unpin") : change(state, "pin", one.id, "Pin"),
      registry.previous ? change(state, "rollback", null, `Roll back to ${registry.previous}`) : null));
}

function candidate(state) {
  const { candidate: now, policies: all } = state.registry;
  if (!now) return h("p", { class: "hint" }, "No candidate.");
  const one = all.find((policy) => policy.id === now.id);
  return h("div", { class: "card" },
    h("p", { class: "head" }, h("strong", {}, now.id), h("span", { class: "pill", "data-tone": "warn" }, now.stage), h("span", { class: "code" }, one.policy)),
    h("p", {}, STAGES[now.stage] ?? now.stage, now.share ? ` It decides ${percent(now.share)} of the requests.` : "", ` Since ${ago(1000 * now.since)}.`),
    h("span", { class: "bar", role: "img", "aria-label": `decides ${percent(now.share)}` }, h("i", { class: "accent", style: { width: `${100 * now.share}%` } })),
    gate(one),
    h("p", { class: "actions" }, change(state, "canary", now.id, "Change its share"), change(state, "promote", now.id, "Promote")));
}

const STAGES = {
  shadow: "It runs in shadow mode: it computes decisions, but does not make them.",
  canary: "It decides a share of the requests.",
  holdout: "It was active before, and keeps a share of the requests for comparison.",
};

function gate(one) {
  if (!one.gate) return one.reason ? h("p", { class: "hint" }, one.reason) : null;
  const passed = one.gate.checks.filter((check) => check.passed).length;
  return h("details", {},
    h("summary", {}, `Gate ${one.gate.passed ? "passed" : "not passed"}: ${passed} of ${one.gate.checks.length} checks`),
    h("ul", { class: "checks" }, one.gate.checks.map((check) => h("li", { "data-tone": check.passed ? "good" : "bad" },
      h("span", { class: "mark" }, check.passed ? "passed" : "failed"), h("span", {}, h("strong", {}, check.name), ` ${check.why}`)))));
}

function versions(state) {
  const { registry } = state;
  const rest = registry.policies.filter((one) => one.id !== registry.active && one.id !== registry.candidate?.id).reverse();
  if (!rest.length) return null;
  return h("details", {}, h("summary", {}, `Other versions (${rest.length})`), h("ul", { class: "versions" }, rest.map((one) => h("li", {},
    h("span", { class: "head" }, h("strong", {}, one.id), h("span", { class: "pill" }, one.id === registry.previous ? `${one.stage}, previous` : one.stage),
      h("span", { class: "code" }, one.policy), h("time", { datetime: one.created }, ago(Date.parse(one.created)))),
    gate(one),
    h("span", { class: "actions" }, one.stage === "refused" ? null : [change(state, "canary", one.id, "Try"), change(state, "promote", one.id, "Promote")],
      change(state, "pin", one.id, "Pin"))))));
}

function history(changes) {
  return h("ol", { class: "events" }, changes.map((one) => h("li", {},
    h("time", { datetime: one.time, title: one.time }, ago(Date.parse(one.time))),
    h("span", {}, `${one.action} ${one.policy ?? ""} by ${one.by}`, one.reason ? h("span", { class: "hint" }, ` ${one.reason}`) : null))));
}

function change(state, action, id, text) {
  return h("button", { type: "button", class: "small", "data-action": action, "data-id": id, disabled: !state.keys }, text);
}

/** The effect of a change, for the confirmation. */
export function meaning(action, id, registry) {
  return {
    canary: `${id} will decide the given share of the requests. It replaces any other candidate.`,
    promote: `${id} will decide all requests. A rollback activates ${registry.active ?? "nothing"}.`,
    pin: `${id} will decide all requests until it is unpinned.`,
    unpin: `Candidates may replace ${registry.active} again.`,
    rollback: `${registry.previous} will decide all requests again. ${registry.active} and any candidate are rejected.`,
  }[action];
}
