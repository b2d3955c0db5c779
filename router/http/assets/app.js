// The page: polls the router every two seconds while visible, and shows its state.

import { ask, key } from "./api.js";
import { show } from "./dom.js";
import { about, colours, engines, kinds, totals } from "./fleet.js";
import { decisions, events } from "./log.js";
import { meaning, policies } from "./policies.js";
import { ago } from "./text.js";
import { prepare } from "./try.js";

const EVERY_MS = 2000;
const LONGEST_MS = 30_000;
const THEMES = ["", "light", "dark"];
const SECTIONS = ["engines", "kinds", "decisions", "try", "policies", "events"];
const $ = (id) => document.getElementById(id);

let state = null;
let heard = 0;
let failures = 0;
let paused = false;
let timer = null;
let busy = false;

// --- polling ---

async function poll() {
  clearTimeout(timer);
  if (busy || paused || document.hidden) return;
  busy = true;
  try {
    take(await ask("/v1/route/state"));
  } catch (error) {
    failed(error);
  }
  busy = false;
  clearTimeout(timer);
  timer = setTimeout(poll, Math.min(EVERY_MS * 2 ** failures, LONGEST_MS));
}

function take(fresh) {
  const before = state?.router;
  state = fresh;
  heard = Date.now();
  failures = 0;
  draw();
  if (paused) return;
  const several = before && before !== fresh.router ? " · several routers answer at this address, each with its own figures" : "";
  say(fresh.ready ? `Ready${several}` : "No engine is available", fresh.ready ? "good" : "bad");
}

function failed(error) {
  failures += 1;
  const since = heard ? `, last update ${ago(heard)}` : "";
  say(`${error.message}${since}.`, error.status === 401 || error.status === 403 ? "warn" : "bad");
  if (error.status === 401 || error.status === 403) {
    locked(error.message);
    paused = true;
    pressed();
  }
}

function say(text, tone) {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").dataset.tone = tone;
}

function draw() {
  const colour = colours(state);
  $("about").textContent = about(state);
  document.title = `Draftpick · ${state.model}`;
  show($("totals"), totals(state));
  show($("engines-body"), engines(state, colour));
  show($("kinds-body"), kinds(state, colour));
  show($("decisions-body"), decisions(state, colour));
  show($("policies-body"), policies(state));
  show($("events-body"), events(state));
}

// --- the key ---

/** Hide everything from unauthorised users. */
function locked(why) {
  state = null;
  for (const id of ["totals", ...SECTIONS.filter((name) => name !== "try").map((name) => `${name}-body`)]) show($(id));
  $("about").textContent = "";
  askForKey(why);
}

function askForKey(why) {
  const dialog = $("key-dialog");
  if (dialog.open) return;
  $("key-why").textContent = `${why ? `${why}. ` : ""}A key with the scope admin. It is kept in this tab until the tab is closed.`;
  $("key-value").value = "";
  dialog.returnValue = "cancel";
  dialog.showModal();
}

function keyGiven() {
  const { returnValue } = $("key-dialog");
  const given = $("key-value").value.trim();
  $("key-value").value = "";
  if (returnValue === "forget") key.set("");
  else if (returnValue === "use" && given) key.set(given);
  else return;
  goOn();
}

function goOn() {
  failures = 0;
  paused = false;
  pressed();
  poll();
}

// --- policies ---

let wanted = null;

function askToChange(button) {
  const { action, id } = button.dataset;
  wanted = { action, id };
  $("confirm-title").textContent = `${button.textContent}?`;
  $("confirm-what").textContent = meaning(action, id, state.registry);
  $("confirm-share-label").hidden = action !== "canary";
  $("confirm-reason").value = "";
  $("confirm-dialog").returnValue = "cancel";
  $("confirm-dialog").showModal();
}

async function change() {
  if ($("confirm-dialog").returnValue !== "do" || !wanted) return;
  const { action, id } = wanted;
  const body = { action, reason: $("confirm-reason").value };
  if (id) body.id = id;
  if (action === "canary") body.share = Number($("confirm-share").value) / 100;
  try {
    await ask("/v1/route/policies", body);
    say(`Done: ${action} ${id ?? ""}`, "good");
    poll();
  } catch (error) {
    say(`Not done: ${error.message}`, "bad");
  }
}

// --- controls ---

function pressed() {
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Resume" : "Pause";
}

function pause() {
  if (paused) return goOn();
  paused = true;
  pressed();
  say(heard ? `Paused, last update ${ago(heard)}` : "Paused", "dim");
}

function nextTheme() {
  const now = document.documentElement.dataset.theme ?? "";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  localStorage.setItem("draftpick.theme", theme);
  $("theme-name").textContent = theme || "auto";
}

function goTo(section) {
  const found = $(section);
  found.scrollIntoView({ block: "start" });
  found.focus({ preventScroll: true });
}

const SHORTCUTS = {
  "/": () => $("prompt").focus(),
  "?": () => $("help-dialog").showModal(),
  k: () => askForKey(""),
  p: pause,
  t: nextTheme,
  ...Object.fromEntries(SECTIONS.map((name, i) => [String(i + 1), () => goTo(name)])),
};

function shortcut(event) {
  const typing = event.target.closest("input, textarea, select, dialog[open]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !SHORTCUTS[event.key]) return;
  event.preventDefault();
  SHORTCUTS[event.key]();
}

$("pause").addEventListener("click", pause);
$("theme").addEventListener("click", nextTheme);
$("key").addEventListener("click", () => askForKey(""));
$("help").addEventListener("click", () => $("help-dialog").showModal());
$("key-dialog").addEventListener("close", keyGiven);
$("confirm-dialog").addEventListener("close", change);
$("policies-body").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button && !button.disabled) askToChange(button);
});
document.addEventListener("keydown", shortcut);
document.addEventListener("visibilitychange", poll);
prepare(() => state, (error) => askForKey(error.message));
setTheme(document.documentElement.dataset.theme ?? "");
poll();
