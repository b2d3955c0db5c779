"""An engine that costs next to nothing: canned OpenAI answers from one raw asyncio protocol, in vLLM's wire form.

`python -m tests.bench.overhead.engine [--chunk-s 0.01]` prints its address and serves until it is ended. Each streamed
chunk carries the clock of its sending (CLOCK_MONOTONIC, one for all processes of a machine), so that a client knows how
long it was on its way.
"""

import argparse
import asyncio
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
_METRICS = {
    "time_to_first_token_ms": 0.01,
    "speculative_decoding": {
        "mean_acceptance_length": 2.0,
        "draft_acceptance_rate": 0.5,
        "num_spec_steps": 8,
        "num_accepted_draft_tokens": 8,
    },
}
_PAGES = {
    "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "mock"}]},
    "/get_server_info": {"model_path": MODEL, "tokenizer_path": MODEL, "version": "0"},
    "/get_model_info": {"model_path": MODEL, "is_generation": True},
    "/server_info": {"model_path": MODEL},
    "/model_info": {"model_path": MODEL, "is_generation": True},
    "/version": {"version": "0.29.0"},
}


def whole(tokens: int) -> bytes:
    """A whole answer of so many words."""
    message = {"role": "assistant", "content": "word " * tokens, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
    fields = {**_CHUNK, "object": "chat.completion", "choices": [choice], "usage": usage, "metrics": _METRICS}
    return _page(fields)


def _page(fields: dict[str, Any]) -> bytes:
    body = orjson.dumps(fields)
    return _HEAD % (b"application/json", len(body), body)


def _event(choices: list[Any], **more: Any) -> bytes:
    data = b"data: %b\n\n" % orjson.dumps({**_CHUNK, "choices": choices, **more})
    return b"%x\r\n%b\r\n" % (len(data), data)


def _delta(**delta: Any) -> bytes:
    return _event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])


class Engine(asyncio.Protocol):
    """One connection. `chunk_s`: pause before each streamed chunk."""

    def __init__(self, chunk_s: float) -> None:
        self._chunk_s = chunk_s
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
            self._transport.write(whole(tokens))
            return
        usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        self._transport.write(_STREAM + _delta(role="assistant", content=""))
        self._step(tokens, tokens, usage)

    def _step(self, left: int, tokens: int, usage: bool) -> None:
        """One chunk now, the next one after a pause."""
        if self._transport is None:
            return
        if left:
            self._transport.write(_delta(content=f"{time.monotonic_ns()} "))
            loop = asyncio.get_running_loop()
            if self._chunk_s:
                loop.call_later(self._chunk_s, self._step, left - 1, tokens, usage)
            else:
                loop.call_soon(self._step, left - 1, tokens, usage)
            return
        last = _event([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}])
        if usage:
            counts = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
            last += _event([], usage=counts, metrics=_METRICS)
        done = b"data: [DONE]\n\n"
        self._transport.write(last + b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done))


async def serve(chunk_s: float, port: int) -> None:
    """Serve until cancelled; prints the address."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    server = await asyncio.get_running_loop().create_server(lambda: Engine(chunk_s), sock=listening, backlog=4096)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunk-s", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    uvloop.run(serve(args.chunk_s, args.port))


if __name__ == "__main__":
    main()
