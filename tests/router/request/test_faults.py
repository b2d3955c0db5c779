"""Engines that fail and clients that leave: a new decision before the first byte, never a silent retry after it."""

import asyncio
import gzip
import random
from collections import Counter
from itertools import groupby

import httpx
import orjson
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from draftpick.engines.errors import ResourcesExhausted
from draftpick.engines.http.client import EngineClient
from draftpick.engines.http.server import LocalServer
from draftpick.engines.load_report import LoadReport
from draftpick.engines.mock.app import MockSpec, mock_app
from draftpick.router.policies.baselines import UniformPolicy
from draftpick.router.types import Record
from tests.fleet import (
    BREAKS,
    CHAT,
    COMPLETIONS,
    FAILS,
    FAST,
    HANGS,
    MODEL,
    REFUSING_URL,
    RESPONSES,
    SLOW,
    Routed,
    Servers,
    StartRouter,
    asked,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = b'data: {"choices":[{"delta":{"content":"x"}}]}'
REFUSES = FAST.model_copy(update={"refuse_share": 1.0})


def story(records: list[Record]) -> list[tuple[int, str, str]]:
    return [(one.attempt, one.decision.arm, one.outcome.status) for one in records]


async def answering(servers: Servers, body: bytes, media_type: str = "text/event-stream", status: int = 200) -> str:
    """The address of an engine that answers every request with these bytes."""
    return (await servers.serve(Response(body, status, media_type=media_type))).url


# --- before the first byte ---


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "status", "http_status"),
    [
        (FAILS, "engine_error", 500),
        (REFUSES, "engine_error", 503),
        (REFUSING_URL, "engine_error", None),
    ],
    ids=["fails", "refuses", "gone"],
)
async def test_another_engine_answers(
    router_app: StartRouter, fault: MockSpec | str, status: str, http_status: int | None, stream: bool
) -> None:
    app = await router_app({"a": fault, "b": FAST})
    answer = await app.post(stream=stream, headers={"x-request-id": "r"})
    assert answer.status_code == 200
    assert answer.headers.get_list("x-draftpick-arm") == ["b"]
    records = await app.records(2)
    assert story(records) == [(1, "a", status), (2, "b", "ok")]
    assert records[0].outcome.http_status == http_status
    assert [one.client_request_id for one in records] == ["r", "r"]
    assert len({one.request_id for one in records} - {"r"}) == 1
    assert records[1].decision.probabilities == {"a": 0.0, "b": 1.0}
    assert records[1].decision.reason == "policy"


async def test_another_engine_answers_a_stream_when_one_hangs(router_app: StartRouter) -> None:
    app = await router_app({"a": HANGS, "b": FAST}, first_byte_timeout_s=1.0)
    assert (await app.post(stream=True)).headers["x-draftpick-arm"] == "b"
    assert story(await app.records(2)) == [(1, "a", "timeout"), (2, "b", "ok")]


async def test_no_second_replica_of_an_engine_that_failed_is_asked_before_another_engine(
    router_app: StartRouter, servers: Servers
) -> None:
    app = await router_app({"a": FAILS, "b": FAST})
    app.replicas.update("a", [app.engines["a"].url, (await servers.mock(FAILS)).url])
    assert (await app.post()).status_code == 200
    assert story(await app.records(2)) == [(1, "a", "engine_error"), (2, "b", "ok")]


async def test_another_engine_answers_when_a_whole_answer_breaks(router_app: StartRouter) -> None:
    app = await router_app({"a": BREAKS, "b": FAST})
    answer = await app.post()
    assert answer.json()["usage"]["completion_tokens"] == FAST.output_tokens
    assert story(await app.records(2)) == [(1, "a", "broken"), (2, "b", "ok")]


@pytest.mark.parametrize("stream", [True, False])
async def test_another_engine_answers_when_one_answers_garbage(router_app: StartRouter, stream: bool) -> None:
    app = await router_app({"a": FAST.model_copy(update={"garbage_share": 1.0}), "b": FAST})
    answer = await app.post(stream=stream)
    assert (answer.status_code, answer.headers["x-draftpick-arm"]) == (200, "b")
    assert answer.headers["x-draftpick-attempts"] == "2"
    assert story(await app.records(2)) == [(1, "a", "broken"), (2, "b", "ok")]


async def test_when_all_answer_garbage_the_client_gets_an_openai_error(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST.model_copy(update={"garbage_share": 1.0})})
    answer = await app.post()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_unavailable")


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (b"", "broken"),
        (b'data: {"error": {"message": "lost", "code": 500}}\n\ndata: [DONE]\n\n', "engine_error"),
    ],
)
async def test_another_engine_answers_when_a_stream_ends_before_its_content(
    router_app: StartRouter, servers: Servers, ending: bytes, status: str
) -> None:
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    app = await router_app({"a": await answering(servers, role + ending), "b": FAST})
    answer = await app.post(stream=True)
    assert answer.headers["x-draftpick-arm"] == "b"
    assert answer.content.count(b'"role"') == 1
    assert story(await app.records(2)) == [(1, "a", status), (2, "b", "ok")]


@pytest.mark.parametrize("error", [b'data: {"error": {"code": 500}}', b"event: error\ndata: {}"])
async def test_an_error_in_a_stream_is_no_good_answer(router_app: StartRouter, servers: Servers, error: bytes) -> None:
    url = await answering(servers, b"%b\n\n%b\n\ndata: [DONE]\n\n" % (CONTENT, error))
    app = await router_app({"a": url, "b": FAST})
    answer = await app.post(stream=True)
    assert answer.content.endswith(b"\n\n%b\n\ndata: [DONE]\n\n" % error)
    assert story(await app.records(1)) == [(1, "a", "broken")]


@pytest.mark.parametrize("begins", [b"", b'event: response.output_text.delta\ndata: {"delta":"x"}\n\n'])
async def test_a_failed_response_is_the_last_event_that_a_client_gets(
    router_app: StartRouter, servers: Servers, begins: bytes
) -> None:
    failed = (
        b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"server_error"}}}\n\n'
    )
    app = await router_app({"a": await answering(servers, begins + failed)})
    answer = await app.post(RESPONSES, stream=True)
    assert (answer.status_code, answer.content) == (200, begins + failed)
    assert story(await app.records(1)) == [(1, "a", "broken")]


async def test_bytes_after_the_last_event_go_on(router_app: StartRouter, servers: Servers) -> None:
    data = CONTENT + b"\n\ndata: [DONE]\n\n: end"
    app = await router_app({"a": await answering(servers, data)})
    assert (await app.post(stream=True)).content == data
    assert story(await app.records(1)) == [(1, "a", "ok")]


async def test_another_engine_answers_when_one_does_not_stream(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app({"a": await answering(servers, b"{}", "application/json"), "b": FAST})
    assert b"[DONE]" in (await app.post(stream=True)).content
    assert story(await app.records(2)) == [(1, "a", "broken"), (2, "b", "ok")]


async def test_events_before_the_content_are_held_up_to_a_limit(router_app: StartRouter, servers: Servers) -> None:
    async def begins(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for _ in range(66):
            await send({"type": "http.response.body", "body": b"data: %b\n\n" % (b"x" * 1024), "more_body": True})
        await receive()  # the request's body
        await receive()  # its end

    app = await router_app({"a": (await servers.serve(begins)).url})
    async with asyncio.timeout(5), app.client.stream("POST", CHAT, json=asked(stream=True)) as answer:
        assert len(await anext(answer.aiter_raw())) > 60_000


async def test_a_stream_that_stalls_ends_with_an_error_event(router_app: StartRouter) -> None:
    stalls = FAST.model_copy(update={"step_s": 30, "prefill_s": 0})
    app = await router_app({"a": stalls, "b": FAST}, stream_idle_timeout_s=0.3)
    answer = await app.post(stream=True)
    assert answer.content.endswith(b"}}\n\n")
    assert b"engine_broken" in answer.content
    assert story(await app.records(1)) == [(1, "a", "broken")]


async def test_another_replica_of_the_same_engine_answers_when_there_is_no_other_engine(
    router_app: StartRouter, servers: Servers
) -> None:
    app = await router_app({"a": FAILS})
    good = await servers.mock(FAST, "a")
    app.replicas.update("a", [app.engines["a"].url, good.url])
    answers = [await app.post() for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    pinned = [await app.post(headers={"x-draftpick-arm": "a"}) for _ in range(4)]
    assert [answer.status_code for answer in pinned] == [200] * 4


async def test_another_engine_is_tried_before_another_replica(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app({"a": FAILS, "b": FAST})
    app.replicas.update("a", [*app.replicas.urls()["a"], (await servers.mock(FAILS)).url])
    await app.post()
    assert story(await app.records(2)) == [(1, "a", "engine_error"), (2, "b", "ok")]


async def test_a_failing_engine_is_ejected_and_readmitted_by_a_probe(router_app: StartRouter) -> None:
    breaker = {"consecutive_failures": 2, "base_ejection_s": 2, "slow_start_s": 0}
    app = await router_app({"a": FAILS, "b": FAST}, breaker=breaker)
    for _ in range(6):
        await app.post()
    assert app.engines["a"].engine.ended["failed"] == 2
    app.engines["a"].engine.reconfigure({"fail_share": 0.0})
    await until(lambda: "half_open" in app.replicas.health()["a"].values())
    assert (await app.post()).headers["x-draftpick-arm"] == "a"
    assert app.replicas.health()["a"] == {app.engines["a"].url: "closed"}


async def test_an_engine_with_a_lost_drafter_is_quarantined(router_app: StartRouter) -> None:
    drafts = FAST.model_copy(update={"num_speculative_tokens": 4, "acceptance_length": 3.0, "output_tokens": 24})
    app = await router_app({"a": drafts, "b": FAST})
    for _ in range(60):
        await app.post()
    app.engines["a"].engine.reconfigure({"acceptance_length": 1.0})
    arms = [(await app.post()).headers["x-draftpick-arm"] for _ in range(60)]
    assert arms.index("b") < 50
    assert arms[-1] == "b"
    assert app.parts.acceptance_monitor.state()["a"] == "quarantined"


async def test_another_engine_answers_when_one_has_too_many_requests(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app({"a": await answering(servers, b"{}", "application/json", 429), "b": FAST})
    assert (await app.post()).headers["x-draftpick-arm"] == "b"
    assert story(await app.records(2)) == [(1, "a", "engine_error"), (2, "b", "ok")]


async def test_a_hanging_engine_is_left(router_app: StartRouter) -> None:
    app = await router_app({"a": HANGS, "b": FAST}, first_byte_timeout_s=0.5)
    await app.post(stream=True)
    await until(lambda: app.engines["a"].aborted == 1, timeout_s=1)


async def test_a_replica_that_refuses_connections_is_not_asked_again(router_app: StartRouter) -> None:
    app = await router_app({"a": REFUSING_URL, "b": FAST})
    for _ in range(3):
        assert (await app.post()).status_code == 200
    assert story(await app.records(4)) == [(1, "a", "engine_error"), *[(n, "b", "ok") for n in (2, 1, 1)]]
    assert app.replicas.health()["a"] == {REFUSING_URL: "open"}


async def test_attempts_are_bounded(router_app: StartRouter) -> None:
    arms = ("a", "b", "c", "d")
    app = await router_app(dict.fromkeys(arms, HANGS), first_byte_timeout_s=0.1, max_attempts=2)
    answer = await app.post(stream=True)
    assert answer.status_code == 504
    records = await app.records(2)
    assert [one.attempt for one in records] == [1, 2]
    assert records[0].decision.arm == "a" != records[1].decision.arm


async def test_a_pinned_request_is_tried_once(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": FAILS})
    answer = await app.post(headers={"x-draftpick-arm": "b"})
    assert answer.status_code == 500
    assert story(await app.records(1)) == [(1, "b", "engine_error")]


# --- no engine answers ---


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [(REFUSING_URL, 502, "engine_unavailable"), (HANGS, 504, "engine_timeout")],
    ids=["gone", "hangs"],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_when_no_engine_answers_the_client_gets_an_openai_error(
    router_app: StartRouter, fault: MockSpec | str, status: int, code: str, stream: bool
) -> None:
    app = await router_app({"a": fault, "b": fault}, wait_for_engine_s=0, first_byte_timeout_s=0.1, timeout_s=0.1)
    answer = await app.post(stream=stream)
    once = fault is HANGS and not stream
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"] == {
        "message": f"no engine answered ({'a' if once else 'a, b'} tried)",
        "type": "api_connection_error",
        "param": None,
        "code": code,
    }
    assert [one.attempt for one in await app.records(1 if once else 2)] == ([1] if once else [1, 2])


@pytest.mark.parametrize("url", [[], [REFUSING_URL]], ids=["none", "gone"])
async def test_a_request_waits_while_all_engines_are_being_replaced(router_app: StartRouter, url: list[str]) -> None:
    app = await router_app({"a": FAST})
    there = app.replicas.urls()["a"]
    app.replicas.update("a", url)
    asked = asyncio.create_task(app.post())
    await asyncio.sleep(0.2)
    app.replicas.update("a", there)
    answer = await asked
    assert (answer.status_code, answer.headers["x-draftpick-arm"]) == (200, "a")


async def test_an_engine_that_restarts_at_its_address_is_waited_for(router_app: StartRouter) -> None:
    app_of_engine = mock_app(FAST, model=MODEL)
    stopped = LocalServer(app_of_engine)
    url = stopped.url
    await stopped.drain(0.0)
    app = await router_app({"a": url})
    request = asyncio.create_task(app.post())
    await until(lambda: app.num_attempts == 1)
    again = LocalServer(app_of_engine, port=int(url.rsplit(":", 1)[1]))
    await again.start()
    assert (await request).status_code == 200
    await again.drain(0.0)


async def test_when_no_engine_is_there_the_client_gets_an_openai_error(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST}, wait_for_engine_s=0.1)
    app.replicas.update("a", [])
    answer = await app.post()
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "service_unavailable_error"
    assert answer.json()["error"]["code"] == "no_engine"
    assert await app.records(0) == []


@pytest.mark.parametrize(("fault", "status"), [(FAILS, 500), (REFUSES, 503)])
async def test_when_all_engines_refuse_the_last_refusal_passes_through(
    router_app: StartRouter, fault: MockSpec, status: int
) -> None:
    app = await router_app({"a": fault, "b": fault})
    answer = await app.post()
    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith("The mock engine")
    assert answer.headers["x-draftpick-arm"] == "b"
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)
    assert story(await app.records(2)) == [(1, "a", "engine_error"), (2, "b", "engine_error")]


async def test_what_the_engine_blames_on_the_request_passes_through(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": FAST}, breaker={"consecutive_failures": 1})
    for fields, status in (({"model": "other"}, 404), ({"max_tokens": 0}, 400)):
        answer = await app.post(**fields)
        async with httpx.AsyncClient(base_url=app.engines["a"].url) as direct:
            assert answer.content == (await direct.post(CHAT, json=asked(**fields))).content
        assert answer.status_code == status
        assert answer.headers["x-draftpick-arm"] == "a"
    assert story(await app.records(2)) == [(1, "a", "client_error")] * 2
    assert app.replicas.health()["a"] == {app.engines["a"].url: "closed"}


# --- whose fault it is ---

BAD_REQUEST = b'{"error":{"message":"bad grammar","type":"BadRequestError","param":null,"code":400}}'


@pytest.mark.parametrize("begins", [b"", b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'])
async def test_an_error_event_that_opens_a_stream_is_the_answer_that_the_engine_means(
    router_app: StartRouter, servers: Servers, begins: bytes
) -> None:
    urls = [await answering(servers, begins + b"data: %b\n\ndata: [DONE]\n\n" % BAD_REQUEST) for _ in "ab"]
    app = await router_app(dict(zip("ab", urls, strict=True)), breaker={"consecutive_failures": 1})
    answer = await app.post(stream=True)
    assert (answer.status_code, answer.content) == (400, BAD_REQUEST)
    assert answer.headers["content-type"] == "application/json"
    (record,) = await app.records(1)
    assert (record.outcome.status, record.outcome.fault) == ("client_error", "client")
    assert record.outcome.http_status == 400
    assert set(app.replicas.health()["a"].values()) == {"closed"}


async def test_an_error_is_one_whatever_its_status_says(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app({"a": await answering(servers, BAD_REQUEST, "application/json")})
    assert (await app.post()).status_code == 400


@pytest.mark.parametrize(("good", "states"), [(False, {"closed"}), (True, {"open"})])
async def test_a_request_that_every_engine_fails_on_is_at_fault_itself(
    router_app: StartRouter, good: bool, states: set[str]
) -> None:
    app = await router_app({"a": FAILS, "b": FAILS, "c": FAST if good else FAILS}, breaker={"consecutive_failures": 1})
    assert (await app.post()).status_code == (200 if good else 500)
    health = app.replicas.health()
    assert {*health["a"].values(), *health["b"].values()} == states


async def test_one_engine_that_fails_has_no_witness(router_app: StartRouter) -> None:
    app = await router_app({"a": FAILS}, breaker={"consecutive_failures": 1})
    await app.post()
    assert set(app.replicas.health()["a"].values()) == {"open"}


async def test_a_whole_answer_that_takes_too_long_is_not_begun_again(router_app: StartRouter) -> None:
    app = await router_app({"a": HANGS, "b": FAST}, timeout_s=0.1, breaker={"consecutive_failures": 1})
    assert (await app.post()).status_code == 504
    assert story(await app.records(1)) == [(1, "a", "timeout")]
    assert set(app.replicas.health()["a"].values()) == {"open"}


async def test_a_whole_answer_that_others_usually_give_in_time_is_begun_on_one_of_them(
    router_app: StartRouter,
) -> None:
    halting = MockSpec(step_s=0.2, prefill_s=0, output_tokens=1000)
    app = await router_app({"a": halting, "b": FAST.model_copy(update={"step_s": 0.001})}, timeout_s=0.4)
    await app.post(stream=True, headers={"x-draftpick-arm": "b"})
    assert (await app.post(max_tokens=8)).status_code == 200
    assert story(await app.records(3))[1:] == [(1, "a", "timeout"), (2, "b", "ok")]


async def test_a_stream_that_outlasts_its_time_is_a_slow_engines_fault_if_others_are_usually_done(
    router_app: StartRouter,
) -> None:
    halting = MockSpec(step_s=0.1, prefill_s=0, output_tokens=1000)
    engines = {"a": halting, "b": FAST.model_copy(update={"step_s": 0.001})}
    app = await router_app(engines, timeout_s=0.4, breaker={"consecutive_failures": 1})
    await app.post(stream=True, headers={"x-draftpick-arm": "b"})
    assert b"error" in (await app.post(stream=True, max_tokens=8)).content
    assert set(app.replicas.health()["a"].values()) == {"open"}


async def test_a_whole_answer_is_begun_elsewhere_if_its_engine_reports_no_progress(router_app: StartRouter) -> None:
    app = await router_app({"a": HANGS, "b": FAST}, timeout_s=0.4)
    (replica,) = app.replicas.by_arm["a"]
    replica.record_report(LoadReport(running=1, waiting=0), replica.clock())
    assert (await app.post()).status_code == 200
    assert story(await app.records(2)) == [(1, "a", "timeout"), (2, "b", "ok")]
    assert replica.breaker.clear is False


async def test_a_long_answer_is_not_the_fault_of_an_engine_that_answers_others(router_app: StartRouter) -> None:
    slow = MockSpec(step_s=0.01, prefill_s=0, output_tokens=1000)
    app = await router_app({"a": slow}, timeout_s=0.5, breaker={"consecutive_failures": 1})
    long = asyncio.create_task(app.post())
    await until(lambda: app.engines["a"].engine.started == 1)
    assert (await app.post(max_tokens=1)).status_code == 200
    assert (await long).status_code == 504
    assert set(app.replicas.health()["a"].values()) == {"closed"}


async def test_a_client_with_a_short_deadline_ejects_no_engine(router_app: StartRouter) -> None:
    app = await router_app({"a": HANGS}, breaker={"consecutive_failures": 1})
    for stream in (True, False):
        assert (await app.post(stream=stream, headers={"x-draftpick-timeout": "0.1"})).status_code == 504
    assert set(app.replicas.health()["a"].values()) == {"closed"}
    assert {record.outcome.fault for record in await app.records(2)} == {"client"}


async def test_retries_take_no_longer_than_one_attempt_may(router_app: StartRouter) -> None:
    app = await router_app({"a": HANGS, "b": HANGS, "c": FAST}, first_byte_timeout_s=0.4)
    began = asyncio.get_running_loop().time()
    assert (await app.post(stream=True)).status_code == 504
    assert asyncio.get_running_loop().time() - began < 1.1
    assert story(await app.records(2)) == [(1, "a", "timeout"), (2, "b", "timeout")]


async def test_a_stream_that_is_cut_off_for_its_length_is_not_resumed(router_app: StartRouter) -> None:
    app = await router_app({"a": SLOW, "b": FAST}, timeout_s=0.3, resume_streams=True)
    answer = await app.post(stream=True, temperature=0)
    assert b'"engine_timeout"' in answer.content
    (record,) = await app.records(1)
    assert (record.outcome.status, record.outcome.fault) == ("broken", "client")


async def test_a_lack_of_descriptors_is_the_routers_own(
    router_app: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await router_app({"a": FAST, "b": FAST}, breaker={"consecutive_failures": 1})

    async def connect(*args: object) -> None:
        raise ResourcesExhausted("no descriptors")

    monkeypatch.setattr(EngineClient, "connect", connect)
    answer = await app.post()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert "retry-after" in answer.headers
    (record,) = await app.records(1)
    assert (record.outcome.status, record.outcome.fault) == ("router_error", "router")
    assert set(app.replicas.health()["a"].values()) == {"closed"}


async def test_an_answer_compressed_unasked_is_read(router_app: StartRouter, servers: Servers) -> None:
    body = orjson.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    packed = Response(gzip.compress(body), headers={"content-encoding": "gzip"}, media_type="application/json")
    app = await router_app({"a": (await servers.serve(packed)).url})
    answer = await app.post()
    assert (answer.content, answer.headers.get("content-encoding")) == (body, None)
    assert (await app.records(1))[0].outcome.output_tokens == 2


@pytest.mark.parametrize("body", [b'{"choices":[],"x":NaN}', b'{"choices":["\\ud83d"]}', b"\xef\xbb\xbf{}", b"[1]"])
async def test_an_answer_is_read_as_python_reads_json(router_app: StartRouter, servers: Servers, body: bytes) -> None:
    app = await router_app({"a": await answering(servers, body, "Application/JSON"), "b": FAST})
    answer = await app.post()
    assert (answer.content, answer.headers["x-draftpick-arm"]) == (body, "a")


# --- after the first byte ---


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS, RESPONSES])
async def test_a_stream_that_breaks_ends_with_an_error_event_and_is_not_tried_again(
    router_app: StartRouter, api: str
) -> None:
    app = await router_app({"a": BREAKS, "b": FAST})
    answer = await app.post(api, stream=True)
    *events, last, rest = answer.content.split(b"\n\n")
    assert answer.status_code == 200
    assert rest == b""
    assert events
    assert orjson.loads(last.partition(b"data: ")[2])["error"] == {
        "message": "the engine stopped, or was too slow, in the middle of its answer",
        "type": "api_connection_error",
        "param": None,
        "code": "engine_broken",
    }
    assert b"[DONE]" not in answer.content
    assert story(await app.records(1)) == [(1, "a", "broken")]
    assert app.engines["b"].engine.started == 0


async def test_a_stream_that_ends_without_its_terminator_is_broken(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app({"a": await answering(servers, CONTENT + b'\n\ndata: {"choi'), "b": FAST})
    answer = await app.post(stream=True)
    assert b"engine_broken" in answer.content
    assert story(await app.records(1)) == [(1, "a", "broken")]


# --- clients that leave ---


async def left(app: Routed, record: Record) -> None:
    """Check that the engine was told and the record says so."""
    await until(lambda: app.engines["a"].aborted == 1, timeout_s=1)
    assert story([record]) == [(1, "a", "cancelled")]
    assert app.replicas.in_flight() == {"a": 0, "b": 0}
    assert app.engines["b"].engine.started == 0


async def test_a_client_that_leaves_a_stream_stops_the_engine(router_app: StartRouter) -> None:
    app = await router_app({"a": SLOW, "b": FAST})
    async with app.client.stream("POST", CHAT, json=asked(stream=True)) as answer:
        chunks = answer.aiter_raw()
        await anext(chunks)
    (record,) = await app.records(1, timeout_s=1)
    await left(app, record)
    assert record.outcome.ttft_s is not None
    assert record.outcome.output_tokens is None


@pytest.mark.parametrize("spec", [HANGS, MockSpec(prefill_s=5)], ids=["hangs", "slow"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_answer_stops_the_engine(
    router_app: StartRouter, spec: MockSpec, stream: bool
) -> None:
    app = await router_app({"a": spec, "b": FAST})
    request = asyncio.create_task(app.post(stream=stream))
    await until(lambda: app.engines["a"].engine.started == 1)
    request.cancel()
    (record,) = await app.records(1, timeout_s=1)
    await left(app, record)
    assert record.outcome.ttft_s is None


# --- all of it together ---


async def test_every_attempt_leaves_exactly_one_record_whatever_happens(router_app: StartRouter) -> None:
    shares = {"fail_share": 0.15, "refuse_share": 0.15, "break_share": 0.15, "hang_share": 0.05}
    specs = {arm: MockSpec(step_s=0.002, output_tokens=5000, **shares) for arm in ("a", "b", "c")}
    app = await router_app(specs, policy=UniformPolicy(("a", "b", "c")), first_byte_timeout_s=0.5, timeout_s=2)
    rng = random.Random(0)

    async def request(number: int, stream: bool, leaves: bool) -> None:
        body, headers = asked(text=f"{number}", stream=stream), {"x-request-id": f"{number}"}
        if not leaves:
            body["max_tokens"] = 20
        async with app.client.stream("POST", CHAT, json=body, headers=headers) as answer:
            async for _ in answer.aiter_bytes():
                if leaves:
                    return

    kinds = rng.choices(["whole", "stream", "leaves"], [0.2, 0.6, 0.2], k=60)
    draws = [(number, kind != "whole", kind == "leaves") for number, kind in enumerate(kinds)]
    await asyncio.gather(*(request(*draw) for draw in draws))
    await until(lambda: app.replicas.in_flight() == {"a": 0, "b": 0, "c": 0})
    records = await app.records(app.num_attempts)
    assert len(records) >= sum(mock.engine.started for mock in app.engines.values())
    statuses = Counter(one.outcome.status for one in records)
    assert {"ok", "engine_error", "broken", "cancelled"} <= set(statuses)
    by_request = groupby(sorted(records, key=lambda one: (one.request_id, one.attempt)), lambda one: one.request_id)
    attempts = {request_id: list(group) for request_id, group in by_request}
    assert len(attempts) == 60
    for tried in attempts.values():
        assert [one.attempt for one in tried] == list(range(1, len(tried) + 1))
        assert len({one.decision.arm for one in tried}) == len(tried)
        assert all(one.outcome.status in ("engine_error", "timeout", "broken") for one in tried[:-1])
