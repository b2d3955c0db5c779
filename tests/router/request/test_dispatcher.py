"""Decisions: pins, policies and features that fail, and what a record says of them."""

import asyncio

import numpy as np
import numpy.typing as npt
import pytest

from draftpick.engines.mock.app import MockSpec
from draftpick.router.features.featurizer import Featurizer, LexicalFeaturizer
from draftpick.router.openai_request import Request
from draftpick.router.policies.base import Policy, Probabilities
from draftpick.router.policies.baselines import FixedPolicy, UniformPolicy
from draftpick.router.types import Context
from tests.fleet import CHAT, FAST, SLOW, StartRouter, asked, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWO = {"a": FAST, "b": FAST}
ARMS = ("a", "b")
B = FixedPolicy(ARMS, "b")


class Raising(Policy):
    """A policy with a fault."""

    id, arms = "raising", ARMS

    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        raise ZeroDivisionError


class Mistaken(Policy):
    """A policy that finds no arm."""

    id, arms = "mistaken", ARMS

    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        return np.zeros(len(ARMS))


class NeedsContext(FixedPolicy):
    """Chooses `b`, and only with a context."""

    def __init__(self) -> None:
        super().__init__(ARMS, "b")
        self.id, self.featurizer = "needs-context", LexicalFeaturizer().id


class Failing(Featurizer):
    """Raises, or takes its time first."""

    id, dimension = "failing", 1

    def __init__(self, error: Exception, duration_s: float = 0.0) -> None:
        self._error, self._duration_s = error, duration_s

    async def __call__(self, request: Request) -> Context:
        await asyncio.sleep(self._duration_s)
        raise self._error


# --- pins ---


async def test_a_pin_chooses_the_engine(router_app: StartRouter) -> None:
    app = await router_app(TWO)
    for arm in ("b", "a"):
        answer = await app.post(headers={"x-draftpick-arm": arm})
        assert answer.headers["x-draftpick-arm"] == arm
    first, second = await app.records(2)
    assert (first.decision.arm, first.decision.reason, first.decision.propensity) == ("b", "pinned", 1.0)
    assert (second.decision.arm, second.decision.reason) == ("a", "pinned")


async def test_a_pin_to_an_unknown_engine_is_refused(router_app: StartRouter) -> None:
    app = await router_app(TWO)
    answer = await app.post(headers={"x-draftpick-arm": "c"})
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "no engine 'c' (engines: a, b)",
        "type": "invalid_request_error",
        "param": "x-draftpick-arm",
        "code": "unknown_engine",
    }
    assert await app.records(0) == []


async def test_a_pin_to_an_engine_that_is_gone_is_unavailable(router_app: StartRouter) -> None:
    app = await router_app(TWO)
    app.replicas.update("b", [])
    answer = await app.post(headers={"x-draftpick-arm": "b"})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_engine"


async def test_pins_can_be_switched_off(router_app: StartRouter) -> None:
    app = await router_app(TWO, allow_engine_pinning=False)
    answer = await app.post(headers={"x-draftpick-arm": "b"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "pin_not_allowed"
    assert (await app.post()).status_code == 200


# --- policies ---


async def test_the_policy_chooses_among_engines_that_are_there(router_app: StartRouter) -> None:
    app = await router_app(TWO, policy=B)
    assert (await app.post()).headers["x-draftpick-arm"] == "b"
    app.replicas.update("b", [])
    assert (await app.post()).headers["x-draftpick-arm"] == "a"


async def test_a_record_holds_the_propensities_of_all_arms(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": FAST, "c": FAST}, policy=UniformPolicy(("a", "b", "c")))
    app.replicas.update("c", [])
    await app.post(temperature=0.5, max_tokens=3, seed=1)
    (record,) = await app.records(1)
    assert record.decision.probabilities == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert record.decision.propensity == 0.5
    assert (record.decision.policy, record.decision.reason) == ("uniform", "policy")
    assert record.sampling == {"temperature": 0.5, "max_tokens": 3.0}
    assert record.context is None


async def test_the_seed_makes_choices_repeat(router_app: StartRouter) -> None:
    apps = [await router_app(TWO, policy=UniformPolicy(ARMS), seed=seed) for seed in (1, 1, 2)]
    drawn = [[app.parts.decide(None).arm for _ in range(50)] for app in apps]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("policy", [Raising(), Mistaken()])
async def test_when_the_policy_fails_the_default_engine_serves_and_it_is_counted(
    router_app: StartRouter, policy: Policy
) -> None:
    app = await router_app(TWO, policy=policy, default_engine="b")
    answer = await app.post()
    assert answer.status_code == 200
    assert answer.headers["x-draftpick-arm"] == "b"
    assert answer.headers["x-draftpick-policy"] == "fixed:b"
    assert app.parts.metrics.fallbacks["policy_error"] == 1
    (record,) = await app.records(1)
    assert (record.decision.reason, record.decision.policy) == ("fallback", "fixed:b")


async def test_when_policy_and_default_engine_fail_another_engine_serves(router_app: StartRouter) -> None:
    app = await router_app(TWO, policy=Raising(), default_engine="b")
    app.replicas.update("b", [])
    assert (await app.post()).headers["x-draftpick-arm"] == "a"


# --- features ---


async def test_the_context_of_a_decision_is_recorded(router_app: StartRouter) -> None:
    featurizer = LexicalFeaturizer()
    app = await router_app(TWO, policy=NeedsContext(), featurizer=featurizer)
    assert (await app.post(text="some words")).headers["x-draftpick-arm"] == "b"
    (record,) = await app.records(1)
    expected = await featurizer(Request(CHAT, b"", "some words", sampling={}))
    assert record.context is not None
    assert record.context.featurizer == featurizer.id
    assert record.context.vector.tobytes() == expected.vector.tobytes()


@pytest.mark.parametrize("error", [RuntimeError("x"), ValueError("x"), MemoryError()])
async def test_when_the_featurizer_fails_the_default_engine_serves_and_it_is_counted(
    router_app: StartRouter, error: Exception
) -> None:
    app = await router_app(TWO, policy=NeedsContext(), featurizer=Failing(error))
    answer = await app.post()
    assert (answer.status_code, answer.headers["x-draftpick-arm"]) == (200, "a")
    assert app.parts.metrics.failures["features", type(error).__name__] == 1
    assert app.parts.metrics.fallbacks["no_context"] == 1
    (record,) = await app.records(1)
    assert (record.context, record.decision.reason) == (None, "fallback")


async def test_a_featurizer_that_takes_too_long_is_not_waited_for(router_app: StartRouter) -> None:
    slow = Failing(RuntimeError(), duration_s=5)
    app = await router_app(TWO, policy=NeedsContext(), featurizer=slow, featurize_timeout_s=0.05)
    async with asyncio.timeout(4):
        answer = await app.post()
    assert (answer.status_code, answer.headers["x-draftpick-arm"]) == (200, "a")
    assert app.parts.metrics.failures["features", "TimeoutError"] == 1


async def test_a_policy_that_needs_no_context_decides_without(router_app: StartRouter) -> None:
    app = await router_app(TWO, policy=B, featurizer=Failing(RuntimeError()))
    assert (await app.post()).headers["x-draftpick-arm"] == "b"
    assert app.parts.metrics.fallbacks["no_context"] == 0


async def test_a_request_without_text_goes_to_the_default_engine(router_app: StartRouter) -> None:
    app = await router_app(TWO, policy=NeedsContext(), featurizer=LexicalFeaturizer())
    answer = await app.client.post("/tokenize", json={"prompt": "x"})
    assert answer.headers["x-draftpick-arm"] == "a"


# --- load and measures ---


async def test_a_record_holds_the_load_at_its_decision(router_app: StartRouter) -> None:
    app = await router_app({"a": SLOW, "b": FAST})
    async with app.client.stream("POST", CHAT, json=asked(stream=True)) as running:
        chunks = running.aiter_raw()
        await anext(chunks)
        await app.post(headers={"x-draftpick-arm": "b"})
    second, first = await app.records(2)
    assert (first.decision.arm, first.in_flight) == ("a", {"a": 0, "b": 0})
    assert (second.decision.arm, second.in_flight) == ("b", {"a": 1, "b": 0})
    assert app.replicas.in_flight() == {"a": 0, "b": 0}


async def test_requests_spread_over_the_replicas_of_an_engine(router_app: StartRouter) -> None:
    app = await router_app({"a": SLOW, "b": SLOW})
    engines = list(app.engines.values())
    app.replicas.update("b", [])
    app.replicas.update("a", [mock.url for mock in engines])
    requests = [asyncio.create_task(app.post(stream=True)) for _ in range(4)]
    await until(lambda: all(mock.engine.state()["running"] == 2 for mock in engines))
    for request in requests:
        request.cancel()
    await asyncio.wait(requests)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_outcome_is_measured(router_app: StartRouter, stream: bool) -> None:
    spec = MockSpec(step_s=0.002, prefill_s=0.02, output_tokens=40, num_speculative_tokens=3, acceptance_length=2.0)
    app = await router_app({"a": spec})
    await app.post(stream=stream)
    (record,) = await app.records(1)
    made = record.outcome
    assert (record.path, record.stream, record.attempt, made.status, made.http_status) == (CHAT, stream, 1, "ok", 200)
    assert (made.prompt_tokens, made.output_tokens) == (2, 40)
    assert made.ttft_s is not None
    assert made.e2e_s is not None
    assert made.overhead_s is not None
    assert 0.02 <= made.ttft_s < made.e2e_s
    assert made.tpot_s == pytest.approx((made.e2e_s - made.ttft_s) / 39, rel=0.2)  # by the engine's own clock
    assert app.replicas.by_arm["a"][0].tpot_s == made.tpot_s
    assert 0 < made.overhead_s < made.ttft_s
    assert made.acceptance_length is not None
    assert 1 < made.acceptance_length < 4
    assert made.acceptance_rate is not None
    assert 0 < made.acceptance_rate < 1
