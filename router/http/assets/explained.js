// The explanation of a decision: predictions for every engine, and the decisive factor.

import { h } from "./dom.js";
import { armName } from "./fleet.js";
import { NOTHING, number, percent, seconds, whyNot } from "./text.js";

export function explained(told, colour) {
  return [
    h("p", { class: "tipped" }, told.tipped, "."),
    h("p", { class: "hint" }, facts(told).join(" · ")),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Predictions for every engine" }, table(told, colour)),
  ];
}

function facts(told) {
  return [
    `policy ${told.policy}`, told.reason === "policy" ? `objective ${told.objective}` : told.reason,
    told.output_tokens == null ? null : `about ${number(told.output_tokens)} tokens expected`,
    told.kind ? `cluster: ${told.kind.name}` : null,
    told.far ? `far from anything known (${number(told.neighbours, 1)} near training requests)` : null,
  ].filter(Boolean);
}

function table(told, colour) {
  const rows = [...told.arms].sort((a, b) => b.probability - a.probability || time(a) - time(b));
  const longest = Math.max(...told.arms.map(time).filter(Number.isFinite), 0);
  const heads = [["Engine", ""], ["Chance", "right"], ["Expected time", ""], ["Accept.", "right"], ["There", "right"]];
  return h("table", { class: "explained" },
    h("thead", {}, h("tr", {}, heads.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))),
    h("tbody", {}, rows.map((row) => arm(row, told, longest, colour))));
}

const time = (row) => row.predicted?.seconds ?? Infinity;

function arm(row, told, longest, colour) {
  const { predicted } = row;
  return h("tr", { class: row.arm === told.arm ? "chosen" : row.eligible ? null : "out" },
    h("th", { scope: "row" }, armName(row.arm, colour)),
    h("td", { class: "right" }, percent(row.probability)),
    h("td", { title: predicted ? parts(predicted) : null },
      predicted ? times(predicted, longest, colour(row.arm)) : h("span", { class: "hint" }, row.eligible ? "not predicted" : ""),
      row.eligible ? null : h("span", { class: "pill", "data-tone": "bad" }, row.unable ?? whyNot(row.ineligible_reason)),
      predicted && row.costs === "costs of another machine" ? h("span", { class: "hint" }, row.costs) : null),
    h("td", { class: "right" }, predicted ? number(predicted.tau, 2) : NOTHING),
    h("td", { class: "right", title: "requests in flight at the engine" }, number(row.total_in_flight)));
}

function times(predicted, longest, colour) {
  const width = (s) => ({ width: `${100 * Math.max(s, 0) / longest}%` });
  return h("span", { class: "share" },
    h("span", { class: "bar", "aria-hidden": "true" },
      h("i", { class: `${colour} first`, style: width(predicted.ttft_s) }), h("i", { class: colour, style: width(predicted.decode_s) })),
    h("span", { class: "figure" }, seconds(predicted.seconds)),
    predicted.low_s == null ? null : h("span", { class: "hint" }, `${seconds(predicted.low_s)} to ${seconds(predicted.high_s)}`));
}

function parts(one) {
  const more = [
    one.low_s == null ? null : `probably ${seconds(one.low_s)} to ${seconds(one.high_s)}`,
    `first token ${seconds(one.ttft_s)}`, `decoding ${seconds(one.decode_s)}`, `counts as ${seconds(one.weighted_s)}`,
    `step ${seconds(one.step_s)}`, `slowed down ${number(one.slowdown, 2)}x by load`,
  ];
  if (one.wait_s > 0) more.push(`wait ${seconds(one.wait_s)}`);
  if (one.cached_prefix_s > 0) more.push(`cached prefix saves ${seconds(one.cached_prefix_s)}`);
  if (one.residual) more.push(`corrected by ${percent(Math.expm1(one.residual), true)}`);
  return more.filter(Boolean).join(", ");
}
