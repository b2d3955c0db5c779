"""Structured exploration: what it may move, to whom, what it costs, and when it is off."""

import asyncio
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.config.sections import ExplorationConfig
from draftpick.router.http.auth import digest
from draftpick.router.policies.base import Forecast, Policy, Probabilities, Shifts
from draftpick.router.policies.exploration import apply_exploration, apply_wide_exploration
from draftpick.router.types import Context, LoadTerms
from tests.fleet import CHAT, FAST, Routed, Servers, StartRouter, until
from tests.router.request.test_stream_resume import ask, engine

CONFIG = ExplorationConfig()
seconds_of = st.floats(1e-3, 1e3)
budgets = st.floats(0.0, 1.0, exclude_min=True)
configs = st.builds(
    ExplorationConfig, gamma=st.floats(1.0, 1e4), max_slowdown=st.floats(0.0, 2.0), min_probability=st.floats(0.0, 0.1)
)


@st.composite
def settings_of(draw: st.DrawFn) -> tuple[list[float], list[bool], list[float]]:
    """Shares of a policy that puts nearly all on one eligible arm, who is eligible, and predicted seconds."""
    arms = draw(st.integers(1, 16))
    may = draw(st.lists(st.booleans(), min_size=arms, max_size=arms).filter(any))
    seconds = draw(st.lists(seconds_of, min_size=arms, max_size=arms))
    own = draw(st.sampled_from([arm for arm in range(arms) if may[arm]]))
    floor = draw(st.sampled_from([0.0, 0.01]))
    shares = [floor * one for one in may]
    shares[own] += 1.0 - sum(shares)
    return shares, may, seconds


def moved(before: Sequence[float], after: Sequence[float]) -> float:
    """Probability that went from one arm to another."""
    return sum(max(b - a, 0.0) for b, a in zip(before, after, strict=True))


def given_to(slower: Sequence[float], budget: float = 1.0, config: ExplorationConfig = CONFIG) -> list[float]:
    """What arms get that are slower than the first, the policy's own, by these shares of its time."""
    arms = len(slower) + 1
    own = [1.0] + [0.0] * len(slower)
    return apply_exploration(own, [True] * arms, [1.0, *(1.0 + one for one in slower)], budget, config)[1:]


# --- spread: properties ---


@given(settings_of(), budgets, configs, st.booleans())
def test_it_is_a_distribution_over_the_eligible_arms(
    setting: tuple[list[float], list[bool], list[float]], budget: float, config: ExplorationConfig, foresees: bool
) -> None:
    shares, may, seconds = setting
    made = apply_exploration(shares, may, seconds if foresees else None, budget, config)
    assert sum(made) == pytest.approx(1.0, abs=1e-12)
    assert min(made) >= 0.0
    assert all(share == 0.0 for share, one in zip(made, may, strict=True) if not one)


@given(settings_of(), budgets, configs, st.booleans())
def test_it_never_moves_more_than_the_budget(
    setting: tuple[list[float], list[bool], list[float]], budget: float, config: ExplorationConfig, foresees: bool
) -> None:
    shares, may, seconds = setting
    assert (
        moved(shares, apply_exploration(shares, may, seconds if foresees else None, budget, config)) <= budget + 1e-12
    )


@given(settings_of(), budgets, configs)
def test_of_two_other_arms_the_faster_one_gets_no_less(
    setting: tuple[list[float], list[bool], list[float]], budget: float, config: ExplorationConfig
) -> None:
    shares, may, seconds = setting
    made = apply_exploration(shares, may, seconds, budget, config)
    own = max(range(len(shares)), key=shares.__getitem__)
    others = sorted((seconds[arm], -made[arm]) for arm in range(len(made)) if may[arm] and arm != own)
    given_away = [-share for _, share in others]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(given_away))


@given(settings_of(), budgets, configs)
def test_every_eligible_arm_keeps_the_floor_as_far_as_the_budget_allows(
    setting: tuple[list[float], list[bool], list[float]], budget: float, config: ExplorationConfig
) -> None:
    shares, may, seconds = setting
    arms = sum(may)
    made = apply_exploration(shares, may, seconds, budget, config)
    own = max(range(len(shares)), key=shares.__getitem__)
    # Each of the others wants 1 / arms or the floor at most.
    most_wanted = (arms - 1) * max(1 / arms, config.min_probability)
    least = config.min_probability * min(1.0, budget / most_wanted) if most_wanted else 0.0
    assert all(made[arm] >= least - 1e-12 for arm in range(len(made)) if may[arm] and arm != own)


@given(settings_of(), budgets, configs)
def test_it_costs_at_most_arms_over_gamma_of_the_best_time_and_what_the_floor_costs(
    setting: tuple[list[float], list[bool], list[float]], budget: float, config: ExplorationConfig
) -> None:
    shares, may, seconds = setting
    made = apply_exploration(shares, may, seconds, budget, config)
    least = min(s for s, one in zip(seconds, may, strict=True) if one)
    slower = [s / least - 1.0 if one else 0.0 for s, one in zip(seconds, may, strict=True)]
    dearer = sum((after - before) * one for after, before, one in zip(made, shares, slower, strict=True))
    assert dearer <= sum(may) / config.gamma + config.min_probability * sum(slower) + 1e-9


@given(settings_of(), budgets)
def test_without_forecasts_the_budget_is_drawn_from_all_alike(
    setting: tuple[list[float], list[bool], list[float]], budget: float
) -> None:
    shares, may, _ = setting
    made = apply_exploration(shares, may, None, budget, CONFIG)
    expected = [(1 - budget) * s + budget / sum(may) * one for s, one in zip(shares, may, strict=True)]
    assert made == pytest.approx(expected)


# --- spread: examples ---


def test_near_ties_get_more_than_far_ones() -> None:
    made = given_to([0.0, 0.01, 0.1, 0.5])
    assert made == pytest.approx([1 / 5, 1 / 6, 1 / 15, 0.005])


def test_what_is_wanted_beyond_the_budget_shrinks_but_for_the_floors() -> None:
    full = given_to([0.0, 0.1])
    half = given_to([0.0, 0.1], budget=0.5 * sum(full))
    left = (0.5 * sum(full) - 2 * CONFIG.min_probability) / (sum(full) - 2 * CONFIG.min_probability)
    assert half == pytest.approx([CONFIG.min_probability + left * (one - CONFIG.min_probability) for one in full])


def test_an_arm_that_seems_faster_than_the_policys_own_gets_most() -> None:
    # The policy may keep to another one, as where its promise is not sure enough.
    made = apply_exploration([1.0, 0.0, 0.0], [True] * 3, [1.2, 1.0, 1.25], 1.0, CONFIG)
    assert made[1] == pytest.approx(1 / 3)
    assert made[0] > made[1] > made[2]


def test_a_single_arm_keeps_all() -> None:
    assert apply_exploration([0.0, 1.0], [False, True], [1.0, 2.0], 0.3, CONFIG) == [0.0, 1.0]


@pytest.mark.parametrize("seconds", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [-1e-3, 0.0, 1.0]])
def test_answers_that_are_expected_to_take_no_time_are_no_fault(seconds: list[float]) -> None:
    # Of a single token, where nothing is known of the time to the first one.
    made = apply_exploration([1.0, 0.0, 0.0], [True] * 3, seconds, 0.1, CONFIG)
    assert sum(made) == pytest.approx(1.0)
    assert made[1] >= made[2] >= min(CONFIG.min_probability, 0.05)


# --- wide, while levels are unknown ---


@given(
    settings_of(), st.floats(0.01, 1.0), st.floats(0.0, 0.3), st.lists(st.floats(0.0, 0.5), min_size=16, max_size=16)
)
def test_wide_exploration_keeps_its_share_and_its_cost(
    setting: tuple[list[float], list[bool], list[float]], rate: float, cost: float, drawn: list[float]
) -> None:
    shares, may, seconds = setting
    config, deviations = ExplorationConfig(wide_rate=rate, wide_cost=cost), drawn[: len(shares)]
    made = apply_wide_exploration(shares, may, seconds, deviations, config)
    choice = max(range(len(shares)), key=shares.__getitem__)
    for arm, share in enumerate(shares):
        if made is not None and made[arm] > share + 1e-12:
            assert may[arm]
            assert deviations[arm] > 0
            assert seconds[arm] * math.exp(-2 * deviations[arm]) < seconds[choice]  # it could win
    if made is None:
        return
    assert sum(made) == pytest.approx(1.0, abs=1e-12)
    assert min(made) >= 0.0
    assert moved(shares, made) <= rate + 1e-12
    upper = [s * math.exp(deviation) / seconds[choice] - 1.0 for s, deviation in zip(seconds, deviations, strict=True)]
    extra = sum((b - a) * max(one, 0.0) for a, b, one in zip(shares, made, upper, strict=True) if b > a)
    assert extra <= cost + 1e-9


def test_wide_exploration_tries_what_could_win_and_most_what_seems_fastest() -> None:
    config = ExplorationConfig(wide_rate=0.3, wide_cost=1.0)
    made = apply_wide_exploration([1.0, 0, 0, 0, 0], [True] * 5, [1.0, 1.0, 1.2, 2.0, 1.1], [0.3] * 4 + [0.0], config)
    assert made is not None
    assert made[1] > made[2] > 0.0
    assert made[3:] == [0.0, 0.0]  # one cannot win, the other is known
    assert made[0] == pytest.approx(0.7)
    assert apply_wide_exploration([1.0, 0.0], [True] * 2, [1.0, 2.0], [0.3] * 2, config) is None


# --- where it is switched off ---


class Foresees(Policy):
    """Chooses `a` if it can, and expects the same of `b`."""

    id, arms = "foresees", ("a", "b")

    def probabilities(self, context: Context | None, eligible: Any) -> Probabilities:
        return np.asarray([1.0, 0.0] if eligible[0] else [0.0, 1.0])

    def score(
        self, context: Context | None, eligible: Any, shifts: Shifts | None = None, load: LoadTerms | None = None
    ) -> tuple[Probabilities, Forecast | None]:
        return self.probabilities(context, eligible), Forecast([1.0, 1.0], [0.01, 0.01])


async def explored(router: Routed, requests: int = 4, **headers: str) -> list[float]:
    """The shares that records say might have gone to another arm, by request."""
    before = router.num_attempts
    for _ in range(requests):
        assert (await router.post(headers=headers)).status_code == 200
    found = await router.records(before + requests)
    assert all(
        record.decision.probabilities["b"] == pytest.approx(record.decision.exploration_rate) for record in found
    )
    return [record.decision.exploration_rate for record in found[before:]]


@pytest.mark.asyncio(loop_scope="module")
class TestServed:
    """Through a router that is being served."""

    async def test_with_as_many_requests_in_flight_nothing_is_explored(self, router_app: StartRouter) -> None:
        busy = {"max_in_flight": 1}  # the request that is decided is in flight itself
        router = await router_app(
            {"a": FAST, "b": FAST}, policy=Foresees(), exploration={"wide_rate": 0, "rate": 0.25, **busy}
        )
        assert await explored(router) == [0.0] * 4

    async def test_below_that_many_it_goes_on(self, router_app: StartRouter) -> None:
        calm = {"max_in_flight": 2}
        router = await router_app(
            {"a": FAST, "b": FAST}, policy=Foresees(), exploration={"wide_rate": 0, "rate": 0.25, **calm}
        )
        assert await explored(router) == [0.25] * 4

    @pytest.mark.parametrize(("explore", "expected"), [(False, 0.0), (True, 0.25)])
    async def test_a_key_may_keep_out_of_it(
        self, router_app: StartRouter, tmp_path: Path, explore: bool, expected: float
    ) -> None:
        key = {"name": "team", "sha256": digest("dp-team"), "explore": explore}
        (tmp_path / "keys.yaml").write_text(yaml.safe_dump([key]))
        router = await router_app(
            {"a": FAST, "b": FAST},
            policy=Foresees(),
            exploration={"wide_rate": 0, "rate": 0.25},
            keys={"file": str(tmp_path / "keys.yaml")},
        )
        assert await explored(router, authorization="Bearer dp-team") == [expected] * 4

    async def test_a_stream_that_another_engine_continues_is_not_explored(
        self, router_app: StartRouter, servers: Servers
    ) -> None:
        seen: list[dict[str, Any]] = []
        urls = {arm: (await servers.serve(engine(seen, breaks_after=2))).url for arm in ("a", "b")}
        router = await router_app(
            urls, policy=Foresees(), exploration={"wide_rate": 0, "rate": 0.25}, resume_streams=True
        )
        for _ in range(3):
            await ask(router, CHAT)
        decisions = [record.decision for record in await router.records(6)]
        assert [(d.reason, d.exploration_rate) for d in decisions] == [("policy", 0.25), ("resumed", 0.0)] * 3

    @pytest.mark.parametrize(("explore", "asked_again"), [(False, 0), (True, 4)])
    async def test_a_key_that_keeps_out_of_it_is_not_asked_again_of_others_either(
        self, router_app: StartRouter, tmp_path: Path, explore: bool, asked_again: int
    ) -> None:
        key = {"name": "team", "sha256": digest("dp-team"), "explore": explore}
        (tmp_path / "keys.yaml").write_text(yaml.safe_dump([key]))
        keys = {"file": str(tmp_path / "keys.yaml")}
        router = await router_app({"a": FAST, "b": FAST}, policy=Foresees(), shadow={"sample_rate": 1.0}, keys=keys)
        shadows = asyncio.create_task(router.parts.shadow.run(router.parts.dispatcher.run_shadow))
        for _ in range(4):
            assert (await router.post(headers={"authorization": "Bearer dp-team"})).status_code == 200
        await until(lambda: router.num_attempts == 4 + asked_again)
        assert router.parts.shadow.requests_sent == asked_again
        shadows.cancel()
