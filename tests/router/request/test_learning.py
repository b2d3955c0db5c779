"""What the answers of a policy teach it, and what the load terms of a decision follow."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from draftpick.engines.mock.app import MockSpec
from draftpick.engines.pool.report import DrafterReport
from draftpick.router.config.sections import CorrectionConfig
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.http.auth import digest
from draftpick.router.load.step_time import StepTimeModel
from draftpick.router.online.residual_correction import ResidualCorrection
from draftpick.router.policies.base import Forecast, Probabilities, Shifts
from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.request.learning import AttemptLearning
from draftpick.router.request.predictions import Predictions
from draftpick.router.types import Attempt, Context, Decision, LoadTerms, Outcome
from tests.fleet import FAST, Routed, StartRouter, until
from tests.router.load.test_load_model import rising

pytestmark = pytest.mark.asyncio(loop_scope="module")

FEATURES = LexicalFeaturizer()
CORRECTED = {"correction": {"enabled": True}}


class Predicts(FixedPolicy):
    """Chooses `a`, would choose `b` without load, and predicts a time per token."""

    uses_load = True

    def __init__(self, tpot_s: float = 0.01) -> None:
        super().__init__(("a", "b"), "a")
        self.id, self.featurizer, self._tpot_s = "predicts", FEATURES.id, tpot_s

    def score(
        self,
        context: Context | None,
        eligible: npt.NDArray[np.bool_],
        shifts: Shifts | None = None,
        load: LoadTerms | None = None,
    ) -> tuple[Probabilities, Forecast | None]:
        slowdown = load.slowdown if load is not None else (1.0, 1.0)
        tpot_s = [self._tpot_s * one for one in slowdown]
        return self.probabilities(context, eligible), Forecast([1.0, 1.0], tpot_s, unloaded_arm=1)


def learned(app: Routed) -> ResidualCorrection:
    app.parts.attempts.drain()
    return app.parts.active_policies.learners()[0][1].correction


async def test_only_the_policys_own_decisions_teach_it(router_app: StartRouter) -> None:
    spec = MockSpec(step_s=0.002, prefill_s=0, output_tokens=8)
    app = await router_app({"a": spec, "b": spec}, policy=Predicts(), featurizer=FEATURES, online=CORRECTED)
    await app.post(stream=True, headers={"x-draftpick-arm": "a"})
    app.parts.load.staleness.suspects = frozenset({"a", "b"})
    await app.post(stream=True)
    app.parts.load.staleness.suspects = frozenset()
    await app.post(stream=True)
    assert [one.decision.reason for one in await app.records(3)] == ["pinned", "fallback", "policy"]
    assert learned(app).weight(0, 0) == 1


@pytest.mark.parametrize(("at_start", "at_end", "slowdown"), [(3, 3, 4), (0, 4, 3)])
async def test_load_is_not_learned_as_slowness(
    router_app: StartRouter, at_start: int, at_end: int, slowdown: int
) -> None:
    """The load of an answer is the mean of those at its start and its end."""
    spec = MockSpec(step_s=0.02, prefill_s=0, output_tokens=8)
    policy = Predicts(0.02 / slowdown)
    app = await router_app({"a": spec, "b": FAST}, policy=policy, featurizer=FEATURES, online=CORRECTED)
    app.parts.load.steps["a"] = StepTimeModel(rising(1.0))
    (replica,) = app.replicas.by_arm["a"]
    replica.foreign_in_flight = at_start
    app.parts.load.refresh()
    request = asyncio.create_task(app.post(stream=True))
    await until(lambda: replica.in_flight == 1)
    replica.foreign_in_flight = at_end
    await request
    (record,) = await app.records(1)
    assert record.outcome.tpot_s is not None
    expected = ResidualCorrection(CorrectionConfig(), 1, 2)
    expected.update(0, 0, math.log(record.outcome.tpot_s / 0.02))
    assert learned(app).residual(0, 0) == pytest.approx(expected.residual(0, 0))


async def test_shadows_end_a_quarantine(router_app: StartRouter) -> None:
    drafts = FAST.model_copy(update={"num_speculative_tokens": 4, "acceptance_length": 3.0, "output_tokens": 24})
    app = await router_app({"a": FAST, "b": drafts}, policy=FixedPolicy(("a", "b"), "a"), shadow={"sample_rate": 1.0})
    monitor, shadows = app.parts.acceptance_monitor, app.parts.shadow
    for acceptance_length in [3.0] * 60 + [1.0] * 40:
        monitor.observe("b", acceptance_length, 24)
    assert monitor.state()["b"] == "quarantined"
    running = asyncio.create_task(shadows.run(app.parts.dispatcher.run_shadow))
    for _ in range(3):
        await app.post()
    await until(lambda: monitor.state()["b"] == "ok")
    running.cancel()


async def test_demand_is_what_policies_would_choose_without_load(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": FAST}, policy=Predicts(), featurizer=FEATURES)
    await app.post(headers={"x-draftpick-arm": "a"})
    await app.post()
    assert app.parts.demand.in_flight({"a": 30.0, "b": 30.0}) == pytest.approx({"a": 0.0, "b": 1.0}, abs=0.1)


async def test_the_objective_of_a_key_decides_for_its_requests(router_app: StartRouter, tmp_path: Path) -> None:
    """Without load, only the objective `cost` has load terms."""
    keys = [{"name": "usual", "sha256": digest("s1")}, {"name": "cheap", "sha256": digest("s2"), "objective": "cost"}]
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(keys))
    file = {"file": tmp_path / "keys.yaml"}
    app = await router_app({"a": FAST, "b": FAST}, policy=Predicts(), featurizer=FEATURES, keys=file)
    for secret in ("s1", "s2"):
        await app.post(headers={"authorization": f"Bearer {secret}"})
    usual, cheap = await app.records(2)
    assert usual.decision.load is None
    assert cheap.decision.load is not None


async def test_a_key_with_many_requests_teaches_no_more_than_the_others(
    router_app: StartRouter, tmp_path: Path
) -> None:
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump([{"name": n, "sha256": digest(n)} for n in ("many", "few")]))
    options = {"keys": {"file": tmp_path / "keys.yaml"}, "online": CORRECTED, "exploration": {"rate": 0}}
    app = await router_app({"a": FAST, "b": FAST}, policy=Predicts(), featurizer=FEATURES, **options)
    for i in range(60):
        await app.post(headers={"authorization": f"Bearer {'few' if i % 6 == 0 else 'many'}"}, stream=True)
    assert 10 + 8 <= learned(app).answers[0] <= 10 + 18
    assert len({one.key for one in await app.records(60)} - {"", "many", "few"}) == 2


async def test_an_answer_with_a_prediction_teaches_no_time(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": FAST}, policy=Predicts(), featurizer=FEATURES, online=CORRECTED)
    app.parts.dispatcher.predictions = Predictions({"a": frozenset({"a"}), "b": frozenset({"b"})})
    await app.post(stream=True, prediction={"type": "content", "content": "text to copy"})
    app.parts.attempts.drain()
    assert learned(app).answers == [0.0, 0.0]


async def test_several_answers_to_one_request_teach_no_time(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": FAST}, policy=Predicts(), featurizer=FEATURES, online=CORRECTED)
    await app.post(stream=True, n=4)
    await app.post("/v1/completions", stream=True, prompt=["one", "two"])
    assert learned(app).answers == [0.0, 0.0]
    assert app.parts.load.service_s["a"] == app.replicas.by_arm["a"][0].tpot_s == 0.0
    assert [one.sampling["n"] for one in await app.records(2)] == [4.0, 2.0]
    await app.post(stream=True)
    app.parts.attempts.drain()
    assert sum(learned(app).answers) == 1.0


# --- one attempt ---


class Observed:
    """Stands for the load model, the acceptance monitor and the active policies: keeps what they are told."""

    def __init__(self) -> None:
        self.calls = dict[str, list[Any]](load=[], drafts=[], policies=[])
        self.learning = AttemptLearning(
            type("Policies", (), {"observe": self._keep("policies")}),  # type: ignore[arg-type]
            type("Monitor", (), {"observe": self._keep("drafts")}),  # type: ignore[arg-type]
            type("Load", (), {"observe": self._keep("load"), "slowdown": lambda *_: 1.5}),  # type: ignore[arg-type]
        )

    def _keep(self, name: str) -> Any:
        return lambda *given, **named: self.calls[name].append((*given, *named.values()))


OUTCOME = Outcome("ok", 200, tpot_s=0.01, output_tokens=20, acceptance_length=2.0)
ATTEMPT = Attempt(
    "r", 1, "/v1/completions", True, {}, None, Decision("a", 1.0, {"a": 1.0, "b": 0.0}, "p"), OUTCOME,
    {"a": 3, "b": 5}, running=2.5, cluster=("p", 7), key="k", adapter="sql",
)  # fmt: skip


async def test_an_answer_teaches_load_acceptance_and_the_policy() -> None:
    observed = Observed()
    observed.learning.on_attempt_end(ATTEMPT)
    assert observed.calls == {
        "load": [("a", None, OUTCOME, 2.5, 1.0)],
        "drafts": [("a", 2.0, 20, 7, False, "k", "sql")],
        "policies": [(None, 7, ATTEMPT.decision, OUTCOME, 4, 1.5, "k", "sql")],  # four in flight, with itself
    }


async def test_what_was_not_answered_teaches_nothing() -> None:
    observed = Observed()
    observed.learning.on_attempt_end(replace(ATTEMPT, running=None))
    assert not any(observed.calls.values())


@pytest.mark.parametrize(
    ("reason", "teaches", "shadow"),
    [("policy", 1, False), ("shadow", 1, True), ("pinned", 0, False), ("resumed", 0, False), ("fallback", 0, False)],
)
async def test_a_policy_learns_from_its_own_draws_and_from_shadows(reason: Any, teaches: int, shadow: bool) -> None:
    observed = Observed()
    observed.learning.on_attempt_end(replace(ATTEMPT, decision=replace(ATTEMPT.decision, reason=reason), cluster=None))
    assert [len(calls) for calls in observed.calls.values()] == [1, 1, teaches]
    assert observed.calls["drafts"] == [("a", 2.0, 20, 0, shadow, "k", "sql")]


@pytest.mark.parametrize(("n", "kept"), [(1.0, True), (2.0, False)])
async def test_sequences_side_by_side_teach_neither_time_nor_acceptance(n: float, kept: bool) -> None:
    observed = Observed()
    observed.learning.on_attempt_end(replace(ATTEMPT, sampling={"n": n}))
    ((*_, outcome, _, _),) = observed.calls["load"]
    assert (outcome.tpot_s, outcome.acceptance_length) == ((0.01, 2.0) if kept else (None, None))
    assert outcome.output_tokens == 20


async def test_an_answer_of_a_pool_teaches_of_every_drafter_that_was_scored() -> None:
    observed, reports = Observed(), {"x": DrafterReport(scored=9, tau=3.0), "none": DrafterReport(scored=9, tau=1.0)}
    decision = Decision("pool/x", 1.0, {"pool/x": 1.0}, "p")
    outcome = replace(OUTCOME, drafters=reports)
    observed.learning.on_attempt_end(replace(ATTEMPT, decision=decision, outcome=outcome, in_flight={"pool/x": 0}))
    assert observed.calls["drafts"] == [("pool/x", 3.0, 9, 7, False, "k", "sql")]


async def test_a_key_with_most_answers_of_an_arm_counts_less() -> None:
    observed = Observed()
    for i in range(60):
        observed.learning.on_attempt_end(replace(ATTEMPT, key="few" if i % 4 == 0 else "many"))
    weights = [call[-1] for call in observed.calls["load"]]
    assert weights[-4] == 1.0
    assert weights[-1] < 0.5
    other = replace(ATTEMPT, decision=replace(ATTEMPT.decision, arm="b"), key="many")
    observed.learning.on_attempt_end(other)
    assert observed.calls["load"][-1][-1] == 1.0
