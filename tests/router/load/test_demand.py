import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.load.demand import Demand, Scalable, replicas


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_in_flight_are_how_many_come_times_how_long_they_take() -> None:
    clock = Clock()
    demand = Demand(("a", "b"), clock)
    for _ in range(3000):  # ten a second for five minutes
        clock.now += 0.1
        demand.decisions["a", "b"] += 1
    assert demand.in_flight({"a": 2.0, "b": 1.0}) == pytest.approx({"a": 20.0, "b": 0.0}, rel=0.02)


def test_how_much_more_an_arm_is_wished_for() -> None:
    demand = Demand(("a", "b"), Clock())
    for chosen in ("a",) * 10 + ("b",) * 3:
        demand.decisions["a", chosen] += 1
    assert demand.unmet() == pytest.approx({"a": 0.3})


def test_an_arm_that_the_fleet_does_not_have_is_not_wished_for() -> None:
    demand = Demand(("a", "b"), Clock())
    for chosen in ("a", "b"):
        demand.decisions["of a policy for more engines", chosen] += 1
    assert demand.unmet() == pytest.approx({"a": 0.0, "b": 0.0})


def test_an_arm_that_has_served_none_takes_what_the_slowest_does() -> None:
    clock = Clock()
    demand = Demand(("a", "b"), clock)
    demand.decisions["a", "b"] += 1
    assert demand.in_flight({"a": 0.0, "b": 3.0})["a"] == pytest.approx(3.0 / 30)


def test_what_was_wished_is_forgotten() -> None:
    clock = Clock()
    demand = Demand(("a",), clock)
    demand.decisions["a", "a"] += 1
    assert demand.unmet() == {"a": 0.0}
    clock.now = 600.0
    assert demand.in_flight({"a": 1.0})["a"] == pytest.approx(0.0, abs=1e-6)
    assert demand.unmet() == {}


def fleet(**most: int) -> dict[str, Scalable]:
    return {arm: Scalable(1, 1, n, 8.0) for arm, n in most.items()}


def test_each_arm_gets_what_it_has_to_do() -> None:
    assert replicas({"a": 20.0, "b": 3.0}, fleet(a=8, b=8), None) == {"a": 3, "b": 1}


def test_no_arm_gets_more_than_its_most_or_less_than_its_least() -> None:
    assert replicas({"a": 200.0}, fleet(a=4, b=8), None) == {"a": 4, "b": 1}


def test_a_budget_is_shared_by_what_each_has_to_do() -> None:
    assert replicas({"a": 80.0, "b": 40.0}, fleet(a=20, b=20), 6) == {"a": 4, "b": 2}


def test_an_engine_that_takes_more_accelerators_must_fit() -> None:
    made = {"a": Scalable(4, 1, 8, 8.0), "b": Scalable(1, 1, 8, 8.0)}
    assert replicas({"a": 80.0, "b": 40.0}, made, 8) == {"a": 1, "b": 4}


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1e4), max_size=4),
    st.dictionaries(
        st.sampled_from("abcd"),
        st.builds(lambda k, low, more, t: Scalable(k, low, low + more, t), st.integers(1, 8), st.integers(0, 2),
                  st.integers(0, 20), st.floats(0.5, 64)),
        min_size=1,
    ),
    st.integers(1, 40) | st.none(),
)  # fmt: skip
def test_bounds_and_budget_always_hold(demand: dict[str, float], made: dict[str, Scalable], budget: int | None) -> None:
    given = replicas(demand, made, budget)
    assert all(made[arm].min_replicas <= n <= made[arm].max_replicas for arm, n in given.items())
    least = sum(one.min_replicas * one.accelerators for one in made.values())
    taken = sum(n * made[arm].accelerators for arm, n in given.items())
    assert budget is None or taken <= max(budget, least)
