"""What load adds to a request's time: by objective, queue, prefix; and how a router follows its engines' reports."""

from typing import Any

import numpy as np
import pytest

from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile.profile import Profile
from draftpick.engines.replicas import ReplicaTable
from draftpick.router.config.sections import LoadConfig, Objective
from draftpick.router.features.lexical import FEATURES, stored_context
from draftpick.router.load.load_model import LoadModel
from draftpick.router.load.step_time import StepTimeModel
from draftpick.router.types import Context, Outcome

A, A2, B = "http://a", "http://a2", "http://b"
DECODED: dict[str, Any] = {"tpot_s": 0.1, "output_tokens": 15}
"""A second and a half of decoding."""


def rising(per_request: float, max_running: int = 64) -> Profile:
    """A step of 10 ms, and more for each further request."""
    rows = tuple((0.01 * (1 + per_request * (n - 1)),) for n in (1, 65))
    return Profile("b", "m", (1, 65), (0,), (rows, rows), 0.0, 0.0, max_running)


def context(temperature: float = 0.0) -> Context:
    vector = np.zeros(len(FEATURES), np.float32)
    vector[FEATURES.index("temperature")] = temperature
    return stored_context(vector, "lexical")


class Fleet:
    """Two arms; `a` takes more for each further request, `b` does not."""

    def __init__(self, **config: object) -> None:
        self.now_s = 0.0
        self.table = ReplicaTable(("a", "b"))
        self.table.update("a", [A])
        self.table.update("b", [B])
        made = LoadConfig.model_validate(config)
        self.model = LoadModel(made, self.table, {"a": 2}, clock=lambda: self.now_s)
        self.model.steps["a"] = StepTimeModel(rising(0.1))

    def holds(self, arm: str, n: int) -> None:
        self.table.by_arm[arm][0].in_flight = self.table.busy = n

    def reports(self, arm: str, running: int, waiting: int = 0) -> None:
        self.table.by_arm[arm][0].record_report(LoadReport(running, waiting), self.now_s)
        self.model.refresh()


def test_an_idle_fleet_adds_nothing() -> None:
    assert Fleet().model.terms_now(("a", "b"), context(), {}) is None


@pytest.mark.parametrize(
    ("objective", "objective_weight", "prefill_weight"),
    [("latency", 1.4, 1.0), ("throughput", 1.4 + 4 * 0.1, 5.0), ("cost", 2 * 1.4 / 5 + 0.1 * 1.4, 2.1)],
)
def test_objectives_weigh_ones_own_time_and_that_of_the_others(
    objective: Objective, objective_weight: float, prefill_weight: float
) -> None:
    fleet = Fleet(objective=objective)
    fleet.holds("a", 4)
    terms = fleet.model.terms_now(("a", "b"), context(), {})
    assert terms is not None
    assert terms.slowdown == pytest.approx((1.4, 1.0))
    assert terms.objective_weight[0] == pytest.approx(objective_weight)
    assert terms.prefill_weight[0] == pytest.approx(prefill_weight)
    assert terms == fleet.model.terms_now(("a", "b"), context(), {}, objective)


def test_a_policy_may_know_arms_that_the_fleet_has_not() -> None:
    fleet = Fleet()
    fleet.holds("a", 4)
    terms = fleet.model.terms_now(("other", "b", "a"), context(), {})
    assert terms is not None
    assert terms.slowdown == pytest.approx((1.0, 1.0, 1.4))


def test_a_full_replica_makes_one_wait() -> None:
    fleet = Fleet()
    fleet.model.steps["a"] = StepTimeModel(rising(0.0, max_running=4))
    for _ in range(10):
        fleet.model.observe("a", context(), Outcome("ok", ttft_s=1.3, overhead_s=0.3, queue_s=0.5, **DECODED), 4.0)
    fleet.holds("a", 3)
    assert fleet.model.terms_now(("a",), context(), {}).wait_s == (0.0,)  # type: ignore[union-attr]
    fleet.holds("a", 5)
    # Two of its four must end first: one ends every half second.
    terms = fleet.model.terms_now(("a",), context(), {})
    assert terms is not None
    assert terms.wait_s == pytest.approx((1.0,))
    assert (terms.slowdown, terms.prefill_weight) == (pytest.approx((1.0,)), (4.0,))  # the fourth of four, once it runs


def test_where_an_engine_lets_requests_wait_it_is_full() -> None:
    fleet = Fleet()
    fleet.model.observe("a", context(), Outcome("ok", ttft_s=0.5, **DECODED), 4.0)
    fleet.holds("a", 3)
    fleet.reports("a", running=2, waiting=1)
    assert fleet.model.terms_now(("a",), context(), {}).wait_s == pytest.approx((2.0,))  # type: ignore[union-attr]


def test_what_others_send_counts_too() -> None:
    fleet = Fleet(objective="latency")
    fleet.holds("a", 1)
    fleet.reports("a", running=5)  # one of them is ours
    fleet.holds("a", 2)
    assert fleet.model.terms_now(("a",), context(), {}).slowdown == pytest.approx((1.6,))  # type: ignore[union-attr]


def test_what_a_replica_has_read_is_told() -> None:
    fleet = Fleet()
    fleet.table.update("a", [A, A2])
    terms = fleet.model.terms_now(("a", "b"), context(), {A2: 4096})
    assert terms is not None
    assert terms.cached_prefix_tokens == (1024, 0)


def test_an_arm_that_stops_reporting_is_stale_and_one_that_never_did_is_not() -> None:
    fleet = Fleet(stale_s=5.0)
    fleet.reports("a", 0)
    fleet.now_s = 4.0
    fleet.model.refresh()
    assert not fleet.model.staleness.suspects
    fleet.now_s = 6.0
    fleet.model.refresh()
    assert fleet.model.staleness.suspects == {"a"}
    fleet.reports("a", 0)
    fleet.model.refresh()
    assert not fleet.model.staleness.suspects


def test_answers_teach_what_a_step_takes() -> None:
    fleet = Fleet()
    for running in (1, 8) * 60:
        outcome = Outcome("ok", tpot_s=0.005 * (1 + running / 8), acceptance_length=2.0)
        fleet.model.observe("b", context(), outcome, running)
    fleet.model.refresh()
    assert fleet.model.steps["b"].curves[0][8] == pytest.approx(2 / 1.125, rel=0.05)


class TestPick:
    def test_the_least_loaded_replica_is_taken(self) -> None:
        table = ReplicaTable(("a",))
        table.update("a", [A, A2])
        table.by_arm["a"][0].in_flight = 1
        assert table.pick("a").url == A2  # type: ignore[union-attr]

    @pytest.mark.parametrize("report", [LoadReport(3, 0), LoadReport(0, 3)], ids=["running", "waiting"])
    def test_requests_of_others_count(self, report: LoadReport) -> None:
        table = ReplicaTable(("a",))
        table.update("a", [A, A2])
        table.by_arm["a"][0].record_report(report, 0.0)
        table.by_arm["a"][1].in_flight = 1
        assert table.pick("a").url == A2  # type: ignore[union-attr]

    @pytest.mark.parametrize(("in_flight", "picked"), [(2, A), (3, A2)])
    def test_the_one_that_has_read_most_is_taken_unless_it_has_much_more_to_do(
        self, in_flight: int, picked: str
    ) -> None:
        table = ReplicaTable(("a",))
        table.update("a", [A, A2])
        table.by_arm["a"][0].in_flight = in_flight
        assert table.pick("a", (), {A: 1024}).url == picked  # type: ignore[union-attr]

    def test_none_is_taken_twice(self) -> None:
        table = ReplicaTable(("a",))
        table.update("a", [A])
        assert table.pick("a", table.by_arm["a"]) is None
