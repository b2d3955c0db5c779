// Requests to the router, with the key of this tab, and their errors.

const KEY = "draftpick.key";
const PATIENCE_MS = 10_000;

/** A failed request. `status` is 0 without an answer. */
export class Refused extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** The JSON of a page. Throws `Refused`. */
export async function ask(path, body, signal = AbortSignal.timeout(PATIENCE_MS)) {
  const answer = await send(path, body, signal);
  try {
    return await answer.json();
  } catch {
    throw new Refused("The answer is not JSON: is this the router's address?", answer.status);
  }
}

/** The answer to a request, its body unread. Throws `Refused`. */
export async function send(path, body, signal) {
  let answer;
  try {
    answer = await fetch(new URL(`..${path}`, document.baseURI), request(body, signal));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const late = error.name === "TimeoutError";
    throw new Refused(late ? "The router did not answer in time" : "The router is not reachable", 0);
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

function request(body, signal) {
  const headers = key.get() ? { authorization: `Bearer ${key.get()}` } : {};
  if (body === undefined) return { headers, signal, cache: "no-store" };
  return { method: "POST", headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(body), signal };
}

const WORDS = {
  401: "The router requires a key",
  403: "This key lacks the scope admin",
  429: "This key has exceeded its limit per minute",
};

async function refusal(answer) {
  let told = {};
  try {
    told = (await answer.json()).error ?? {};
  } catch {
    // Not the router's own error, such as a proxy's.
  }
  const words = WORDS[answer.status] ?? told.message ?? `The router answered ${answer.status}`;
  return new Refused(answer.status === 401 && key.get() ? `${words}: ${told.message}` : words, answer.status, told.code);
}

/** The events of a stream, each parsed from its `data:` line. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
