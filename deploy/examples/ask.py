"""A client of the router, by URL: complete and streamed answers, a priority, a deadline, and errors.

    python -m draftpick.deploy.examples.ask "What is 12 * 7?" --url http://127.0.0.1:8000
    python -m draftpick.deploy.examples.ask "Tell me a story." --stream --priority low --timeout 20
    python -m draftpick.deploy.examples.ask "And then?" --session story-1

Any OpenAI client does the same with its `base_url` and extra headers; this one shows the HTTP protocol. If the router
requires a key, set OPENAI_API_KEY. Exit codes: 0 answered, 1 rejected, or broken in the middle.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

_SLACK_S = 5.0
_CHAT = "/v1/chat/completions"


class RequestRejected(Exception):
    """An OpenAI error of the router or of an engine. `retry_after_s`: when to retry; None: never."""

    def __init__(self, status: int, error: dict[str, Any], retry_after_s: float | None = None) -> None:
        super().__init__(f"{status} {error.get('type')}: {error.get('message')}")
        self.status, self.code, self.retry_after_s = status, error.get("code"), retry_after_s


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of an answer, from its headers. `session`: what the turn of a session found, or empty."""

    arm: str
    policy: str
    request_id: str
    session: str = ""

    @classmethod
    def from_answer(cls, answer: httpx.Response) -> "Source":
        """Read the headers of an answer."""
        names = ("arm", "policy", "request-id", "session")
        return cls(*(answer.headers.get(f"x-draftpick-{name}", "") for name in names))


class Client:
    """A client of one router. `timeout_s`: for the first byte, enforced by the router, and for each further one.

    `priority`: low, normal or high; under load `low` waits longest and is shed first. `session`: names the conversation
    of which all its requests are turns.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        priority: str = "normal",
        timeout_s: float = 60.0,
        session: str | None = None,
    ) -> None:
        headers = {"x-draftpick-priority": priority, "x-draftpick-timeout": str(timeout_s)}
        if session:
            headers["x-draftpick-session"] = session
        if key:
            headers["authorization"] = f"Bearer {key}"
        # Longer than the router's: its 504 says more than a closed connection.
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s + _SLACK_S)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def model(self) -> str:
        """The name of the target."""
        return str(_checked(self._http.get("/v1/models")).json()["data"][0]["id"])

    def ask(self, body: dict[str, Any], tries: int = 3) -> tuple[Source, str]:
        """Get a complete answer; retries as the router demands, a few times. Raises `RequestRejected`."""
        try:
            answer = _checked(self._http.post(_CHAT, json=body))
        except RequestRejected as error:
            if error.retry_after_s is None or tries == 1:
                raise
            time.sleep(error.retry_after_s)
            return self.ask(body, tries - 1)
        return Source.from_answer(answer), answer.json()["choices"][0]["message"]["content"]

    @contextmanager
    def stream(self, body: dict[str, Any]) -> Iterator[tuple[Source, Iterator[str]]]:
        """Stream an answer. Leaving the block early stops the engine. Raises `RequestRejected`, also in the middle."""
        with self._http.stream("POST", _CHAT, json={**body, "stream": True}) as answer:
            if answer.is_error:
                answer.read()
            yield Source.from_answer(_checked(answer)), _pieces(answer.iter_text())


def _checked(answer: httpx.Response) -> httpx.Response:
    """Return the answer. Raises `RequestRejected` for an error."""
    if answer.is_success:
        return answer
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):  # from a proxy in between
        error = {"type": "no_openai_error", "message": answer.text[:200]}
    wait = answer.headers.get("retry-after")
    raise RequestRejected(answer.status_code, error, None if wait is None else float(wait))


def _pieces(parts: Iterator[str]) -> Iterator[str]:
    """The text in server-sent events. Raises `RequestRejected` for an error event: the stream broke."""
    for line in _lines(parts):
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise RequestRejected(200, event["error"])
        yield from (choice["delta"].get("content") or "" for choice in event["choices"])


def _lines(parts: Iterator[str]) -> Iterator[str]:
    """Lines that end with a newline. httpx's own `iter_lines` would also split texts at U+2028."""
    rest = ""
    for part in parts:
        *whole, rest = (rest + part).split("\n")
        yield from whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--priority", choices=("low", "normal", "high"), default="normal")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to the first byte")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--session", help="name of the conversation of which this is a turn")
    args = parser.parse_args()
    client = Client(args.url, os.environ.get("OPENAI_API_KEY"), args.priority, args.timeout, args.session)
    try:
        body = {"model": client.model(), "messages": [{"role": "user", "content": args.prompt}]}
        body["max_tokens"] = args.max_tokens
        if args.stream:
            with client.stream(body) as (source, pieces):
                for piece in pieces:
                    print(piece, end="", flush=True)
                print()
        else:
            source, text = client.ask(body)
            print(text)
    except (RequestRejected, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        client.close()
    turn = f", session {source.session}" if source.session else ""
    print(f"by {source.arm}, chosen by {source.policy}, request {source.request_id}{turn}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
