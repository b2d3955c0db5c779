"""Why a request goes to an engine: the parts of a forecast, who may take it, and the sentence on what tipped it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.engines.replicas import ReplicaTable
from draftpick.policy_training.learners import learner
from draftpick.policy_training.train import fitted
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.config.sections import Objective
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.features.lexical import stored_context
from draftpick.router.load.health_signal import ineligible_reasons
from draftpick.router.load.staleness import StaleReports
from draftpick.router.monitoring.cluster_labels import cluster_names
from draftpick.router.monitoring.explain import (
    DecisionExplanation,
    Doubt,
    EngineStatus,
    _causes,
    explain_doubt,
    explain_terms,
)
from draftpick.router.online.online_learner import OnlineLearner
from draftpick.router.online.quarantine import AcceptanceMonitor
from draftpick.router.policies import load
from draftpick.router.policies.base import (
    DecisionInput,
    Forecast,
    Policy,
    Probabilities,
    Shifts,
    Terms,
    one_hot_with_floor,
)
from draftpick.router.policies.baselines import FixedPolicy, UniformPolicy
from draftpick.router.registry.active_policy import PolicyInService
from draftpick.router.types import Context, LoadTerms
from tests.fleet import FAST, REFUSING_URL, StartRouter, asked
from tests.leaks import PROMPT
from tests.policy_training.bandit import SETTING, Bandit

ARMS = ("plain", "ngram", "math")
CONTEXT = stored_context(np.zeros(2, np.float32), "features")
CONFIG = RouterConfig(default_engine="plain", seed=0)
EXPLAIN = "/v1/route/explain"
REASONS = ineligible_reasons([AcceptanceMonitor(ARMS), StaleReports(ReplicaTable(ARMS), 1.0)])
PLAIN = Terms(tau=1.0, step_s=0.02, tokens=20, prompt_s=0.0)
NGRAM = replace(PLAIN, tau=1.3)
MATH = replace(PLAIN, tau=2.0, step_s=0.022)


class Foretells(Policy):
    """Expects of each arm what it is told, and takes the one that counts least; `plain` is its default."""

    id, arms, featurizer, default_arm = "foretells", ARMS, "features", 0
    uses_load = True

    def __init__(self, *terms: Terms, failing: bool = False) -> None:
        self._terms, self._failing = terms, failing

    def terms(
        self, context: Context, shifts: Shifts | None = None, load: LoadTerms | None = None
    ) -> Sequence[Terms] | None:
        return self._terms

    def score(
        self,
        context: Context | None,
        eligible: npt.NDArray[np.bool_],
        shifts: Shifts | None = None,
        load: LoadTerms | None = None,
    ) -> tuple[Probabilities, Forecast | None]:
        if self._failing:
            raise ValueError("it fails")
        seconds = [one.weighted_s for one in self._terms]
        best = min((i for i, may in enumerate(eligible) if may), key=seconds.__getitem__)
        if eligible[0] and seconds[0] - seconds[best] <= self._terms[best].margin_s:
            best = 0
        return one_hot_with_floor(best, eligible, 0.0), Forecast(seconds, seconds)

    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        return self.score(context, eligible)[0]


def explained(
    *terms: Terms,
    loads: Sequence[int] = (0, 0, 0),
    out: dict[str, str] | None = None,
    objective: Objective = "throughput",
    **changes: Any,
) -> DecisionExplanation:
    """What is told of a decision under these terms. `out`: arms that may not take it, and why."""
    policy, why = Foretells(*terms), out or {}
    may = [arm for arm in ARMS if arm not in why]
    served = PolicyInService(policy, OnlineLearner(CONFIG.online, policy))
    decision = replace(policy.decide(DecisionInput(CONTEXT, may), np.random.default_rng(0)), **changes)
    there = {arm: EngineStatus(1, n, n, why.get(arm)) for arm, n in zip(ARMS, loads, strict=True)}
    known = explain_terms(decision, served, CONTEXT)
    return DecisionExplanation(decision, served, CONTEXT, may, there, objective, "plain", known, REASONS)


# --- the sentence ---


def test_drafts_tip_it() -> None:
    told = "math is expected to take 0.22 s, 45 % less than plain: its acceptance length is 2.0 on such"
    assert explained(PLAIN, NGRAM, MATH).deciding_reason() == f"{told} requests (plain: 1.0)"


TIPPED: list[tuple[Terms, Terms, Sequence[int], str]] = [
    (PLAIN, replace(PLAIN, step_s=0.025, tau=1.1), (0, 0, 0), "its steps take 20 ms, those of math 25 ms"),
    (PLAIN, replace(PLAIN, slowdown=3.0, objective_weight=3.0), (1, 0, 14), "it has 1 request there, math 14"),
    (PLAIN, replace(PLAIN, residual=0.3), (0, 0, 0), "as predicted, those of math 35 % slower than predicted"),
    (PLAIN, replace(PLAIN, wait_s=1.2), (0, 0, 9), "math has a queue of 1.20 s"),
    (replace(PLAIN, prompt_s=0.5, cached_prefix_s=0.3), replace(PLAIN, prompt_s=0.5), (0, 0, 0), "which saves 0.30 s"),
    (PLAIN, replace(PLAIN, prompt_s=0.5), (0, 0, 0), "its prefill takes 0 ms, that of math 0.50 s"),
]


@pytest.mark.parametrize(("baseline", "math", "loads", "message"), TIPPED)
def test_what_makes_most_of_the_difference_tips_it(
    baseline: Terms, math: Terms, loads: Sequence[int], message: str
) -> None:
    sentence = explained(baseline, NGRAM, math, loads=loads, out={"ngram": "full"}).deciding_reason()
    assert sentence.startswith("plain is expected to take")
    assert message in sentence


def test_the_default_keeps_what_another_promises_too_little_of() -> None:
    sentence = explained(PLAIN, replace(PLAIN, tau=1.05, margin_s=0.03), replace(MATH, tau=1.0)).deciding_reason()
    assert sentence == "plain, the default, serves: ngram is predicted to save only 19 ms, and a switch needs 30 ms"


HEAVY = replace(MATH, objective_weight=4.0)
BUTS: list[tuple[Terms, Sequence[int], dict[str, str], str]] = [
    (MATH, (0, 0, 0), {"math": "quarantined"}, "; math would be faster but has lost its drafts"),
    (MATH, (0, 0, 0), {"math": "no_replica"}, "; math would be faster but has no replica"),
    (HEAVY, (0, 0, 14), {}, "; math would finish sooner but would slow the 14 requests there"),
    (replace(HEAVY, slowdown=4.0), (0, 0, 14), {}, "; math would be faster but has 14 requests there"),
    (replace(MATH, tau=1.0), (0, 0, 0), {}, "(plain: 1.0)"),
]


@pytest.mark.parametrize(("math", "loads", "out", "message"), BUTS)
def test_who_would_be_faster_is_told_with_the_reason(
    math: Terms, loads: Sequence[int], out: dict[str, str], message: str
) -> None:
    sentence = explained(PLAIN, NGRAM, math, loads=loads, out=out).deciding_reason()
    assert sentence.startswith("ngram is expected to take 0.31 s, 23 % less than plain: its acceptance length is")
    assert message in sentence


def test_under_another_objective_the_longer_one_may_count_less() -> None:
    sentence = explained(replace(PLAIN, objective_weight=0.1), NGRAM, MATH, objective="cost").deciding_reason()
    assert sentence == "plain is expected to take 0.40 s, 82 % more than math, but math counts more for cost"


def test_of_a_shorter_one_that_would_slow_others_it_is_told_once() -> None:
    slow = replace(MATH, objective_weight=4.0)
    sentence = explained(PLAIN, replace(NGRAM, tau=1.0), slow, loads=(0, 0, 2), out={"ngram": "full"}).deciding_reason()
    told = "plain is expected to take 0.40 s, 82 % more than math, but math would slow the 2 requests there"
    assert sentence == told


def test_what_is_tried_out_is_told_beside_what_would_be_usual() -> None:
    shares = {"plain": 0.01, "ngram": 0.01, "math": 0.98}
    sentence = explained(PLAIN, NGRAM, MATH, arm="ngram", probabilities=shares).deciding_reason()
    assert sentence.startswith("ngram is explored (1 % of such requests); otherwise math would serve: math is expected")


def test_the_only_engine_and_a_policy_put_aside() -> None:
    only = explained(PLAIN, NGRAM, MATH, out={"ngram": "full", "math": "breaker_open"})
    assert only.deciding_reason() == "plain is the only eligible engine"
    aside = explained(PLAIN, NGRAM, MATH, policy="safe_mode:plain", arm="plain").deciding_reason()
    assert aside == "safe mode: routing was measured slower than plain alone, which serves"
    probe = explained(PLAIN, NGRAM, MATH, policy="safe_mode:plain", arm="math").deciding_reason()
    assert probe == f"{aside} most requests; math is a probe of routing"


def test_a_request_far_from_anything_known_is_told_so_with_intervals() -> None:
    made = explained(PLAIN, NGRAM, MATH)
    doubt = Doubt(0.4, True, {"math": (0.9, 1.5)})
    told = replace(made, doubt=doubt)
    assert told.deciding_reason() == f"the request is far from anything known; {made.deciding_reason()}"
    shown = told.as_json()
    assert (shown["neighbours"], shown["far"]) == (0.4, True)
    rows: Any = {row["arm"]: row["predicted"] for row in shown["arms"]}  # type: ignore[attr-defined]
    math = rows["math"]
    assert math["low_s"] == pytest.approx(math["ttft_s"] + 0.9 * math["decode_s"])
    assert math["high_s"] == pytest.approx(math["ttft_s"] + 1.5 * math["decode_s"])
    assert rows["plain"]["low_s"] is None


@pytest.mark.parametrize("kind", ["tau_cost", "calibrated"])
def test_what_a_policy_knows_of_its_doubt_is_read_from_it(kind: str) -> None:
    bandit = Bandit.draw(120, seed=1)
    policy = fitted(bandit.matrix(), learner(kind), SETTING)
    served = PolicyInService(policy, OnlineLearner(CONFIG.online, policy))
    near, odd = (
        explain_doubt(served, stored_context(v, "features")) for v in (bandit.contexts[0], 9 + bandit.contexts[0])
    )
    assert (near.far, odd.far) == (False, kind == "calibrated")
    assert set(near.intervals) == (set(policy.arms) if kind == "calibrated" else set())
    assert (near.neighbours is None) == (kind == "tau_cost")
    assert explain_doubt(served, None) == Doubt()


def test_fallbacks_say_what_was_missing() -> None:
    stale = explained(PLAIN, NGRAM, MATH, reason="fallback", policy="fixed:plain", arm="plain")
    assert "failed on this request" in stale.deciding_reason()
    all_stale = {arm: replace(standing, ineligible_reason="stale") for arm, standing in stale.standings.items()}
    assert "all load reports are outdated" in replace(stale, standings=all_stale).deciding_reason()
    assert "the request has no features" in replace(stale, context=None, terms={}).deciding_reason()


@pytest.mark.parametrize("policy", [FixedPolicy(ARMS, "math"), UniformPolicy(ARMS)])
def test_a_policy_without_times_says_so(policy: Policy) -> None:
    decision = policy.decide(DecisionInput(None, ARMS), np.random.default_rng(0))
    served = PolicyInService(policy, OnlineLearner(CONFIG.online, policy))
    there = dict.fromkeys(ARMS, EngineStatus(1, 0, 0, None))
    told = DecisionExplanation(
        decision, served, None, ARMS, there, "latency", "plain", explain_terms(decision, served, None), REASONS
    )
    assert f"policy {policy.id} predicts no times; it gives {decision.arm}" in told.deciding_reason()
    assert [row["predicted"] for row in told.as_json()["arms"]] == [None] * 3  # type: ignore[attr-defined]


seconds = st.floats(0.001, 10)
terms = st.builds(
    Terms,
    tau=st.floats(1, 8), step_s=seconds, tokens=st.floats(0, 500), prompt_s=seconds,
    cached_prefix_s=st.floats(0, 0.001), wait_s=st.floats(0, 5), slowdown=st.floats(1, 9),
    objective_weight=st.floats(0.1, 20),
    prefill_weight=st.floats(1, 20), residual=st.floats(-1, 1), margin_s=st.floats(0, 1),
)  # fmt: skip


@given(terms, terms)
def test_the_causes_add_up_to_the_difference(a: Terms, b: Terms) -> None:
    b = replace(b, tokens=a.tokens)
    assert sum(_causes(a, b).values()) == pytest.approx(b.weighted_s - a.weighted_s, rel=1e-6, abs=1e-6)


@given(
    terms,
    terms,
    terms,
    st.sampled_from(["", *REASONS]),
    st.lists(st.integers(0, 20), min_size=3, max_size=3),
)
def test_there_is_always_one_plain_sentence(a: Terms, b: Terms, c: Terms, why: str, loads: list[int]) -> None:
    told = explained(a, b, c, loads=loads, out={"ngram": why} if why else {})
    sentence = told.deciding_reason()
    assert told.decision.arm in sentence
    assert len(sentence) < 300
    assert not {"None", "nan", "{", "\n"} & set(sentence.split())


# --- the parts of a forecast ---


@cache
def shipped() -> Policy:
    return load("embedded", ("plain", "suffix"), "plain")


@given(
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.none() | st.lists(st.floats(-0.5, 0.5), min_size=4, max_size=4),
    st.none() | st.lists(st.floats(1, 5), min_size=4, max_size=4),
)
def test_the_parts_make_up_what_the_policy_decides_by(
    seed: int, sampled: bool, shift: list[float] | None, stretch: list[float] | None
) -> None:
    policy = shipped()
    vector = np.random.default_rng(seed).normal(0, 0.3, policy.dimension).astype(np.float32)  # type: ignore[attr-defined]
    vector[-12:] = [0.7 * sampled, 0.5, 0.6, 0.7, 0, 0, 0, 0, 0, 0, 1, 0]
    context, shifts = stored_context(vector, policy.featurizer or ""), None if shift is None else [shift]
    known = [9, 0, 500, 1]
    loaded = None if stretch is None else LoadTerms(stretch, [2 * x for x in stretch], stretch, known, stretch)
    forecast = policy.score(context, np.ones(4, bool), shifts, loaded)[1]
    parts = policy.terms(context, shifts, loaded)
    assert forecast is not None
    assert parts is not None
    assert [part.weighted_s for part in parts] == pytest.approx(list(forecast.seconds))
    assert [part.step_s * part.slowdown / part.tau for part in parts] == pytest.approx(list(forecast.tpot_s))
    if forecast.unloaded_arm is not None:
        assert min(range(4), key=lambda i: parts[i].unloaded_s) == forecast.unloaded_arm
    assert all(part.cached_prefix_s >= 0 and part.tau >= 1 and part.seconds > 0 for part in parts)


def test_kinds_have_names_that_differ() -> None:
    policy = shipped()
    assert policy.clusters is not None
    names = cluster_names(policy.clusters)
    assert len(names) == len(set(names)) == 2 * len(policy.clusters)
    assert cluster_names(None) == ["all requests"]


# --- over HTTP ---

TWO = {"plain": FAST, "ngram": FAST}
over_http = pytest.mark.asyncio(loop_scope="module")


async def explanation(app: Any, **fields: Any) -> dict[str, Any]:
    answer = await app.client.post(EXPLAIN, json=asked(**fields))
    assert answer.status_code == 200, answer.text
    assert PROMPT not in answer.text
    found: dict[str, Any] = answer.json()
    return found


@over_http
async def test_it_tells_all_and_sends_and_counts_nothing(router_app: StartRouter) -> None:
    app = await router_app(TWO, policy=UniformPolicy(("plain", "ngram")), featurizer=LexicalFeaturizer())
    told = await explanation(app)
    assert set(told) == {
        *("arm", "propensity", "probabilities", "policy", "reason", "tipped", "objective", "output_tokens", "kind"),
        *("neighbours", "far", "arms", "forecast", "adapter"),
    }
    row = {"arm": "plain", "probability": 0.5, "eligible": True, "predicted": None}
    assert told["arms"][0] == {**row, **asdict(EngineStatus(1, 0, 0, breakers={"closed": 1}))}
    assert app.engines["plain"].engine.started == app.engines["ngram"].engine.started == 0
    assert app.parts.demand.unmet() == {}
    assert app.parts.recent.last(1) == []


@over_http
@pytest.mark.parametrize("why", ["no_replica", "full", "breaker_open", "quarantined", "stale"])
async def test_who_may_not_take_it_is_told_with_the_reason(router_app: StartRouter, why: str) -> None:
    app = await router_app(TWO, policy=UniformPolicy(("plain", "ngram")))
    table, parts = app.replicas, app.parts
    match why:
        case "no_replica":
            table.update("ngram", [])
        case "full":
            table.by_arm["ngram"][0].in_flight = table.max_in_flight
        case "breaker_open":
            table.by_arm["ngram"][0].breaker.trip()
        case "quarantined":
            watch = parts.acceptance_monitor
            for tau in [3.0] * 60 + [1.0] * 200:
                watch.observe("ngram", tau, 32)
        case "stale":
            parts.load.staleness.suspects = frozenset({"ngram"})
    told = await explanation(app)
    plain, ngram = told["arms"]
    assert (plain["ineligible_reason"], plain["eligible"], plain["probability"]) == (None, True, 1.0)
    assert (ngram["ineligible_reason"], ngram["eligible"], ngram["probability"]) == (why, False, 0.0)
    assert told["tipped"] == "plain is the only eligible engine"


@over_http
async def test_where_none_may_all_may(router_app: StartRouter) -> None:
    app = await router_app(TWO, policy=UniformPolicy(("plain", "ngram")))
    for there in app.replicas.by_arm.values():
        there[0].breaker.trip()
    assert [row["eligible"] for row in (await explanation(app))["arms"]] == [True, True]
    app.parts.load.staleness.suspects = frozenset(TWO)
    told = await explanation(app)
    assert (told["reason"], told["arm"]) == ("fallback", "plain")
    assert "the lowest risk" in told["tipped"]


@over_http
async def test_of_an_engine_that_is_gone(router_app: StartRouter) -> None:
    app = await router_app(TWO | {"gone": REFUSING_URL}, policy=FixedPolicy(("plain", "ngram", "gone"), "gone"))
    await app.post()
    assert (await explanation(app))["arms"][2]["ineligible_reason"] == "gone"
