"""Whose timeout it is: by the time that an attempt had, what its replica did meanwhile, and what others need."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from draftpick.engines.load_report import LoadReport
from draftpick.engines.replicas import Lease, ReplicaTable
from draftpick.router.openai_request import Request
from draftpick.router.request.meter import Meter
from draftpick.router.request.state import ClientRequest, RequestState
from draftpick.router.request.timeouts import Circumstances, Timeouts

LIMITS = {True: 10.0, False: 100.0}
ELAPSED_S = 8.0


class World:
    """An attempt on the first of three replicas, which began 8 s ago."""

    def __init__(self, *, stream: bool = True, text: str = "", **request: Any) -> None:
        self.table = ReplicaTable(["a", "b", "c"], clock=lambda: 1000.0)
        for arm in self.table.arms:
            self.table.update(arm, [f"http://{arm}"])
        self.own, self.other, self.third = (self.table.by_arm[arm][0] for arm in self.table.arms)
        asked = Request("/v1/completions", b"", text, stream=stream, **request)
        self.state = RequestState(ClientRequest(asked, "POST", asked.path, [], "id", "id", 0.0))
        self.state.tried.add(self.own)
        self.meter = Meter(0.0)
        self.meter.sent = time.perf_counter() - ELAPSED_S

    def circumstances(self, within_s: float | None = None) -> Circumstances:
        lease = Lease(self.own, probe=False)
        return Timeouts(self.table, LIMITS).circumstances(self.state, lease, self.meter, within_s)


@pytest.mark.parametrize(
    ("stream", "within_s", "hasty"),
    [(True, None, False), (True, 8.9, True), (True, 9.0, False), (False, 89.0, True), (False, 90.0, False)],
)
def test_less_than_nine_tenths_of_the_configured_time_is_haste(
    stream: bool, within_s: float | None, hasty: bool
) -> None:
    assert World(stream=stream).circumstances(within_s)["hasty"] is hasty


@pytest.mark.parametrize(("ago_s", "alive"), [(7.0, True), (9.0, False)])
def test_a_replica_that_answered_others_meanwhile_is_alive(ago_s: float, alive: bool) -> None:
    world = World()
    world.own.answered_at = 1000.0 - ago_s
    assert world.circumstances()["alive"] is alive


@pytest.mark.parametrize(
    ("tpot_s", "request_", "slow"),
    [
        (0.039, {"sampling": {"max_tokens": 100.0}}, True),  # others need 3.9 s of 8
        (0.041, {"sampling": {"max_tokens": 100.0}}, False),
        (0.039, {}, False),  # its length is unknown
        (0.019, {"sampling": {"max_tokens": 100.0}, "num_answers": 2}, True),
        (0.021, {"sampling": {"max_tokens": 100.0}, "num_answers": 2}, False),
        (0.019, {"sampling": {"max_tokens": 100.0}, "num_prompt_tokens": 800}, True),  # eight of a prompt are one
        (0.021, {"sampling": {"max_tokens": 100.0}, "num_prompt_tokens": 800}, False),
    ],
    ids=str,
)
def test_a_replica_is_slow_if_others_usually_need_less_than_half(
    tpot_s: float, request_: dict[str, Any], slow: bool
) -> None:
    world = World(**request_)
    world.own.record_tpot(1e-6)
    world.other.record_tpot(tpot_s)
    assert world.circumstances()["slow"] is slow


def test_the_fastest_of_the_others_that_have_answered_counts() -> None:
    world = World(sampling={"max_tokens": 100.0})
    assert not world.circumstances()["slow"]
    world.other.record_tpot(1.0)
    assert not world.circumstances()["slow"]
    world.third.record_tpot(0.01)
    assert world.circumstances()["slow"]
    world.state.tried.add(world.third)
    assert not world.circumstances()["slow"]


@pytest.mark.parametrize(
    ("tokens_per_s", "answered_ago_s", "slow"), [(0.0, 9.0, True), (5.0, 9.0, False), (0.0, 7.0, False)]
)
def test_a_replica_that_reports_no_progress_is_slow(tokens_per_s: float, answered_ago_s: float, slow: bool) -> None:
    world = World()
    assert not world.circumstances()["slow"]
    world.own.answered_at = 1000.0 - answered_ago_s
    world.own.record_report(LoadReport(1, 0, tokens_per_s=tokens_per_s), at=999.0)
    assert world.circumstances()["slow"] is slow


def test_a_slow_reader_is_no_fault_of_a_replica() -> None:
    for first_pause, slow in ((None, True), ((0.0, 1), False)):
        world = World(sampling={"max_tokens": 100.0})
        world.other.record_tpot(0.01)
        world.meter.arrivals = SimpleNamespace(first_pause=first_pause)  # type: ignore[assignment]
        assert world.circumstances()["slow"] is slow
