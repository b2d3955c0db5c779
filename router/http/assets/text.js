// Formats numbers and names for display; an unknown value is a dash.

export const NOTHING = "–";

/** Seconds: 31 ms, 0.31 s, 12 s, 3 min. */
export function seconds(value) {
  if (value == null || !Number.isFinite(value)) return NOTHING;
  const size = Math.abs(value);
  if (size < 0.00995 && size > 0) return `${(1000 * value).toPrecision(2)} ms`;
  if (size < 0.0995) return `${Math.round(1000 * value)} ms`;
  if (size < 9.995) return `${value.toFixed(2)} s`;
  if (size < 99.5) return `${value.toFixed(0)} s`;
  return size < 5970 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
}

/** A share: 0.4 %, 22 %. With `sign`: +22 %, −3 %. */
export function percent(value, sign = false) {
  if (value == null || !Number.isFinite(value)) return NOTHING;
  const size = Math.abs(100 * value);
  const digits = size >= 9.95 || size < 0.05 ? 0 : 1;
  const text = `${size.toFixed(digits)} %`;
  if (Number(size.toFixed(digits)) === 0) return text;
  if (value < 0) return `−${text}`;
  return sign ? `+${text}` : text;
}

/** A number with `digits` decimals. */
export function number(value, digits = 0) {
  if (value == null || !Number.isFinite(value)) return NOTHING;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** "1 request", "2 requests". */
export function counted(n, what) {
  return `${number(n)} ${what}${n === 1 ? "" : "s"}`;
}

/** Time of day of seconds since the epoch. */
export function clock(time) {
  return new Date(1000 * time).toLocaleTimeString([], { hourCycle: "h23" });
}

/** Time passed since `then`, in milliseconds since the epoch. */
export function ago(then, now = Date.now()) {
  const passed = Math.max(0, (now - then) / 1000);
  if (passed < 1.5) return "now";
  if (passed < 90) return `${Math.round(passed)} s ago`;
  if (passed < 5400) return `${Math.round(passed / 60)} min ago`;
  return passed < 129600 ? `${Math.round(passed / 3600)} h ago` : `${Math.round(passed / 86400)} days ago`;
}

const INELIGIBLE_REASONS = {
  no_replica: "no replica",
  gone: "unreachable",
  breaker_open: "breaker open",
  full: "full",
  quarantined: "quarantined",
  stale: "load unknown",
};

/** Why an engine is not eligible, in a word or two; a health signal outside the table by its name. */
export function whyNot(reason) {
  return INELIGIBLE_REASONS[reason] ?? reason?.replaceAll("_", " ") ?? "not eligible";
}

/** The status of an engine: a word, and its tone (good, warn, bad). */
export function standing(now) {
  if (now.ineligible_reason) return [whyNot(now.ineligible_reason), now.ineligible_reason === "full" ? "warn" : "bad"];
  if (now.quarantine_state !== "ok") return [now.quarantine_state, "warn"];
  const well = now.breakers.closed ?? 0;
  if (well < now.replicas) return [`${well} of ${now.replicas} up`, "warn"];
  if (now.costs === "costs of another machine") return [now.costs, "warn"];
  return ["ok", "good"];
}

/** The reason of a decision, in words. */
export function reason(row) {
  if (row.tried_out) return `exploration (${percent(row.propensity)})`;
  return row.reason;
}
