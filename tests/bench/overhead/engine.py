"""An engine that costs next to nothing: canned OpenAI answers from one raw asyncio protocol, in vLLM's wire form.

`python -m tests.bench.overhead.engine` prints its address and serves until it is ended. A prompt that begins with
`[pace 10]` gets its chunks 10 ms apart. Each streamed chunk carries the clock of its sending (CLOCK_MONOTONIC, one for
all processes of a machine), so that a client knows how long it was on its way.
"""

import argparse
import asyncio
import re
import socket
import time
from typing import Any

import httptools
import orjson
import uvloop

MODEL = "mock-model"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
_PACE = re.compile(rb'"\[pace (\d+)\]')
_PAGES = {
    "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "mock"}]},
    "/get_server_info": {"model_path": MODEL, "tokenizer_path": MODEL, "version": "0"},
    "/get_model_info": {"model_path": MODEL, "is_generation": True},
    "/server_info": {"model_path": MODEL},
    "/model_info": {"model_path": MODEL, "is_generation": True},
    "/version": {"version": "0.29.0"},
}


def metrics(tokens: int) -> dict[str, Any]:
    """What vLLM says of a request whose drafts gave one more token a step."""
    counts = {"num_spec_steps": tokens // 2, "num_accepted_draft_tokens": tokens // 2}
    acceptance = {"mean_acceptance_length": 2.0, "draft_acceptance_rate": 0.5, **counts}
    return {"time_to_first_token_ms": 0.01, "speculative_decoding": acceptance}


def whole(tokens: int) -> dict[str, Any]:
    """A whole answer of so many words."""
    message = {"role": "assistant", "content": "word " * tokens, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
    fields = {**_CHUNK, "object": "chat.completion", "choices": [choice], "usage": usage}
    return {**fields, "metrics": metrics(tokens)}


def _page(fields: dict[str, Any]) -> bytes:
    body = orjson.dumps(fields)
    return _HEAD % (b"application/json", len(body), body)


def event(choices: list[Any], **more: Any) -> bytes:
    """One server-sent event with a chunk."""
    return b"data: %b\n\n" % orjson.dumps({**_CHUNK, "choices": choices, **more})


def delta(**fields: Any) -> bytes:
    """The event of a chunk with this delta."""
    return event([{"index": 0, "delta": fields, "logprobs": None, "finish_reason": None}])


def content() -> bytes:
    """The event of a chunk whose content is the clock."""
    return delta(content=f"{time.monotonic_ns()} ")


def end(tokens: int, usage: bool) -> list[bytes]:
    """The last events of a stream."""
    last = [event([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}])]
    if usage:
        counts = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
        last.append(event([], usage=counts, metrics=metrics(tokens)))
    return [*last, b"data: [DONE]\n\n"]


def pace_s(body: bytes) -> float:
    """The pause between chunks that a prompt asks for."""
    found = _PACE.search(body)
    return int(found[1]) / 1000 if found else 0.0


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._url, self._body = b"", b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def on_message_begin(self) -> None:
        self._url, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path = self._url.split(b"?")[0].decode()
        if not path.startswith(("/v1/chat", "/v1/completions")):
            self._transport.write(_page(_PAGES.get(path, {"status": "ok"})))
            return
        asked = orjson.loads(self._body)
        tokens = asked.get("max_tokens") or asked.get("max_completion_tokens") or 16
        if not asked.get("stream"):
            self._transport.write(_page(whole(tokens)))
            return
        usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        self._transport.write(_STREAM + _chunk(delta(role="assistant", content="")))
        self._step(tokens, tokens, usage, pace_s(self._body))

    def _step(self, left: int, tokens: int, usage: bool, pause_s: float) -> None:
        """One chunk now, the next one after a pause."""
        if self._transport is None:
            return
        if not left:
            self._transport.write(b"".join(map(_chunk, end(tokens, usage))) + b"0\r\n\r\n")
            return
        self._transport.write(_chunk(content()))
        loop = asyncio.get_running_loop()
        if pause_s:
            loop.call_later(pause_s, self._step, left - 1, tokens, usage, pause_s)
        else:
            loop.call_soon(self._step, left - 1, tokens, usage, pause_s)


async def serve(port: int) -> None:
    """Serve until cancelled; prints the address."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    server = await asyncio.get_running_loop().create_server(Engine, sock=listening, backlog=4096)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    uvloop.run(serve(args.port))


if __name__ == "__main__":
    main()
