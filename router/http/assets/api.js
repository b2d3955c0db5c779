// What is asked of the router, with the key of this tab; and what went wrong, in words.

const KEY = "draftpick.key";
const PATIENCE_MS = 10_000;

/** What the router did not do, in words. `status` is 0 where it did not answer. */
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
    throw new Refused("What the router answered is no JSON: is this its address?", answer.status);
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
    throw new Refused(late ? "The router takes too long to answer" : "The router cannot be reached", 0);
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
  401: "The router asks for a key",
  403: "This key may not look: the scope admin is needed",
  429: "This key has used up its minute",
};

async function refusal(answer) {
  let told = {};
  try {
    told = (await answer.json()).error ?? {};
  } catch {
    // No error of the router: something between here and there answered.
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
