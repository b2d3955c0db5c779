"""The queue of finished attempts between the request path and its observers."""

import asyncio
import itertools
import logging
from collections import Counter
from dataclasses import replace

import pytest

from draftpick.router.policies.base import Policy
from draftpick.router.request.attempt_queue import AttemptQueue
from draftpick.router.types import Attempt, Decision, Outcome
from tests.fleet import FAST, StartRouter, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def attempt(number: int) -> Attempt:
    return Attempt(
        "r", number, "/v1/completions", False, {}, None, Decision("a", 1.0, {"a": 1.0}, "p"), Outcome("ok"), {"a": 0}
    )


class Keeps:
    """An observer that keeps all attempts in `seen`."""

    def __init__(self, seen: list[Attempt]) -> None:
        self.seen = seen

    def on_attempt_end(self, one: Attempt) -> None:
        self.seen.append(one)


class Fails:
    def on_attempt_end(self, one: Attempt) -> None:
        raise ValueError(f"no {one.number}")


def numbers(attempts: list[Attempt]) -> list[int]:
    return [one.number for one in attempts]


async def test_observers_get_all_attempts_in_order_without_a_reader() -> None:
    seen, again = list[Attempt](), list[Attempt]()
    queue = AttemptQueue({"one": Keeps(seen), "two": Keeps(again), "off": None}, Counter())
    for i in range(100):
        queue.put(attempt(i))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not seen  # they come together, a moment later
    assert isinstance(queue._timer, asyncio.TimerHandle)
    assert queue._timer.when() - asyncio.get_running_loop().time() < 0.1
    assert len(queue) == 100
    await until(lambda: len(seen) == 100)
    assert numbers(seen) == numbers(again) == list(range(100))
    queue.put(attempt(100))
    await until(lambda: len(seen) == 101)


async def test_between_slices_others_have_their_turn() -> None:
    seen, waited = list[Attempt](), list[int]()
    queue = AttemptQueue({"one": Keeps(seen)}, Counter())
    for i in range(100):
        queue.put(attempt(i))
    while len(seen) < 100:
        waited.append(len(seen))
        await asyncio.sleep(0)
    assert max(b - a for a, b in itertools.pairwise(waited)) == 16


async def test_a_reader_need_not_wait() -> None:
    seen = list[Attempt]()
    queue = AttemptQueue({"one": Keeps(seen)}, Counter(), lambda one: replace(one, cluster=("p", 3)))
    queue.put(attempt(1))
    queue.drain()
    assert [one.cluster for one in seen] == [("p", 3)]
    queue.put(attempt(2))
    queue.close()
    assert numbers(seen) == [1, 2]


async def test_a_full_queue_counts_what_it_loses_and_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    seen, failures = list[Attempt](), Counter[tuple[str, str]]()
    queue = AttemptQueue({"one": Keeps(seen)}, failures, max_queued=3)
    for i in range(6):
        queue.put(attempt(i))
    assert failures == {("attempts", "lost"): 3}
    assert len(caplog.records) == 1
    queue.close()
    assert numbers(seen) == [0, 1, 2]


async def test_what_fails_is_counted_and_the_others_get_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    def fails_to_prepare(one: Attempt) -> Attempt:
        raise KeyError(one.number)

    seen, failures = list[Attempt](), Counter[tuple[str, str]]()
    queue = AttemptQueue({"broken": Fails(), "one": Keeps(seen)}, failures, fails_to_prepare)
    with caplog.at_level(logging.ERROR):
        for i in range(2):
            queue.put(attempt(i))
        await until(lambda: len(seen) == 2)
    assert failures == {("broken", "ValueError"): 2, ("learning", "KeyError"): 2}
    assert "no 1" in caplog.text
    assert {one.draftpick_request_id for one in caplog.records} == {"r"}  # type: ignore[attr-defined]


async def test_a_reader_of_the_router_sees_every_finished_request(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST})
    await app.post()
    assert len(app.parts.attempts) == 1
    page = (await app.client.get("/metrics")).text
    assert 'draftpick_attempts_total{router="0",arm="a",status="ok"} 1.0' in page
    assert 'draftpick_internal_failures_total{router="0",part="attempts"} 0.0' in page


async def test_a_policy_that_cannot_learn_costs_no_record(
    router_app: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Policy, context: object) -> int:
        raise RuntimeError("no clusters")

    app = await router_app({"a": FAST})
    monkeypatch.setattr(type(app.parts.active_policies.policy), "cluster", fails)
    monkeypatch.setattr(type(app.parts.active_policies), "cluster", lambda *_: fails(*_[:2]))
    await app.post()
    (record,) = await app.records(1)
    assert record.outcome.status == "ok"
    assert app.parts.metrics.failures == {("learning", "RuntimeError"): 1}
