"""The table of replicas: who is eligible, who is least loaded, what an update keeps."""

from contextlib import AbstractContextManager, ExitStack

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


@pytest.mark.parametrize(
    ("loads", "prefixes", "expected"),
    [
        ((0, 2), {"u2": 1024}, "u2"),
        ((0, 3), {"u2": 1024}, "u1"),
        ((12, 15), {"u2": 1024}, "u2"),  # a quarter more
        ((12, 16), {"u2": 1024}, "u1"),
        ((0, 1), {"u1": 1024, "u2": 2048}, "u2"),
        ((1, 0), {"u1": 1024, "u2": 1024}, "u2"),
        ((1, 0), {"u3": 1024}, "u2"),
    ],
)
def test_a_cached_prefix_decides_among_replicas_of_nearly_equal_load(
    loads: tuple[int, int], prefixes: dict[str, int], expected: str
) -> None:
    made = table("u1", "u2")
    for replica, load in zip(made.by_arm["a"], loads, strict=True):
        replica.foreign_in_flight = load
    picked = made.pick("a", cached_prefix=prefixes)
    assert picked is not None
    assert picked.url == expected


def test_a_mean_of_times_is_of_all_at_first_and_then_of_the_latest() -> None:
    replica = table("u1").by_arm["a"][0]
    for tpot_s in (0.01, 0.03, 0.05):
        replica.record_tpot(tpot_s)
    assert replica.tpot_s == pytest.approx(0.03)
    for _ in range(17):
        replica.record_tpot(0.03)
    replica.record_tpot(0.13)
    assert replica.tpot_s == pytest.approx(0.04)
    assert replica.num_times == 21


@pytest.mark.parametrize(
    ("before", "slow_s", "ejected"), [(19, 0.041, True), (18, 0.041, False), (19, 0.04, False)], ids=str
)
def test_a_replica_is_slow_by_its_last_answers_and_those_of_two_siblings(
    before: int, slow_s: float, ejected: bool
) -> None:
    made = table("u1", "u2", "u3")
    for replica, tpot_s in zip(made.by_arm["a"], (0.01, 0.01, slow_s), strict=True):
        for _ in range(before if replica.url == "u3" else 20):
            replica.record_tpot(tpot_s)
    tried = set(made.by_arm["a"][:2])
    with ExitStack() as stack:
        for _ in range(1 + ejected):  # another answer is on its way when it is ejected
            lease = stack.enter_context(made.lease("a", tried))
            lease.ok, lease.tpot_s = True, slow_s
    assert (made.health()["a"]["u3"] == "open") is ejected
    assert lease.replica.breaker.opened == ejected


def test_one_sibling_is_no_measure() -> None:
    made = table("u1", "u2")
    for replica, tpot_s in zip(made.by_arm["a"], (0.01, 1.0), strict=True):
        for _ in range(30):
            replica.record_tpot(tpot_s)
    with made.lease("a", {made.by_arm["a"][0]}) as lease:
        lease.ok, lease.tpot_s = True, 1.0
    assert made.health()["a"]["u2"] == "closed"


def test_a_sibling_with_few_answers_is_no_measure() -> None:
    made = table("u1", "u2", "u3")
    for replica, tpot_s, number in zip(made.by_arm["a"], (0.01, 0.01, 1.0), (20, 19, 30), strict=True):
        for _ in range(number):
            replica.record_tpot(tpot_s)
    with made.lease("a", set(made.by_arm["a"][:2])) as lease:
        lease.ok, lease.tpot_s = True, 1.0
    assert made.health()["a"]["u3"] == "closed"


def test_why_an_engine_takes_no_request() -> None:
    made = ReplicaTable(["a", "b"], max_in_flight=1, clock=Clock())
    assert made.unavailable_reason("a") == "no_replica"
    made.update("a", ["u1", "u2"])
    made.update("b", ["u3"])
    assert made.unavailable_reason("a") is None
    with made.lease("a"):
        assert made.unavailable_reason("a") is None
        with made.lease("a"):
            assert made.unavailable_reason("a") == "full"
    for _ in range(3):
        for replica in made.by_arm["a"]:
            with made.lease("a", {one for one in made.by_arm["a"] if one is not replica}) as lease:
                lease.ok = False
    assert made.unavailable_reason("a") == "breaker_open"
    made.by_arm["a"][0].unreachable = True
    assert made.unavailable_reason("a") == "breaker_open"
    made.by_arm["a"][1].unreachable = True
    assert made.unavailable_reason("a") == "gone"
    assert made.reachable()
    made.by_arm["b"][0].unreachable = True
    assert not made.reachable()


def test_panic_asks_none_that_is_unreachable_full_or_tried() -> None:
    made = ReplicaTable(["a"], max_in_flight=2)
    made.update("a", ["u1", "u2"])
    one, other = made.by_arm["a"]
    for replica in (one, other):
        replica.breaker.trip()
    one.unreachable = True
    assert made.pick("a") is other
    assert made.eligible({other}) == []
    other.in_flight = 2
    assert made.eligible() == []
    assert made.pick("a") is None


def test_what_a_replica_has_answered_lately() -> None:
    clock = Clock()
    made = ReplicaTable(["a"], clock=clock)
    made.update("a", ["u1"])
    replica = made.by_arm["a"][0]
    assert not replica.answered_within(1000.0)
    clock.now = 5.0
    answers(made, ok=False)
    assert not replica.answered_within(1000.0)
    answers(made, ok=True)
    clock.now = 7.0
    assert [replica.answered_within(seconds) for seconds in (1.9, 2.0, 2.1)] == [False, False, True]


@pytest.mark.parametrize(("tokens_per_s", "busy"), [(0.0, False), (0.5, True)])
def test_an_engine_that_reports_tokens_is_busy(tokens_per_s: float, busy: bool) -> None:
    clock = Clock()
    made = ReplicaTable(["a"], clock=clock)
    made.update("a", ["u1"])
    replica = made.by_arm["a"][0]
    replica.record_report(LoadReport(running=1, waiting=0, tokens_per_s=tokens_per_s), at=5.0)
    clock.now = 7.0
    assert [replica.answered_within(seconds) for seconds in (2.0, 2.1)] == [False, busy]


def test_a_lease_tells_the_requests_of_all_and_gives_every_count_back() -> None:
    made = ReplicaTable(["pool/x", "pool/y"])
    made.update("pool", ["u1"])
    (replica,) = made.by_arm["pool/x"]
    replica.record_report(LoadReport(running=2, waiting=1), at=0.0)
    assert made.arms_of("pool") == ["pool/x", "pool/y"]
    assert not made.arms_of("x")
    with made.lease("pool/x") as first, made.lease("pool/y", mode=1) as second:
        assert (first.in_flight, second.in_flight, replica.total_in_flight) == (4, 5, 5)
        assert (replica.by_arm, replica.by_mode[:2]) == ({"pool/x": 1, "pool/y": 1}, [1, 1])
        assert (made.in_flight(), made.busy) == ({"pool/x": 1, "pool/y": 1}, 2)
    assert (replica.by_arm, replica.by_mode[:2]) == ({"pool/x": 0, "pool/y": 0}, [0, 0])
    assert (made.in_flight(), made.busy, replica.total_in_flight) == ({"pool/x": 0, "pool/y": 0}, 0, 3)


def test_fewer_requests_than_the_routers_own_are_none_of_others() -> None:
    made = table("u1")
    with made.lease("a") as lease:
        lease.replica.record_report(LoadReport(running=0, waiting=0), at=0.0)
        assert lease.replica.foreign_in_flight == 0


def test_a_replica_that_answers_again_is_probed_by_the_next_request() -> None:
    made = ReplicaTable(["a"], BreakerConfig(base_ejection_s=30), clock=Clock())
    made.update("a", ["u1"])
    with made.lease("a") as lease:
        lease.unreachable = True
    assert not made.reachable()
    lease.replica.mark_reachable()
    assert made.reachable()
    assert made.health()["a"]["u1"] == "half_open"
    with made.lease("a") as probe:
        probe.ok = True
    assert probe.probe
    assert made.health()["a"]["u1"] == "closed"


@pytest.mark.parametrize(("out", "ejected"), [(1, True), (2, False)])
def test_half_of_the_replicas_are_left_after_an_ejection(out: int, ejected: bool) -> None:
    made = table("u1", "u2", "u3", "u4")
    *others, slow = made.by_arm["a"]
    for replica in made.by_arm["a"]:
        for _ in range(20):
            replica.record_tpot(1.0 if replica is slow else 0.01)
    for replica in others[:out]:
        replica.breaker.trip()
    with made.lease("a", set(others)) as lease:
        lease.ok, lease.tpot_s = True, 1.0
    assert (slow.breaker.state == "open") is ejected
