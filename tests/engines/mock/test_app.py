"""The mock engine: wire form, determinism, speed and acceptance, faults, counters, live changes."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import pydantic
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from draftpick.engines import load_report as load
from draftpick.engines.load_report import LoadReport
from draftpick.engines.mock.acceptance import acceptance_rate
from draftpick.engines.mock.app import MockSpec, mock_app
from draftpick.engines.mock.decoding import split
from draftpick.engines.profile import identity, profile
from draftpick.engines.profile.identity import EngineIdentity
from draftpick.engines.profile.profile import Profile

MODEL = "target"
FAST = MockSpec(step_s=0.0, prefill_s=0.0)
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
APIS = (CHAT, COMPLETIONS, RESPONSES)
SLOW_S = 5.0


def body(api: str = CHAT, text: str = "hello there", **fields: Any) -> dict[str, Any]:
    asked: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": text}]},
        COMPLETIONS: {"prompt": text},
    }
    return {"model": MODEL, **asked.get(api, {"input": text}), **fields}


@asynccontextmanager
async def inside(spec: MockSpec = FAST, engine: str = "mock") -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls the app without a socket."""
    transport = httpx.ASGITransport(mock_app(spec, model=MODEL, engine=engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://mock") as client:
        yield client


@asynccontextmanager
async def served(spec: MockSpec = FAST) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server on loopback."""
    app = mock_app(spec, model=MODEL)
    config = uvicorn.Config(app, port=0, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with inside() as opened:
        yield opened


async def state(client: httpx.AsyncClient) -> dict[str, Any]:
    return dict((await client.get("/mock/state")).json())


async def counts(client: httpx.AsyncClient) -> dict[str, int]:
    """The counters that are not zero."""
    names = ("running", "waiting", "started", "finished", "aborted", "failed")
    now = await state(client)
    return {name: now[name] for name in names if now[name]}


async def until(client: httpx.AsyncClient, **wanted: int) -> None:
    """Waits until these are all the counters that are not zero."""
    async with asyncio.timeout(3):
        while await counts(client) != wanted:  # noqa: ASYNC110  # the state is read over HTTP
            await asyncio.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream taken apart: the event names and the JSON of the data lines."""

    names: list[str]
    chunks: list[dict[str, Any]]
    done: bool

    @property
    def text(self) -> str:
        return "".join(choice["delta"].get("content") or "" for chunk in self.chunks for choice in chunk["choices"])


def read_stream(raw: bytes) -> Stream:
    assert raw.endswith(b"\n\n")
    names: list[str] = []
    data: list[str] = []
    for event in raw.decode().removesuffix("\n\n").split("\n\n"):
        *name, line = event.split("\n")
        names += [one.removeprefix("event: ") for one in name]
        data.append(line.removeprefix("data: "))
        assert line.startswith("data: ")
    done = data[-1] == "[DONE]"
    return Stream(names, [orjson.loads(one) for one in (data[:-1] if done else data)], done)


async def receive(client: httpx.AsyncClient, api: str, into: bytearray) -> None:
    """Reads a stream; `into` keeps what came before an error."""
    async with client.stream("POST", api, json=body(api, stream=True)) as got:
        assert got.status_code == 200
        async for part in got.aiter_raw():
            into += part


def text_of(api: str, answer: dict[str, Any]) -> str:
    if api == RESPONSES:
        return str(answer["output"][0]["content"][0]["text"])
    choice = answer["choices"][0]
    return str(choice["text"] if api == COMPLETIONS else choice["message"]["content"])


# --- wire form ---


async def test_whole_chat_answer(client: httpx.AsyncClient) -> None:
    got = await client.post(CHAT, json=body(), headers={"x-request-id": "r1"})
    answer = got.json()
    assert got.headers["content-type"] == "application/json"
    assert (answer["id"], answer["object"], answer["model"]) == ("chatcmpl-r1", "chat.completion", MODEL)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 32, "total_tokens": 34}
    assert len(split(text_of(CHAT, answer))) == 32


@pytest.mark.parametrize("include_usage", [True, False])
@pytest.mark.parametrize("api", [CHAT, COMPLETIONS])
async def test_stream_has_a_usage_chunk_only_when_asked(api: str, include_usage: bool) -> None:
    async with served() as client:
        asked = body(api, stream=True, stream_options={"include_usage": include_usage})
        got = await client.post(api, json=asked)
    stream = read_stream(got.content)
    assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.done
    assert stream.names == []
    with_usage = [chunk for chunk in stream.chunks if "usage" in chunk]
    assert [chunk["choices"] for chunk in with_usage] == ([[]] if include_usage else [])
    assert [("metrics" in chunk) for chunk in stream.chunks].count(True) == include_usage
    last = stream.chunks[-2 if include_usage else -1]
    assert last["choices"][0]["finish_reason"] == "stop"


async def test_chat_stream_carries_the_whole_answer(client: httpx.AsyncClient) -> None:
    whole = text_of(CHAT, (await client.post(CHAT, json=body())).json())
    stream = read_stream((await client.post(CHAT, json=body(stream=True))).content)
    assert stream.chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in stream.chunks} == {"chat.completion.chunk"}
    assert stream.text == whole


async def test_completion_stream_carries_the_whole_answer(client: httpx.AsyncClient) -> None:
    whole = text_of(COMPLETIONS, (await client.post(COMPLETIONS, json=body(COMPLETIONS))).json())
    stream = read_stream((await client.post(COMPLETIONS, json=body(COMPLETIONS, stream=True))).content)
    assert "".join(chunk["choices"][0]["text"] for chunk in stream.chunks) == whole


async def test_responses_stream(client: httpx.AsyncClient) -> None:
    whole = (await client.post(RESPONSES, json=body(RESPONSES))).json()
    stream = read_stream((await client.post(RESPONSES, json=body(RESPONSES, stream=True))).content)
    head, tail = stream.names[:4], stream.names[-4:]
    assert head[:2] == ["response.created", "response.in_progress"]
    assert head[2:] == ["response.output_item.added", "response.content_part.added"]
    assert set(stream.names[4:-4]) == {"response.output_text.delta"}
    assert tail[:2] == ["response.output_text.done", "response.content_part.done"]
    assert tail[2:] == ["response.output_item.done", "response.completed"]
    assert [chunk["type"] for chunk in stream.chunks] == stream.names
    assert [chunk["sequence_number"] for chunk in stream.chunks] == list(range(len(stream.chunks)))
    assert not stream.done
    assert "".join(chunk.get("delta", "") for chunk in stream.chunks) == text_of(RESPONSES, whole)
    usage = stream.chunks[-1]["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (2, 32)
    assert usage == whole["usage"]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_shortens_the_answer(client: httpx.AsyncClient, field: str) -> None:
    answer = (await client.post(CHAT, json=body() | {field: 5})).json()
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_limit_makes_a_response_incomplete(client: httpx.AsyncClient) -> None:
    answer = (await client.post(RESPONSES, json=body(RESPONSES, max_output_tokens=5))).json()
    assert (answer["status"], answer["usage"]["output_tokens"]) == ("incomplete", 5)


async def test_a_stop_string_ends_the_answer(client: httpx.AsyncClient) -> None:
    whole = text_of(CHAT, (await client.post(CHAT, json=body())).json())
    stop = split(whole)[6]
    answer = (await client.post(CHAT, json=body(stop=["nowhere", stop]))).json()
    assert text_of(CHAT, answer) == whole[: whole.index(stop)]
    assert answer["choices"][0]["stop_reason"] == stop


async def test_n_gives_different_answers_and_no_metrics(client: httpx.AsyncClient) -> None:
    answer = (await client.post(CHAT, json=body(n=3))).json()
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 3
    assert answer["usage"]["completion_tokens"] == 96
    assert answer["metrics"] is None
    stream = read_stream((await client.post(CHAT, json=body(n=3, stream=True))).content)
    texts = ["", "", ""]
    for choice in (choice for chunk in stream.chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice["delta"]["content"]
    assert texts == [choice["message"]["content"] for choice in answer["choices"]]


async def test_several_prompts_are_answered_as_if_alone(client: httpx.AsyncClient) -> None:
    both = (await client.post(COMPLETIONS, json=body(COMPLETIONS) | {"prompt": ["one", "two"]})).json()
    alone = (await client.post(COMPLETIONS, json=body(COMPLETIONS, "two"))).json()
    assert both["choices"][1]["text"] == alone["choices"][0]["text"]


async def test_logprobs(client: httpx.AsyncClient) -> None:
    chat = (await client.post(CHAT, json=body(logprobs=True))).json()
    content = chat["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == text_of(CHAT, chat)
    assert all(entry["logprob"] <= 0 for entry in content)
    stream = read_stream((await client.post(COMPLETIONS, json=body(COMPLETIONS, logprobs=1, stream=True))).content)
    parts = [chunk["choices"][0] for chunk in stream.chunks]
    text = "".join(part["text"] for part in parts)
    for part in parts:
        for token, at in zip(part["logprobs"]["tokens"], part["logprobs"]["text_offset"], strict=True):
            assert text[at:].startswith(token)


@pytest.mark.parametrize(
    ("tool_choice", "reason"), [({"type": "function", "function": {"name": "add"}}, "stop"), ("required", "tool_calls")]
)
async def test_a_forced_tool_is_called(client: httpx.AsyncClient, tool_choice: Any, reason: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "why": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}
    asked = body(tools=[tool], tool_choice=tool_choice)
    choice = (await client.post(CHAT, json=asked)).json()["choices"][0]
    function = choice["message"]["tool_calls"][0]["function"]
    assert choice["finish_reason"] == reason
    assert choice["message"]["content"] is None
    assert function["name"] == "add"
    assert isinstance(orjson.loads(function["arguments"])["a"], int)
    stream = read_stream((await client.post(CHAT, json=asked | {"stream": True})).content)
    calls = [chunk["choices"][0]["delta"]["tool_calls"][0]["function"] for chunk in stream.chunks[1:]]
    assert calls[0]["name"] == "add"
    assert "".join(call["arguments"] for call in calls) == function["arguments"]


async def test_json_formats(client: httpx.AsyncClient) -> None:
    kinds = {"s": {"enum": ["x"]}, "l": {"type": "array", "items": {"type": "boolean"}}, "z": {"type": "null"}}
    schema = {"type": "object", "properties": kinds}
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    answer = orjson.loads(text_of(CHAT, (await client.post(CHAT, json=body(response_format=form))).json()))
    assert answer["s"] == "x"
    assert answer["z"] is None
    assert isinstance(answer["l"][0], bool)
    free = await client.post(CHAT, json=body(response_format={"type": "json_object"}))
    assert isinstance(orjson.loads(text_of(CHAT, free.json())), dict)


async def test_small_pages(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).json()["data"][0]["id"] == MODEL
    assert (await client.get("/health")).status_code == 200
    assert "version" in (await client.get("/version")).json()
    tokens = (await client.post("/tokenize", json={"prompt": "one two three"})).json()
    assert tokens["count"] == len(tokens["tokens"]) == 3


async def test_the_last_request_is_kept_as_it_came(client: httpx.AsyncClient) -> None:
    raw = b'{ "model":"target", "unknown" : {"x":[1.50]},"messages":[{"role":"user","content":"\xc3\xa9"}] }'
    await client.post(CHAT, content=raw, headers={"x-mine": "yes"})
    now = await state(client)
    assert now["last_body"].encode() == raw
    assert now["last_headers"]["x-mine"] == "yes"


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"{", 400, "invalid_request"),
        (b'{"messages": 3}', 400, "invalid_request"),
        (b'{"prompt": "wrong api"}', 400, "invalid_request"),
        (b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}', 404, "model_not_found"),
    ],
)
async def test_bad_requests_get_error_bodies_and_do_not_count(
    client: httpx.AsyncClient, raw: bytes, status: int, code: str
) -> None:
    got = await client.post(CHAT, content=raw)
    assert got.status_code == status
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}
    assert got.json()["error"]["code"] == code
    assert await counts(client) == {}


# --- determinism, speed, acceptance ---


async def test_all_engines_give_the_same_text_and_their_own_acceptance() -> None:
    texts, histograms = set(), set()
    for engine, tau in (("a", 2.0), ("b", 2.0), ("c", 3.5)):
        spec = MockSpec(step_s=0, prefill_s=0, num_speculative_tokens=5, acceptance_length=tau, output_tokens=200)
        async with inside(spec, engine) as client:
            first, second = [(await client.post(CHAT, json=body())).json() for _ in range(2)]
        texts |= {text_of(CHAT, first), text_of(CHAT, second)}
        again = [one["metrics"]["speculative_decoding"]["acceptance_histogram"] for one in (first, second)]
        assert again[0] == again[1]
        histograms.add(tuple(again[0]))
    assert len(texts) == 1
    assert len(histograms) == 3


async def test_text_follows_prompt_and_seed() -> None:
    texts = set()
    for seed in (0, 1):
        async with inside(FAST.model_copy(update={"seed": seed})) as client:
            texts |= {text_of(CHAT, (await client.post(CHAT, json=body(text=text))).json()) for text in ("one", "two")}
    assert len(texts) == 4


async def test_tau_is_met_by_class() -> None:
    taus = {"math": 3.0, "code": 1.0}
    spec = MockSpec(
        step_s=0,
        prefill_s=0,
        num_speculative_tokens=4,
        acceptance_length=1.8,
        acceptance_by_class=taus,
        output_tokens=4000,
    )
    async with inside(spec) as client:
        for name, tau in {**taus, "chat": 1.8}.items():
            asked = body(text=f"please [class:{name}] go", stream=True, stream_options={"include_usage": True})
            stream = read_stream((await client.post(CHAT, json=asked)).content)
            num_steps = sum(bool(chunk["choices"]) for chunk in stream.chunks) - 2  # the role and the prefill
            assert 3999 / num_steps == pytest.approx(tau, rel=0.05)
            speculation = stream.chunks[-1]["metrics"]["speculative_decoding"]
            assert speculation["mean_acceptance_length"] == pytest.approx(3999 / num_steps, rel=0.01)
            assert speculation["num_spec_steps"] == num_steps
            assert speculation["num_draft_tokens"] == 4 * num_steps
            assert sum(speculation["acceptance_histogram"]) == num_steps


@pytest.mark.parametrize(("tau", "num_drafted"), [(1.0, 0), (1.0, 3), (2.5, 3), (4.0, 3), (1.9, 1)])
def test_acceptance_rate_solves_for_tau(tau: float, num_drafted: int) -> None:
    rate = acceptance_rate(tau, num_drafted)
    assert 1 + sum(rate**i for i in range(1, num_drafted + 1)) == pytest.approx(tau)


async def test_metrics_without_a_drafter_tell_the_times() -> None:
    async with inside(MockSpec(step_s=0.004, prefill_s=0.05, output_tokens=21)) as client:
        metrics = (await client.post(CHAT, json=body())).json()["metrics"]
    assert "speculative_decoding" not in metrics
    assert metrics["time_to_first_token_ms"] >= 50
    assert metrics["generation_time_ms"] >= 0.9 * 20 * 4
    assert metrics["mean_itl_ms"] == pytest.approx(metrics["generation_time_ms"] / 20)
    assert metrics["queue_time_ms"] < metrics["time_to_first_token_ms"]


def test_step_duration_grows_with_the_batch() -> None:
    spec = MockSpec(step_s=0.01, step_s_per_request=0.001)
    rng = random.Random(0)
    assert spec.step_duration_s(1, rng) == pytest.approx(0.010)
    assert spec.step_duration_s(11, rng) == pytest.approx(0.020)
    noisy = spec.model_copy(update={"jitter": 0.2})
    draws = [noisy.step_duration_s(1, rng) for _ in range(2000)]
    assert sum(draws) / 2000 == pytest.approx(0.01, rel=0.03)
    assert max(draws) > 0.013


def test_a_step_is_flat_until_further_requests_cost() -> None:
    spec = MockSpec(step_s=0.01, step_s_per_request=0.001, free_requests=4)
    assert [spec.mean_step_s(running) for running in (1, 5)] == [0.01, 0.01]
    assert spec.mean_step_s(6) == pytest.approx(0.011)
    assert spec.mean_step_s(15) == pytest.approx(0.020)


@given(st.floats(0, 0.1), st.floats(0, 0.01), st.integers(0, 40), st.integers(1, 60), st.integers(0, 5))
def test_the_profile_is_what_a_step_takes(
    step_s: float, per_request_s: float, free: int, most: int, tokens: int
) -> None:
    spec = MockSpec(step_s=step_s, step_s_per_request=per_request_s, free_requests=free, max_running=most)
    shown = Profile.from_json(orjson.dumps(spec.profile().as_json()))
    for running in range(1, most + 1):
        expected = max(spec.mean_step_s(running), 1e-6)
        assert shown.step(running, tokens) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert shown.max_running == most


async def test_the_pages_of_load_and_profile() -> None:
    spec = MockSpec(
        step_s=0.01, step_s_per_request=0.001, prefill_s=0, output_tokens=1000, num_speculative_tokens=3,
        acceptance_length=2.0, max_running=2,
    )  # fmt: skip
    async with served(spec) as client:
        assert LoadReport.from_json((await client.get(load.PATH)).content) == LoadReport(running=0, waiting=0)
        asked = [asyncio.create_task(client.post(CHAT, json=body(text=str(i)))) for i in range(3)]
        await until(client, running=2, waiting=1, started=3)
        shown = LoadReport.from_json((await client.get(load.PATH)).content)
        assert shown is not None
        assert (shown.running, shown.waiting, shown.acceptance_length) == (2, 1, 2.0)
        assert (shown.tokens_per_s, shown.step_s) == pytest.approx((2 * 2.0 / 0.011, 0.011))
        assert Profile.from_json((await client.get(profile.PATH)).content) == spec.profile()
        assert EngineIdentity.from_json((await client.get(identity.PATH)).content) == spec.identity()
        for task in asked:
            task.cancel()
        await until(client, started=3, aborted=3)
        assert LoadReport.from_json((await client.get(load.PATH)).content) == LoadReport(running=0, waiting=0)


async def test_an_answer_that_may_not_end_goes_on_to_its_limit(client: httpx.AsyncClient) -> None:
    for limit in (5, 500):
        asked = body(COMPLETIONS, max_tokens=limit, ignore_eos=True)
        answer = (await client.post(COMPLETIONS, json=asked)).json()
        assert answer["usage"]["completion_tokens"] == limit
        assert answer["choices"][0]["finish_reason"] == "length"


async def test_further_requests_wait_in_a_queue() -> None:
    async with inside(MockSpec(step_s=0.005, prefill_s=0, output_tokens=20, max_running=1)) as client:
        asked = [asyncio.create_task(client.post(CHAT, json=body(text=str(i)))) for i in range(3)]
        await until(client, running=1, waiting=2, started=3)
        waits = sorted(one.json()["metrics"]["queue_time_ms"] for one in await asyncio.gather(*asked))
        # Each waits for the answers before it: 20 tokens of 5 ms.
        assert waits[1] - waits[0] > 50
        assert waits[2] - waits[1] > 50
        assert await counts(client) == {"started": 3, "finished": 3}


# --- faults ---


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("share", "status"), [("fail_share", 500), ("refuse_share", 503)])
async def test_refusals(share: str, status: int, stream: bool) -> None:
    async with inside(MockSpec(**{share: 1.0})) as client:
        got = await client.post(CHAT, json=body(stream=stream))
        assert got.status_code == status
        assert set(got.json()["error"]) == {"message", "type", "param", "code"}
        assert got.headers.get("retry-after") == ("1" if status == 503 else None)
        assert await counts(client) == {"started": 1, "failed": 1}


async def test_garbage() -> None:
    async with inside(MockSpec(garbage_share=1.0)) as client:
        got = await client.post(CHAT, json=body())
        assert got.status_code == 200
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(got.content)
        assert await counts(client) == {"started": 1, "failed": 1}


@pytest.mark.parametrize("api", APIS)
async def test_a_break_cuts_the_stream_after_some_tokens(api: str) -> None:
    async with served(MockSpec(break_share=1.0)) as client:
        received = bytearray()
        with pytest.raises(httpx.RemoteProtocolError):
            await receive(client, api, received)
        assert received.count(b"data: ") >= 2
        assert b"[DONE]" not in received
        assert b"response.completed" not in received
        assert await counts(client) == {"started": 1, "failed": 1}


async def test_a_break_cuts_a_whole_answer() -> None:
    async with served(MockSpec(break_share=1.0)) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(CHAT, json=body())
        assert await counts(client) == {"started": 1, "failed": 1}


async def test_a_hang_holds_a_slot_until_the_client_leaves() -> None:
    async with served(MockSpec(hang_share=1.0)) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(CHAT, json=body(stream=True), timeout=0.1)
        await until(client, started=1, aborted=1)


async def test_shares_are_met_and_exclude_one_another() -> None:
    async with inside(MockSpec(step_s=0, prefill_s=0, fail_share=0.3, refuse_share=0.5, output_tokens=1)) as client:
        statuses = [(await client.post(CHAT, json=body())).status_code for _ in range(300)]
        assert statuses.count(500) == pytest.approx(90, abs=30)
        assert statuses.count(503) == pytest.approx(150, abs=30)
        assert await counts(client) == {
            "started": 300,
            "finished": statuses.count(200),
            "failed": 300 - statuses.count(200),
        }


# --- clients that leave ---


@pytest.mark.parametrize("api", APIS)
async def test_leaving_a_stream_frees_the_slot(api: str) -> None:
    async with served(MockSpec(step_s=0.01, output_tokens=int(SLOW_S / 0.01), max_running=1)) as client:
        async with client.stream("POST", api, json=body(api, stream=True)) as got:
            await anext(got.aiter_raw())
            await until(client, running=1, started=1)
        await until(client, started=1, aborted=1)
        await client.post("/mock/state", json={"step_s": 0, "output_tokens": 3})
        assert (await client.post(api, json=body(api))).status_code == 200
        assert await counts(client) == {"started": 2, "finished": 1, "aborted": 1}


async def test_leaving_a_whole_answer_frees_the_slot() -> None:
    async with served(MockSpec(prefill_s=SLOW_S)) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(CHAT, json=body(), timeout=0.1)
        await until(client, started=1, aborted=1)


async def test_leaving_the_queue() -> None:
    async with served(MockSpec(prefill_s=SLOW_S, max_running=1)) as client:
        first, second = [asyncio.create_task(client.post(CHAT, json=body())) for _ in range(2)]
        await until(client, running=1, waiting=1, started=2)
        second.cancel()
        await until(client, running=1, started=2, aborted=1)
        first.cancel()
        await until(client, started=2, aborted=2)


# --- live changes ---


async def test_live_change_breaks_and_heals_an_engine(client: httpx.AsyncClient) -> None:
    changed = await client.post("/mock/state", json={"fail_share": 1.0})
    assert changed.json()["spec"]["fail_share"] == 1.0
    assert (await client.post(CHAT, json=body())).status_code == 500
    await client.post("/mock/state", json={"fail_share": 0.0})
    assert (await client.post(CHAT, json=body())).status_code == 200
    assert await counts(client) == {"started": 2, "finished": 1, "failed": 1}


async def test_live_change_of_max_running_lets_the_queue_in() -> None:
    async with served(MockSpec(prefill_s=SLOW_S, max_running=1)) as client:
        asked = [asyncio.create_task(client.post(CHAT, json=body())) for _ in range(3)]
        await until(client, running=1, waiting=2, started=3)
        await client.post("/mock/state", json={"max_running": 3})
        await until(client, running=3, started=3)
        for task in asked:
            task.cancel()
        await until(client, started=3, aborted=3)


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b"[1]", b'{"no_such": 1}', b'{"fail_share": 2}', b'{"acceptance_length": 2}']
)
async def test_a_wrong_live_change_changes_nothing(client: httpx.AsyncClient, raw: bytes) -> None:
    before = (await state(client))["spec"]
    got = await client.post("/mock/state", content=raw)
    assert got.status_code == 400
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}
    assert (await state(client))["spec"] == before


@pytest.mark.parametrize(
    "fields",
    [
        {"step_s": -1},
        {"step_s": float("inf")},
        {"acceptance_length": 0.5, "num_speculative_tokens": 3},
        {"acceptance_length": 4.1, "num_speculative_tokens": 3},
        {"acceptance_by_class": {"math": 2.0}},
        {"fail_share": 0.6, "hang_share": 0.6},
        {"break_share": 1.5},
        {"max_running": 0},
        {"output_tokens": 0},
        {"unknown": 1},
    ],
)
def test_wrong_specifications_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        MockSpec(**fields)
