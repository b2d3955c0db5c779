"""Answers through the router are the engine's own, but for the usage chunk that only the router asked for."""

import asyncio
import re
import socket
import time
import tracemalloc
from typing import Any

import httpx
import orjson
import pytest

from draftpick.engines.mock.app import MockSpec
from tests.fleet import CHAT, COMPLETIONS, FAST, RESPONSES, SLOW, Routed, StartRouter, asked, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMES = re.compile(rb'"created(_at)?":\d+|"metrics":\{[^}]*\}')
SPEC = FAST.model_copy(update={"num_speculative_tokens": 3, "acceptance_length": 2.0, "output_tokens": 30})
USAGE = {"include_usage": True}
ID = {"x-request-id": "r"}


async def both(app: Routed, api: str, **fields: Any) -> tuple[bytes, bytes]:
    """The answers to the same request through the router and from the engine, without what clocks put into them."""
    body = asked(api, **fields)
    through = await app.client.post(api, json=body, headers=ID)
    async with httpx.AsyncClient(base_url=app.engines["a"].url) as direct:
        straight = await direct.post(api, json=body, headers=ID)
    assert through.status_code == straight.status_code == 200
    assert through.headers["content-type"] == straight.headers["content-type"]
    return TIMES.sub(b"", through.content), TIMES.sub(b"", straight.content)


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS, RESPONSES])
async def test_a_whole_answer_is_the_engines_own(router_app: StartRouter, api: str) -> None:
    through, straight = await both(await router_app({"a": FAST}), api)
    assert through == straight


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS, RESPONSES])
async def test_a_stream_is_the_engines_own(router_app: StartRouter, api: str) -> None:
    through, straight = await both(await router_app({"a": SPEC}), api, stream=True, unknown={"a": 1})
    assert through == straight
    if api != RESPONSES:
        assert b'"usage"' not in through
        assert through.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS])
async def test_who_asks_for_usage_gets_it(router_app: StartRouter, api: str) -> None:
    through, straight = await both(await router_app({"a": FAST}), api, stream=True, stream_options=USAGE)
    assert through == straight
    assert through.count(b'"usage":{"prompt_tokens":2,"total_tokens":10,"completion_tokens":8}') == 1


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"other": 1}])
async def test_who_asks_for_something_else_gets_no_usage(router_app: StartRouter, options: Any) -> None:
    through, straight = await both(await router_app({"a": FAST}), CHAT, stream=True, stream_options=options)
    assert through == straight
    assert b"usage" not in through


@pytest.mark.parametrize("fields", [{"n": 3}, {"logprobs": True}, {"stop": "the"}, {"max_tokens": 1}])
async def test_streams_of_every_kind_are_the_engines_own(router_app: StartRouter, fields: dict[str, Any]) -> None:
    through, straight = await both(await router_app({"a": FAST}), CHAT, stream=True, **fields)
    assert through == straight


async def test_a_tool_call_is_the_engines_own(router_app: StartRouter) -> None:
    schema = {"type": "object", "properties": {"usage": {"type": "string"}, "choices": {"type": "array"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    app = await router_app({"a": FAST})
    for stream in (True, False):
        through, straight = await both(app, CHAT, tools=tools, tool_choice="required", stream=stream)
        assert through == straight
        assert b"tool_calls" in through


async def test_tokens_go_on_while_the_engine_works(router_app: StartRouter) -> None:
    app = await router_app({"a": SLOW})
    async with app.client.stream("POST", CHAT, json=asked(stream=True)) as answer:
        chunks = answer.aiter_raw()
        for _ in range(3):
            assert await anext(chunks)
            assert app.engines["a"].engine.state()["running"] == 1


async def test_a_slow_reader_slows_the_engine_and_fills_no_memory(router_app: StartRouter) -> None:
    app = await router_app({"a": MockSpec(step_s=0, prefill_s=0, output_tokens=60_000)})
    host, port = app.server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
    body = orjson.dumps(asked(stream=True))
    writer.write(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body))
    await reader.readexactly(100)
    before = tracemalloc_kb(start=True)
    await asyncio.sleep(1.5)
    state = app.engines["a"].engine.state()
    assert (state["running"], state["finished"]) == (1, 0)
    assert tracemalloc_kb() - before < 4096
    writer.close()
    await until(lambda: app.engines["a"].aborted == 1)


async def test_neither_a_slow_upload_nor_a_slow_reader_is_the_engines_time(router_app: StartRouter) -> None:
    app = await router_app({"a": MockSpec(step_s=0, prefill_s=0)})
    await read_slowly(app, upload_s=0.0, pause_s=0.0)
    whole_s, paused_s = await read_slowly(app, upload_s=1.5, pause_s=0.05)
    fast, slow = (one.outcome for one in await app.records(2))
    assert None not in (fast.tpot_s, slow.tpot_s, slow.ttft_s, slow.output_tokens)
    assert slow.ttft_s < 1.5  # type: ignore[operator]
    assert paused_s > 1.0
    engine_s = slow.ttft_s + slow.tpot_s * (slow.output_tokens - 1)  # type: ignore[operator]
    assert engine_s < whole_s - paused_s / 2
    assert slow.tpot_s > fast.tpot_s / 5  # type: ignore[operator]


async def read_slowly(app: Routed, upload_s: float, pause_s: float) -> tuple[float, float]:
    """Seconds from a request, which takes so long to come, to the end of its stream; seconds that the reader paused."""
    body = orjson.dumps(asked(stream=True, max_tokens=8_000, ignore_eos=True))
    reader, writer = await connect(app, len(body))
    writer.write(body[:20])
    await asyncio.sleep(upload_s)
    writer.write(body[20:])
    began, pauses, end = time.perf_counter(), 0, b""
    while b"[DONE]" not in end:  # a reader's pace
        await asyncio.sleep(pause_s)
        pauses += 1
        end = end[-8:] + await reader.read(65_536)
    writer.close()
    return time.perf_counter() - began, pauses * pause_s


async def connect(app: Routed, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with the head of a request; it keeps little unread."""
    host, port = app.server.url.removeprefix("http://").split(":")
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.setblocking(False)
    await asyncio.get_running_loop().sock_connect(opened, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=opened, limit=65_536)
    writer.write(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), length))
    return reader, writer


def tracemalloc_kb(*, start: bool = False) -> float:
    """KB of Python memory that were taken since the start."""
    if start:
        tracemalloc.start()
        return tracemalloc.get_traced_memory()[0] / 1024
    taken = tracemalloc.get_traced_memory()[0] / 1024
    tracemalloc.stop()
    return taken


async def test_streams_at_the_same_time_do_not_mix(router_app: StartRouter) -> None:
    app = await router_app(
        {"a": MockSpec(step_s=0.001, output_tokens=20), "b": MockSpec(step_s=0.001, output_tokens=20)}
    )
    answers = await asyncio.gather(*(app.post(text=f"{i % 10}", stream=True) for i in range(40)))
    texts: dict[int, set[str]] = {}
    for i, answer in enumerate(answers):
        events = [orjson.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
        assert len({event["id"] for event in events}) == 1
        texts.setdefault(i % 10, set()).add("".join(event["choices"][0]["delta"]["content"] for event in events))
    assert all(len(found) == 1 for found in texts.values())
    assert len(set.union(*texts.values())) == 10
