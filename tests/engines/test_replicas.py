"""The table of replicas: who is eligible, who is least loaded, what an update keeps."""

from contextlib import AbstractContextManager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import EngineUnavailable
from engines.replicas import Replica, ReplicaTable


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
        assert {first.url, second.url, third.url} == {"u1", "u2", "u3"}
        assert made.load() == {"a": 3, "b": 0}
    assert made.load() == {"a": 0, "b": 0}


def test_a_request_that_fails_gives_its_place_back() -> None:
    made = table("u1")
    with pytest.raises(KeyError), made.lease("a"):
        raise KeyError
    assert made.load()["a"] == 0


def test_an_arm_without_a_replica_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable, match="'b' has no replica"), table("u1").lease("b"):
        pass


def test_an_update_keeps_the_counts_of_those_that_stay() -> None:
    made = table("u1", "u2")
    with made.lease("a") as held:
        made.update("a", [held.url, "u3"])
        assert made.load()["a"] == 1
        with made.lease("a") as other:
            assert other.url == "u3"
    assert made.load()["a"] == 0


def test_an_update_forgets_those_that_left() -> None:
    made = table("u1", "u2")
    made.update("a", ["u2"])
    assert made.urls() == {"a": ["u2"], "b": []}


def test_an_address_named_twice_is_one_replica() -> None:
    assert table("u1", "u1").urls()["a"] == ["u1"]


def test_a_discarded_replica_stays_away_until_it_is_named_again() -> None:
    made = table("u1")
    with made.lease("a") as replica:
        made.discard("a", replica)
        assert made.eligible() == []
    made.update("a", ["u1"])
    assert made.eligible() == ["a"]
    assert made.load()["a"] == 0


def test_discarding_what_an_update_has_replaced_changes_nothing() -> None:
    made = table("u1")
    with made.lease("a") as replica:
        made.update("a", [])
        made.update("a", ["u1"])
        made.discard("a", replica)
    assert made.eligible() == ["a"]


@given(st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=60), st.integers(1, 5))
def test_every_request_goes_to_a_least_loaded_replica(steps: list[int | None], num_replicas: int) -> None:
    """None: a request comes; a number: that one of the running requests ends."""
    urls = [f"u{i}" for i in range(num_replicas)]
    made = table(*urls)
    running: list[tuple[str, AbstractContextManager[Replica]]] = []
    for step in steps:
        if step is None:
            counts = {url: [other for other, _ in running].count(url) for url in urls}
            lease = made.lease("a")
            url = lease.__enter__().url
            assert counts[url] == min(counts.values())
            running.append((url, lease))
        elif running:
            running.pop(step % len(running))[1].__exit__(None, None, None)
        assert made.load()["a"] == len(running)
