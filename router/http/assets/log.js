// The last decisions, with the predictions for every engine, and the last events.

import { h, unseen } from "./dom.js";
import { armName } from "./fleet.js";
import { clock, number, reason, seconds } from "./text.js";

export function decisions(state, colour) {
  if (!state.decisions.length) return h("p", { class: "empty" }, "No decisions yet.");
  const heads = [["Time", ""], ["Engine", ""], ["Why", ""], ["Cluster", "optional"], ["Tokens", "right optional"],
    ["Accept.", "right optional"], ["First token", "right optional"], ["Decoding", "right"], ["Predicted, by engine", ""], ["Request", "optional"]];
  return h("table", { class: "decisions" },
    h("thead", {}, h("tr", {}, heads.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))),
    h("tbody", {}, state.decisions.map((row) => decision(row, colour))));
}

function decision(row, colour) {
  const odd = row.status === "ok" ? null : h("span", { class: "pill", "data-tone": row.status === "cancelled" ? "warn" : "bad" }, row.status.replace("_", " "));
  return h("tr", {},
    h("td", {}, clock(row.time)),
    h("td", {}, armName(row.arm, colour), row.attempt > 1 ? h("span", { class: "hint" }, ` attempt ${row.attempt}`) : null),
    h("td", { title: `policy ${row.policy}` }, reason(row), odd),
    h("td", { class: "optional cut", title: row.kind }, row.kind ?? ""),
    h("td", { class: "right optional" }, number(row.output_tokens)),
    h("td", { class: "right optional", title: steps(row.drafters) }, number(row.acceptance_length, 2)),
    h("td", { class: "right optional" }, seconds(row.ttft_s)),
    h("td", { class: "right" }, seconds(row.decode_s)),
    h("td", {}, strip(row, colour)),
    h("td", { class: "optional cut code", title: row.request_id }, row.request_id.slice(0, 8)));
}

/** The steps of a pool's drafters. */
function steps(drafters) {
  return drafters ? Object.entries(drafters).map(([name, n]) => `${name} ${n}`).join(", ") + " steps" : null;
}

/** A scale from 0 to the longest time: a dot per engine's prediction, a mark for the measured time. */
function strip(row, colour) {
  if (!row.predicted_decode_s) return h("span", { class: "hint" }, "no times predicted");
  const pairs = Object.entries(row.predicted_decode_s).sort((a, b) => a[1] - b[1]);
  const longest = Math.max(pairs.at(-1)[1], row.decode_s ?? 0) || 1;
  const told = `${pairs.map(([arm, s]) => `${arm} ${seconds(s)}`).join(", ")}; measured ${seconds(row.decode_s)}`;
  const at = (s) => ({ left: `${100 * s / longest}%` });
  const dots = pairs.map(([arm, s]) => h("i", { class: `dot ${colour(arm)}${arm === row.arm ? " own" : ""}`, style: at(s) }));
  return h("span", { class: "predicted", title: told }, unseen(told),
    h("span", { class: "strip", "aria-hidden": "true" },
      row.decode_s == null ? null : h("b", { style: at(row.decode_s) }), dots));
}

const TONES = { arm_quarantined: "bad", policy_rejected: "bad", safe_mode_entered: "bad", arm_changed: "warn", inputs_changed: "warn" };

export function events(state) {
  if (!state.events.length) return h("p", { class: "empty" }, "No events: no change of an engine, of the requests, or of the policy.");
  return h("ol", { class: "events" }, state.events.map((event) => h("li", { "data-tone": TONES[event.kind] ?? "dim" },
    h("time", { datetime: new Date(1000 * event.time).toISOString() }, clock(event.time)), h("span", {}, event.text, " ", h("span", { class: "code hint" }, event.policy ?? "")))));
}
