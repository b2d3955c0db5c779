"""Fleets in the simulator, against closed forms and steps that can be counted by hand."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.simulator.arrivals import poisson
from draftpick.policy_training.simulator.engine import Arm, Mode
from draftpick.policy_training.simulator.fleet import Fleet
from draftpick.policy_training.simulator.routing import LeastLoaded, strategy
from draftpick.policy_training.simulator.simulate import Run, interval, simulate
from tests.policy_training.simulated import arm, profile, requests, with_schedule


def alone(one: Arm, *arrivals: float, tau: float = 1.0, tokens: float = 101.0, prompt: float = 100.0) -> Run:
    made = requests(arrivals, {one.modes[0].column: tau}, tokens, prompt)
    return simulate(Fleet((one,), (1,)), made, LeastLoaded())


@pytest.mark.parametrize("lock_step", [True, False])
@pytest.mark.parametrize(("tau", "steps"), [(1.0, 100), (2.5, 40), (3.0, 34)])
def test_a_request_alone_takes_its_prefill_and_its_steps(lock_step: bool, tau: float, steps: int) -> None:
    run = alone(arm("a", per_token=1e-4, lock_step=lock_step), 5.0, tau=tau)
    assert run.ttft_s == pytest.approx([0.03])
    assert run.latency_s == pytest.approx([0.03 + steps * 0.01])
    assert run.busy_s == pytest.approx(run.latency_s)


@pytest.mark.parametrize("lock_step", [True, False])
def test_an_answer_of_one_token_ends_with_its_prefill(lock_step: bool) -> None:
    run = alone(arm("a", lock_step=lock_step), 0.0, tokens=1.0)
    assert run.latency_s == run.ttft_s == pytest.approx([0.02])
    assert "tpot_s/mean" not in run.figures()


def test_a_request_joins_at_the_end_of_a_step_and_its_prefill_brings_the_others_one_step_further() -> None:
    # The first: prefill to 0.02, then 4 steps. The second comes within the second step, which ends at 0.04, and has
    # its prefill to 0.065: 0.02, and what a step of two takes longer than one of one.
    run = alone(arm("a", 0.01, 0.005), 0.0, 0.033, tokens=5.0)
    assert run.first_s == pytest.approx([0.02, 0.065])
    # The third step of the first was in there: one of two requests is left for it, and three alone for the second.
    assert run.finish_s == pytest.approx([0.08, 0.08 + 3 * 0.01])


def test_a_mock_engine_steps_by_request_and_a_prefill_slows_nobody() -> None:
    run = alone(arm("a", 0.01, 0.01, lock_step=False), 0.0, 0.02, tokens=5.0)
    assert run.first_s == pytest.approx([0.02, 0.04])
    assert run.finish_s == pytest.approx([0.10, 0.12 - 0.01])


def test_more_requests_than_may_run_wait_in_order_of_arrival() -> None:
    run = alone(arm("a", most=1), 0.0, 0.1, 0.2)
    assert run.finish_s == pytest.approx([1.02, 2.04, 3.06])
    assert run.ttft_s == pytest.approx([0.02, 0.94, 1.86])


def test_prompts_that_exceed_the_tokens_of_a_step_are_prefilled_in_the_next_one() -> None:
    one = arm("a", per_token=1e-3, prefill_s=0.0, prefill_tokens=250)
    run = alone(one, 0.0, 0.05, 0.05, 0.05, tokens=500.0)
    assert run.ttft_s == pytest.approx([0.1, 0.25, 0.25, 0.35])


def test_one_at_a_time_waits_as_m_d_1() -> None:
    service, load = 0.02 + 100 * 0.01, 0.7
    at_s = poisson(60_000, load / service, np.random.default_rng(1))
    run = alone(arm("a", most=1), *at_s)
    expected = service * (1 + load / (2 * (1 - load)))
    assert run.latency_s.mean() == pytest.approx(expected, rel=0.03)
    assert run.figures()["utilisation/a"] == pytest.approx(load, rel=0.02)


def test_a_step_that_is_flat_makes_a_replica_that_serves_all_at_once() -> None:
    at_s = poisson(2000, 5.0, np.random.default_rng(0))
    run = alone(arm("a", prefill_s=0.0, most=500), *at_s)
    assert run.ttft_s.max() <= 0.02 + 1e-9  # the step that runs, and its own
    assert run.latency_s == pytest.approx(run.ttft_s + 1.0)  # nobody is slowed, however many run


def test_a_scheduled_engine_changes_its_draft_length_with_the_batch() -> None:
    long, none = profile(0.02, 0.05, prefill_s=0.0), profile(0.01, 0.0, prefill_s=0.0)
    made = requests([0.0, 1.0], {"long": 4.0, "none": 1.0}, [301.0, 101.0])
    one = with_schedule("s", {"long": long, "none": none}, made)
    assert one.schedule[:3] == (0, 1, 1)
    run = simulate(Fleet((one,), (1,)), made, LeastLoaded())
    # 50 steps alone bring 200 tokens, and one with the prefill, drafted before, 4. Two run without drafts; the last
    # 4 tokens of the second are one drafted step.
    assert run.first_s == pytest.approx([0.0, 1.07])
    assert run.finish_s == pytest.approx([1.07 + 0.96, 2.03 + 0.02])


def test_a_schedule_is_never_slower_than_its_draft_lengths_for_the_traffic_it_is_made_for() -> None:
    profiles = {"k4": profile(0.013, 0.002, most=64), "k0": profile(0.01, 0.0004, most=64)}
    rng = np.random.default_rng(0)
    tau = {"k4": rng.uniform(1.5, 3.5, 3000), "k0": np.ones(3000)}
    fleets = [
        with_schedule("s", profiles, requests(np.zeros(3000), tau)),
        *(Arm("s", (Mode(p, name),)) for name, p in profiles.items()),
    ]
    for rate in (1.0, 6.0, 40.0):
        made = requests(poisson(3000, rate, np.random.default_rng(1)), tau)
        ours, *others = [simulate(Fleet((one,), (1,)), made, LeastLoaded()).latency_s.mean() for one in fleets]
        assert ours <= 1.02 * min(others)


@given(
    seed=st.integers(0, 1000),
    replicas=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    most=st.integers(1, 5),
    lock_step=st.booleans(),
    crowd=st.integers(1, 60),
)
def test_every_request_ends_once_after_its_first_token(
    seed: int, replicas: tuple[int, int], most: int, lock_step: bool, crowd: int
) -> None:
    rng = np.random.default_rng(seed)
    arms = tuple(arm(name, 0.01, rise, most=most, lock_step=lock_step) for name, rise in (("a", 0.001), ("b", 0.0)))
    at_s = np.sort(np.concatenate([np.full(crowd, 3.0), rng.uniform(0, 20, 60)]))
    tau = {name: rng.uniform(1, 4, len(at_s)) for name in "ab"}
    made = requests(at_s, tau, rng.integers(1, 200, len(at_s)))
    run = simulate(Fleet(arms, replicas), made, LeastLoaded())
    assert len(run.arm) == len(made)
    assert set(run.arm.tolist()) <= {0, 1}
    assert (run.ttft_s >= 0.02 - 1e-9).all()
    assert (run.finish_s >= run.first_s - 1e-9).all()
    least = run.first_s + (made.output_tokens - 1) / made.tau[np.arange(len(made)), run.arm] * 0.01
    assert (run.finish_s >= least - 1e-6).all()
    shares = [value for name, value in run.figures().items() if name.startswith("share/")]
    assert sum(shares) == pytest.approx(1.0)
    assert (run.busy_s <= np.asarray(replicas) * run.finish_s.max() + 1e-9).all()
    assert run.request_s.sum() <= run.latency_s.sum() + 1e-6


def test_more_load_takes_longer() -> None:
    tau = np.random.default_rng(0).uniform(1, 3, 3000)
    fleet = Fleet((arm("a", 0.01, 0.002, most=8),), (4,))
    clock = poisson(3000, 1.0, np.random.default_rng(0))
    means = [
        simulate(fleet, requests(clock / r, {"a": tau}), LeastLoaded()).latency_s.mean() for r in (0.1, 1, 4, 16, 64)
    ]
    assert (np.diff(means) > 0).all()


def test_the_same_requests_end_in_the_same_way() -> None:
    at_s = poisson(500, 3.0, np.random.default_rng(7))
    made = requests(at_s, {"a": 2.0, "b": 1.5})
    fleet = Fleet((arm("a", 0.01, 0.01), arm("b")), (2, 1))
    first, again = (simulate(fleet, made, strategy("throughput", fleet, made, made.tau)) for _ in range(2))
    assert (first.arm == again.arm).all()
    assert (first.finish_s == again.finish_s).all()


def test_a_thousand_replicas_are_as_quick_as_a_few() -> None:
    at_s = poisson(20_000, 1000.0, np.random.default_rng(0))
    made = requests(at_s, {"a": 2.0, "b": 1.5})
    fleet = Fleet((arm("a", 0.01, 0.001), arm("b")), (600, 400))
    began = time.perf_counter()
    run = simulate(fleet, made, LeastLoaded())
    assert time.perf_counter() - began < 10.0
    shares = np.bincount(run.arm) / len(made)
    assert run.figures()["running/a"] < 3
    assert (shares > 0.2).all()


def test_the_least_loaded_replica_takes_a_request() -> None:
    run = simulate(Fleet((arm("a", 0.01, 0.01, prefill_s=0.0),), (3,)), requests([0.0] * 6, {"a": 1.0}), LeastLoaded())
    assert run.finish_s == pytest.approx([2.0] * 6, rel=0.02)
    assert run.figures()["running/a"] == pytest.approx(2.0, rel=0.02)


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(DatasetError, match="at least one replica"):
        Fleet((arm("a"),), (0,))
    with pytest.raises(DatasetError, match="unknown engine b"):
        Fleet.from_counts({"a": arm("a")}, {"b": 1})
    made = requests([0.0], {"a": 1.0})
    with pytest.raises(DatasetError, match="no acceptance lengths of 'b'"):
        simulate(Fleet((arm("b"),), (1,)), made, LeastLoaded())
    with pytest.raises(DatasetError, match="1 or more"):
        requests([0.0], {"a": 0.5})
    with pytest.raises(DatasetError, match="order of arrival"):
        requests([1.0, 0.0], {"a": 1.0})
    with pytest.raises(DatasetError, match="output token"):
        requests([0.0], {"a": 1.0}, 0.0)


def test_the_cost_of_context_and_of_sampling_counts() -> None:
    base = profile(prefill_s=0.0)
    steps = (((0.01, 0.02),) * 2, ((0.03, 0.04),) * 2)
    one = Arm.from_profile("a", replace(base, contexts=(0, 1000), step_s=steps))
    greedy = alone(one, 0.0, prompt=450.0)
    assert greedy.latency_s == pytest.approx([100 * 0.015])
    made = replace(requests([0.0], {"a": 1.0}, prompt=1450.0), sampled=np.asarray([True]))
    sampled = simulate(Fleet((one,), (1,)), made, LeastLoaded())
    assert sampled.latency_s == pytest.approx([100 * 0.045])


def test_one_sampled_request_sends_all_of_its_batch_through_the_sampler() -> None:
    base = profile(prefill_s=0.0)
    one = Arm.from_profile("a", replace(base, step_s=(((0.01,),) * 2, ((0.03,),) * 2)))
    made = replace(requests([0.0, 0.0], {"a": 1.0}, [11.0, 101.0]), sampled=np.asarray([True, False]))
    run = simulate(Fleet((one,), (1,)), made, LeastLoaded())
    assert run.finish_s == pytest.approx([10 * 0.03, 10 * 0.03 + 91 * 0.01])  # the second came a step later


def test_an_interval_over_seeds() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == pytest.approx(
        (2.0, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), rel=1e-3
    )
    assert interval([1.5]).low == 1.5
