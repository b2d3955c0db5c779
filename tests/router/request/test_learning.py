"""What the answers of a policy teach it, and what the load terms of a decision follow."""

import asyncio
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from draftpick.engines.mock.app import MockSpec
from draftpick.router.config.sections import CorrectionConfig
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.http.auth import digest
from draftpick.router.load.step_time import StepTimeModel
from draftpick.router.online.residual_correction import ResidualCorrection
from draftpick.router.policies.base import Forecast, Probabilities, Shifts
from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.request.predictions import Predictions
from draftpick.router.types import Context, LoadTerms
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
