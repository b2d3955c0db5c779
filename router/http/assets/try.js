// The user's own prompt: explained, or sent and answered.

import { ask, events, send } from "./api.js";
import { show } from "./dom.js";
import { explained } from "./explained.js";
import { colours } from "./fleet.js";
import { counted, number, seconds } from "./text.js";

const $ = (id) => document.getElementById(id);
let asking = null;

/** Set up the form. `state` returns the last state, or null; `refused` is called if a key is missing. */
export function prepare(state, refused) {
  const run = (work) => () => attempt(work, state, refused);
  $("try-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run(explain)();
  });
  $("ask").addEventListener("click", () => {
    if (asking) asking.abort();
    else if ($("try-form").reportValidity()) run(answer)();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("try-form").requestSubmit();
  });
}

async function attempt(work, state, refused) {
  if (!state()) return say("The router has not answered yet.", "warn");
  try {
    await work(state());
  } catch (error) {
    if (error.name === "AbortError") return say("Stopped.", "warn");
    say(error.message, "bad");
    if (error.status === 401) refused(error);
  }
}

function say(text, tone = "dim") {
  if ($("try-status").textContent !== text) $("try-status").textContent = text;
  $("try-status").dataset.tone = tone;
}

function body(state, more) {
  return {
    model: state.model,
    messages: [{ role: "user", content: $("prompt").value }],
    max_tokens: Number($("max-tokens").value),
    temperature: Number($("temperature").value),
    ...more,
  };
}

async function explain(state) {
  say("Explaining …");
  const told = await ask("/v1/route/explain", body(state));
  show($("explained"), explained(told, colours(state)));
  say("Nothing was sent to an engine.");
}

async function answer(state) {
  asking = new AbortController();
  $("ask").textContent = "Stop";
  try {
    await streamed(state, asking.signal);
  } finally {
    asking = null;
    $("ask").textContent = "Ask";
  }
}

async function streamed(state, signal) {
  const began = performance.now();
  const passed = () => (performance.now() - began) / 1000;
  const more = { stream: true, stream_options: { include_usage: true } };
  $("answer").hidden = false;
  $("answer").textContent = "";
  say("Waiting for the first token …");
  const reply = await send("/v1/chat/completions", body(state, more), signal);
  const arm = reply.headers.get("x-draftpick-arm");
  let first = null;
  let tokens = null;
  for await (const event of events(reply)) {
    if (event.error) throw new Error(`The stream broke: ${event.error.message}`);
    const text = event.choices?.[0]?.delta?.content;
    if (text) {
      first ??= passed();
      $("answer").append(text);
      say(`${arm} answers …`);
    }
    tokens = event.usage?.completion_tokens ?? tokens;
  }
  say(summary(arm, tokens, first, passed()), "good");
}

function summary(arm, tokens, first, whole) {
  if (first == null) return `${arm} returned no tokens in ${seconds(whole)}.`;
  const speed = tokens > 1 ? `, ${number((tokens - 1) / Math.max(whole - first, 0.001))} tokens/s` : "";
  return `${arm}: ${tokens == null ? "done" : counted(tokens, "token")} in ${seconds(whole)}, the first after ${seconds(first)}${speed}.`;
}
