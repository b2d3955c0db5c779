"""Which replica of an engine a request goes to: by what it costs all requests there."""

from contextlib import ExitStack

import numpy as np
import pytest

from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile.profile import GREEDY, SAMPLED, Profile
from draftpick.engines.replicas import Replica, ReplicaTable
from draftpick.router.config.sections import LoadConfig
from draftpick.router.load.load_model import LoadModel
from draftpick.router.types import Context, Outcome

ARMS = ("pool/none", "pool/general", "pool/math")
GREEDY_S, SAMPLED_S = ((0.010,), (0.012,)), ((0.020,), (0.040,))
PROFILE = Profile(
    build="b", machine="m", batches=(1, 8), contexts=(0,), step_s=(GREEDY_S, SAMPLED_S), prefill_s=0.01,
    prefill_s_per_token=0.001, max_running=8, drafter_s={"general": 0.006, "math": 0.006},
)  # fmt: skip


class Fleet:
    """Two replicas of an engine, and requests that run there."""

    def __init__(self, arms: tuple[str, ...] = ARMS) -> None:
        self.table = ReplicaTable(arms)
        self.table.update("pool", ["u1", "u2"])
        self.load, self.stack = LoadModel(LoadConfig(), self.table), ExitStack()
        self.load.use_profile("pool", PROFILE)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return tuple(self.table.by_arm[self.table.arms[0]])

    def place(self, arm: str, mode: int = GREEDY, prefix: dict[str, int] | None = None) -> str:
        """Start a request; returns the address of its replica."""
        return self.stack.enter_context(self.table.lease(arm, (), prefix or {}, mode)).replica.url


def test_sampled_requests_meet_and_greedy_ones_meet() -> None:
    fleet = Fleet()
    first = fleet.place("pool/none", SAMPLED)
    other = fleet.place("pool/none", GREEDY)
    assert first != other
    assert [fleet.place("pool/none", GREEDY) for _ in range(2)] == [other] * 2
    assert fleet.place("pool/none", SAMPLED) == first


def test_requests_of_one_head_meet() -> None:
    fleet = Fleet()
    general, math = fleet.place("pool/general"), fleet.place("pool/math")
    assert general != math
    assert [fleet.place("pool/math"), fleet.place("pool/general")] == [math, general]


def test_an_idle_replica_is_better_than_company() -> None:
    fleet = Fleet()
    assert fleet.place("pool/math") != fleet.place("pool/math")


def test_company_is_left_before_a_replica_is_full() -> None:
    fleet = Fleet()
    places = [fleet.place("pool/none", SAMPLED) for _ in range(12)]
    assert sorted(places.count(url) for url in ("u1", "u2")) == [6, 6]


def test_a_cached_prefix_decides_if_it_saves_more_than_the_company_there_costs() -> None:
    """Greedy among sampled requests, a step takes 10 ms more, of which an answer has 50."""
    fleet = Fleet()
    sampled, greedy = fleet.place("pool/none", SAMPLED), fleet.place("pool/none", GREEDY)
    assert fleet.place("pool/none", GREEDY, {sampled: 400}) == greedy
    assert fleet.place("pool/none", GREEDY, {sampled: 8192}) == sampled


def test_the_length_of_answers_is_learned_for_what_a_prefix_saves() -> None:
    fleet = Fleet()
    sampled = fleet.place("pool/none", SAMPLED)
    greedy = fleet.place("pool/none", GREEDY)
    short = Outcome("ok", tpot_s=0.01, output_tokens=2, acceptance_length=2.0)
    for _ in range(300):
        fleet.load.observe("pool/none", None, short, 1.0)
    assert fleet.load.num_steps["pool"] == pytest.approx(1.0, abs=0.2)
    assert fleet.place("pool/none", GREEDY, {sampled: 400}) == sampled
    assert fleet.place("pool/none", GREEDY) == greedy


def test_without_a_cost_a_cached_prefix_decides_among_replicas_of_nearly_equal_load() -> None:
    table = ReplicaTable(("a",))
    table.update("a", ["u1", "u2"])
    with ExitStack() as stack:
        for _ in range(2):
            assert stack.enter_context(table.lease("a", (), {"u2": 4096})).replica.url == "u2"
        assert stack.enter_context(table.lease("a", (), {"u2": 4096})).replica.url == "u2"
        assert stack.enter_context(table.lease("a", (), {"u2": 4096})).replica.url == "u1"


def test_what_ends_leaves_no_trace() -> None:
    fleet = Fleet()
    fleet.place("pool/math", SAMPLED)
    fleet.stack.close()
    assert all(not any(one.by_mode) and not any(one.by_arm.values()) for one in fleet.replicas)


def test_the_requests_of_other_routers_count_as_their_engines_report_them() -> None:
    fleet = Fleet()
    one, other = fleet.replicas
    one.record_report(LoadReport(2, 0, sampled=2, active={"general": 2}), 0.0)
    other.record_report(LoadReport(2, 0, sampled=0, active={"math": 2}), 0.0)
    assert fleet.place("pool/general", SAMPLED) == one.url
    assert fleet.place("pool/math", GREEDY) == other.url


def test_without_a_profile_the_least_loaded_replica_serves() -> None:
    table = ReplicaTable(("a",))
    table.update("a", ["u1", "u2"])
    LoadModel(LoadConfig(), table)
    with table.lease("a", mode=SAMPLED) as first, table.lease("a", mode=SAMPLED) as second:
        assert {first.replica.url, second.replica.url} == {"u1", "u2"}


def test_a_policy_sees_what_a_head_would_add_to_a_step() -> None:
    """Where math runs already, one more request of math lengthens steps less than one of general."""
    fleet = Fleet()
    for _ in range(2):
        fleet.place("pool/math")
    context = Context(np.zeros(1, np.float32), "f")
    terms = fleet.load.terms_now(ARMS, context, {}, "throughput")
    assert terms is not None
    alone_s = np.asarray([0.010, 0.016, 0.016])
    seconds = np.asarray(terms.objective_weight) * alone_s
    assert seconds[2] < seconds[1]
    assert terms.slowdown[2] == pytest.approx((0.010 + 0.002 / 7 + 0.006 * 1.15) / 0.016, rel=1e-6)
