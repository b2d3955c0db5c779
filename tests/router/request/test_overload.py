"""Too much at once, and clients in a hurry: who waits, who is refused, whose deadline counts."""

import asyncio

import pytest

from tests.fleet import FAST, HANGS, SLOW, Routed, StartRouter, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE_AT_ONCE = {"max_in_flight": 1, "max_queued": 1, "queue_timeout_s": 5, "retry_after_s": 3}


async def busy(app: Routed, **fields: object) -> "asyncio.Task[object]":
    """A request that holds the only place until it is cancelled."""
    task: asyncio.Task[object] = asyncio.create_task(app.post(stream=False, **fields))
    await until(lambda: sum(app.replicas.in_flight().values()) > 0)
    return task


async def test_beyond_the_queue_requests_are_refused_with_a_time_to_wait(router_app: StartRouter) -> None:
    app = await router_app({"a": SLOW}, admission=ONE_AT_ONCE)
    first = await busy(app)
    waiting = asyncio.create_task(app.post(max_tokens=1))
    await until(lambda: app.parts.admission.state()["queued"] == 1)
    refused = await app.post()
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "3"
    assert refused.json()["error"]["code"] == "overloaded"
    first.cancel()
    assert (await waiting).status_code == 200
    assert len(await app.records(2)) == 2


async def test_the_low_priority_makes_room_for_the_high(router_app: StartRouter) -> None:
    app = await router_app({"a": SLOW}, admission=ONE_AT_ONCE)
    first = await busy(app)
    low = asyncio.create_task(app.post(max_tokens=1, headers={"x-draftpick-priority": "low"}))
    await until(lambda: app.parts.admission.state()["queued"] == 1)
    high = asyncio.create_task(app.post(max_tokens=1, headers={"x-draftpick-priority": "high"}))
    assert (await low).status_code == 503
    first.cancel()
    assert (await high).status_code == 200


async def test_when_every_replica_is_full_requests_are_refused(router_app: StartRouter) -> None:
    app = await router_app({"a": SLOW}, admission={"max_in_flight_per_replica": 1})
    first = await busy(app)
    refused = await app.post()
    first.cancel()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")


async def test_a_full_engine_is_passed_over(router_app: StartRouter) -> None:
    app = await router_app({"a": SLOW, "b": FAST}, admission={"max_in_flight_per_replica": 1})
    first = await busy(app)
    assert (await app.post()).headers["x-draftpick-arm"] == "b"
    first.cancel()


@pytest.mark.parametrize(
    "header", ["x-draftpick-timeout", "x-stainless-read-timeout", "x-stainless-timeout"], ids=["ours", "python", "js"]
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_deadline_ends_the_wait(router_app: StartRouter, header: str, stream: bool) -> None:
    app = await router_app({"a": HANGS, "b": HANGS}, breaker={"consecutive_failures": 1})
    answer = await asyncio.wait_for(app.post(stream=stream, headers={header: "0.2"}), 3)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert [one.outcome.status for one in await app.records(1)] == ["timeout"]
    assert app.replicas.health()["a"][app.engines["a"].url] == "closed"


async def test_a_deadline_ends_the_wait_in_the_queue(router_app: StartRouter) -> None:
    app = await router_app({"a": SLOW}, admission=ONE_AT_ONCE)
    first = await busy(app)
    answer = await app.post(headers={"x-draftpick-timeout": "0.1"})
    first.cancel()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_a_deadline_does_not_cut_a_stream_that_has_begun(router_app: StartRouter) -> None:
    app = await router_app({"a": SLOW.model_copy(update={"output_tokens": 30})})
    answer = await app.post(stream=True, headers={"x-draftpick-timeout": "0.3"})
    assert b"[DONE]" in answer.content


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf", ""])
async def test_a_deadline_that_is_none_is_refused(router_app: StartRouter, value: str) -> None:
    app = await router_app({"a": FAST})
    answer = await app.post(headers={"x-draftpick-timeout": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-draftpick-timeout")
    assert (await app.post(headers={"x-stainless-read-timeout": value})).status_code == 200


async def test_a_priority_that_is_none_is_refused(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST})
    answer = await app.post(headers={"x-draftpick-priority": "urgent"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-draftpick-priority")
