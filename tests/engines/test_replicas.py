"""The table of replicas: who is eligible, who is least loaded, what an update keeps."""

from contextlib import AbstractContextManager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.engines.circuit_breaker import BreakerConfig
from draftpick.engines.errors import EngineUnavailable
from draftpick.engines.load_report import LoadReport
from draftpick.engines.replicas import Lease, ReplicaTable


def table(*urls: str) -> ReplicaTable:
    """A table with the arms `a` (at `urls`) and `b` (nowhere)."""
    made = ReplicaTable(["a", "b"])
    made.update("a", urls)
    return made


def test_arms_with_a_replica_are_eligible_in_order_of_the_configuration() -> None:
    made = ReplicaTable(["b", "a", "c"])
    assert made.eligible() == []
    made.update("a", ["u1"])
    made.update("b", ["u2"])
    assert made.eligible() == ["b", "a"]


def test_requests_spread_over_the_least_loaded_replicas() -> None:
    made = table("u1", "u2", "u3")
    with made.lease("a") as first, made.lease("a") as second, made.lease("a") as third:
        assert {one.replica.url for one in (first, second, third)} == {"u1", "u2", "u3"}
        assert made.in_flight() == {"a": 3, "b": 0}
    assert made.in_flight() == {"a": 0, "b": 0}


def test_a_request_that_fails_gives_its_place_back() -> None:
    made = table("u1")
    with pytest.raises(KeyError), made.lease("a"):
        raise KeyError
    assert made.in_flight()["a"] == 0


def test_an_arm_without_a_replica_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable, match="'b' has no replica"), table("u1").lease("b"):
        pass


def test_an_update_keeps_the_counts_of_those_that_stay() -> None:
    made = table("u1", "u2")
    with made.lease("a") as held:
        made.update("a", [held.replica.url, "u3"])
        assert made.in_flight()["a"] == 1
        with made.lease("a") as other:
            assert other.replica.url == "u3"
    assert made.in_flight()["a"] == 0


def test_an_update_forgets_those_that_left() -> None:
    made = table("u1", "u2")
    made.update("a", ["u2"])
    assert made.urls() == {"a": ["u2"], "b": []}


def test_an_address_named_twice_is_one_replica() -> None:
    assert table("u1", "u1").urls()["a"] == ["u1"]


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def answers(made: ReplicaTable, ok: bool | None, *, arm: str = "a", tpot_s: float | None = None) -> str:
    """One request to an arm that ends so; the address that it went to."""
    with made.lease(arm) as lease:
        lease.ok, lease.tpot_s = ok, tpot_s
    return lease.replica.url


def test_a_replica_where_nobody_listens_is_left_alone_at_once() -> None:
    made = table("u1", "u2")
    with made.lease("a") as lease:
        lease.unreachable = True
    assert {answers(made, True) for _ in range(5)} == {"u2"}
    assert made.health()["a"] == {"u1": "open", "u2": "closed"}


def test_an_arm_whose_replicas_all_fail_is_not_eligible_until_probed() -> None:
    clock = Clock()
    made = ReplicaTable(["a", "b"], BreakerConfig(consecutive_failures=2, base_ejection_s=1), clock=clock)
    made.update("a", ["u1"])
    made.update("b", ["u2"])
    for _ in range(2):
        answers(made, False)
    assert made.eligible() == ["b"]
    clock.now = 1.0
    assert made.eligible() == ["a", "b"]
    answers(made, True)
    assert made.health()["a"]["u1"] == "closed"


def test_when_all_fail_all_are_tried_all_the_same() -> None:
    made = table("u1")
    for _ in range(3):
        answers(made, False)
    assert made.health()["a"]["u1"] == "open"
    assert made.eligible() == ["a"]
    assert answers(made, True) == "u1"


def test_what_was_tried_is_not_tried_again() -> None:
    made = table("u1", "u2")
    with made.lease("a") as first, made.lease("a", {first.replica}) as second:
        assert second.replica is not first.replica
        both = {first.replica, second.replica}
        assert made.eligible(both) == []
        with pytest.raises(EngineUnavailable), made.lease("a", both):
            pass


def test_a_full_replica_takes_no_more() -> None:
    made = ReplicaTable(["a"], max_in_flight=1)
    made.update("a", ["u1"])
    with made.lease("a"):
        assert made.eligible() == []
        assert made.reachable()
    assert made.eligible() == ["a"]


def test_a_replica_far_slower_than_its_siblings_is_left_alone() -> None:
    made = table("u1", "u2", "u3")
    times = {"u1": 0.01, "u2": 0.01, "u3": 0.1}
    for _ in range(25):
        with made.lease("a") as one, made.lease("a") as two, made.lease("a") as three:
            for lease in (one, two, three):
                lease.ok, lease.tpot_s = True, times[lease.replica.url]
    assert made.health()["a"] == {"u1": "closed", "u2": "closed", "u3": "open"}


def test_half_of_the_replicas_stay_however_slow_one_is() -> None:
    made = table("u1", "u2", "u3")
    for replica, tpot_s in zip(made.by_arm["a"], (0.01, 0.01, 0.1), strict=True):
        for _ in range(20):
            replica.record_tpot(tpot_s)
    made.by_arm["a"][0].breaker.trip()
    with made.lease("a"), made.lease("a") as slow:
        slow.ok, slow.tpot_s = True, 0.1
    assert slow.replica.url == "u3"
    assert made.health()["a"] == {"u1": "open", "u2": "closed", "u3": "closed"}


def test_health_outlives_an_update() -> None:
    made = table("u1", "u2")
    with made.lease("a") as lease:
        lease.unreachable = True
    made.update("a", ["u1", "u2", "u3"])
    assert made.health()["a"] == {"u1": "open", "u2": "closed", "u3": "closed"}


@given(st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=60), st.integers(1, 5))
def test_every_request_goes_to_a_least_loaded_replica(steps: list[int | None], num_replicas: int) -> None:
    """None: a request comes; a number: that one of the running requests ends."""
    urls = [f"u{i}" for i in range(num_replicas)]
    made = table(*urls)
    running: list[tuple[str, AbstractContextManager[Lease]]] = []
    for step in steps:
        if step is None:
            counts = {url: [other for other, _ in running].count(url) for url in urls}
            lease = made.lease("a")
            url = lease.__enter__().replica.url
            assert counts[url] == min(counts.values())
            running.append((url, lease))
        elif running:
            running.pop(step % len(running))[1].__exit__(None, None, None)
        assert made.in_flight()["a"] == len(running)


def test_requests_of_others_that_run_or_wait_at_an_engine_are_its_load() -> None:
    made = table("u1", "u2")
    busy, free = made.by_arm["a"]
    with made.lease("a") as lease:
        assert lease.replica is busy
        busy.record_report(LoadReport(running=1, waiting=3), at=0.0)
        assert (busy.foreign_in_flight, busy.total_in_flight) == (3, 4)
    with made.lease("a"), made.lease("a"), made.lease("a") as third:
        assert third.replica is free
