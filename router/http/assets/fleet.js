// Totals, engines, and routing by cluster.

import { h, unseen } from "./dom.js";
import { NOTHING, counted, number, percent, seconds, standing } from "./text.js";

/** The CSS class of each arm's colour: grey for the baseline engine, the others in order. */
export function colours(state) {
  const others = state.arms.map((one) => one.arm).filter((arm) => arm !== state.baseline);
  return (arm) => (arm === state.baseline ? "arm-plain" : `arm-${others.indexOf(arm) % 9}`);
}

/** The name of an arm, with its colour. */
export function armName(arm, colour) {
  return h("span", { class: `arm ${colour(arm)}` }, h("i", { class: "swatch", "aria-hidden": "true" }), arm);
}

export function totals(state) {
  const { window: all, arms } = state;
  const inFlight = arms.reduce((sum, one) => sum + one.standing.in_flight, 0);
  const speed = arms.reduce((sum, one) => sum + one.tokens_per_s, 0);
  return [
    tile("In flight", number(inFlight), "requests of this router"),
    tile("Tokens/s", number(speed, speed < 10 ? 1 : 0), "output, over the last minute"),
    tile("Acceptance", number(all.acceptance_length, 2), "tokens per decoding step"),
    tile(`Saved over ${state.baseline}`, percent(all.saved_share), savedNote(all), tone(all.saved_share)),
    tile("Requests", number(all.attempts), requestsNote(all)),
    lost(state.records) && tile("Records lost", number(lost(state.records)), lostNote(state.records), "bad"),
  ].filter(Boolean);
}

function tile(name, value, note, state = "dim") {
  return h("dl", { class: "tile" }, h("dt", {}, name), h("dd", { "data-tone": state }, value), h("dd", { class: "note" }, note));
}

function savedNote(all) {
  if (!all.attempts) return "nothing to compare yet";
  return all.saved_s == null ? "the policy predicts no times" : `about ${seconds(all.saved_s)} of decoding, by its own predictions`;
}

function requestsNote(all) {
  if (!all.attempts) return "none so far";
  const failed = all.failed ? `, ${all.failed} failed` : "";
  return `in the last ${seconds(all.seconds)}${failed}`;
}

function lost(records) {
  return records ? records.dropped + (records.damaged ?? 0) : 0;
}

function lostNote(records) {
  return `${records.dropped} dropped, ${records.damaged ?? 0} damaged lines (draftpick records repair)`;
}

function tone(share) {
  if (share == null || Math.abs(share) < 0.005) return "dim";
  return share > 0 ? "good" : "bad";
}

const HEADS = [
  ["Engine", "", ""],
  ["State", "", ""],
  ["Share", "of the last requests", ""],
  ["In flight", "of this router; in brackets of all clients, if there are others", "right"],
  ["Tokens/s", "output over the last minute", "right"],
  ["ms/token", "time per output token after the first (TPOT)", "right optional"],
  ["Accept.", "acceptance length: tokens per decoding step", "right optional"],
  ["First token", "mean time to the first token", "right optional"],
  ["Error", "measured over predicted decoding time", "right optional"],
  ["Saved", "over the baseline engine: an estimate from the policy's own predictions", "right"],
];

export function engines(state, colour) {
  const head = HEADS.map(([name, title, kind]) => h("th", { scope: "col", class: kind, title: title || null }, name));
  const rows = state.arms.map((one) => engine(one, colour, state.baseline));
  return h("table", { class: "engines" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows));
}

function engine(one, colour, plain) {
  const [word, how] = standing(one.standing);
  const { in_flight: own, load } = one.standing;
  const error = one.measured_over_predicted == null ? null : one.measured_over_predicted - 1;
  return h("tr", {},
    h("th", { scope: "row" }, armName(one.arm, colour)),
    h("td", {}, h("span", { class: "pill", "data-tone": how }, word)),
    h("td", {}, shareBar(one.share, colour(one.arm))),
    right(load > own ? `${own} (${load})` : number(own)),
    right(number(one.tokens_per_s, one.tokens_per_s < 10 ? 1 : 0)),
    h("td", { class: "right optional" }, one.tpot_s == null ? NOTHING : number(1000 * one.tpot_s, 1)),
    h("td", { class: "right optional" }, number(one.acceptance_length, 2)),
    h("td", { class: "right optional" }, seconds(one.ttft_s)),
    h("td", { class: "right optional" }, percent(error, true)),
    h("td", { class: "right", "data-tone": one.arm === plain ? "dim" : tone(one.saved_share) },
      one.arm === plain ? NOTHING : percent(one.saved_share)),
  );
}

function right(text) {
  return h("td", { class: "right" }, text);
}

function shareBar(share, colour) {
  return h("span", { class: "share" },
    h("span", { class: "bar", "aria-hidden": "true" }, h("i", { class: colour, style: { width: `${100 * (share ?? 0)}%` } })),
    h("span", { class: "figure" }, percent(share)));
}

export function kinds(state, colour) {
  const legend = h("p", { class: "legend", "aria-hidden": "true" }, state.arms.map((one) => armName(one.arm, colour)));
  if (!state.kinds.length) return [legend, h("p", { class: "empty" }, "No requests yet. Send one below, or to /v1/chat/completions.")];
  const most = Math.max(...state.kinds.map((kind) => kind.attempts));
  return [legend, h("table", { class: "kinds" },
    h("thead", {}, h("tr", {},
      h("th", { scope: "col" }, "Cluster"), h("th", { scope: "col" }, "Engines"),
      h("th", { scope: "col", class: "right optional" }, "Requests"), h("th", { scope: "col", class: "right" }, "Saved"))),
    h("tbody", {}, state.kinds.map((kind) => kindRow(kind, state, colour, most))))];
}

function kindRow(kind, state, colour, most) {
  const known = state.arms.filter((one) => kind.arms[one.arm]);
  const told = known.map((one) => `${one.arm} ${percent(kind.arms[one.arm] / kind.attempts)}`).join(", ");
  const parts = known.map((one) => h("i", { class: colour(one.arm), style: { "flex-grow": kind.arms[one.arm] } }));
  return h("tr", {},
    h("th", { scope: "row", title: kind.name }, kind.name ?? "unknown: failed, or of an earlier policy"),
    h("td", { title: told }, unseen(told),
      h("span", { class: "stack", "aria-hidden": "true", style: { width: `${Math.max(100 * kind.attempts / most, 4)}%` } }, parts)),
    h("td", { class: "right optional" }, number(kind.attempts)),
    h("td", { class: "right", "data-tone": tone(kind.saved_share) }, percent(kind.saved_share)));
}

/** Summary of the fleet, for the header. */
export function about(state) {
  const trial = state.candidate ? `, candidate ${state.candidate.policy} ${percent(state.candidate.share)}` : "";
  return `${state.model} · ${counted(new Set(state.arms.map((one) => one.arm.split("/")[0])).size, "engine")} · policy ${state.policy}${trial} · objective ${state.objective}`;
}
