"""A pool gets a forecast, answers for all its drafters, and other engines never see any of it."""

from typing import Any

import numpy as np
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from draftpick.engines.mock.app import mock_app
from draftpick.engines.mock.spec import MockDrafter, MockSpec
from draftpick.engines.pool.forecast import XARG, Forecast
from draftpick.engines.profile.profile import Profile
from draftpick.router import policies
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.policies.base import DecisionInput, Policy
from draftpick.router.policies.baselines import FixedPolicy, UniformPolicy
from draftpick.router.types import Context
from tests.fleet import CHAT, COMPLETIONS, FAST, MODEL, RESPONSES, Routed, Servers, StartRouter, asked

pytestmark = pytest.mark.asyncio(loop_scope="module")

POOL = MockSpec(
    step_s=0.001,
    prefill_s=0,
    output_tokens=60,
    drafters={
        "ngram": MockDrafter(num_speculative_tokens=4, acceptance_length=1.1),
        "math": MockDrafter(num_speculative_tokens=4, acceptance_length=3.0, step_s=0.0002),
    },
)
PLAIN = FAST.model_copy(update={"output_tokens": 60})
ARMS = ("plain", "pool/none", "pool/ngram", "pool/math")
ROUTER: dict[str, Any] = {"featurizer": LexicalFeaturizer(), "exploration": {"rate": 0.0}}
FIXED = {"correction": {"enabled": False}}
TRAINED = ("plain", "ngram", "math")


def policy(arms: tuple[str, ...] = ARMS, **tau: float) -> Policy:
    """A policy trained on engines with one drafter each, that predicts these acceptance lengths for every request."""
    made, d, n = LexicalFeaturizer(), LexicalFeaturizer().dimension, len(TRAINED)
    log_tau = np.log([tau.get(arm, 1.0) for arm in TRAINED])
    arrays = {"mean": np.zeros(d), "scale": np.ones(d), "sigma": np.full((2, n), 0.2), "w": np.zeros((2, d, n))}
    arrays |= {"b": np.tile(log_tau, (2, 1)), "step_s": np.full((n, 2), 0.01), "start_s": np.zeros(n)}
    arrays["per_token_s"] = np.zeros(n)
    options = {"regressor": "linear", "default": "plain", "output_tokens": 60.0}
    manifest = {"kind": "tau_cost", "arms": list(TRAINED), "featurizer": made.id, "options": options}
    with_sha = {**manifest, "arrays_sha256": "0" * 64}
    return policies.make(with_sha, {name: np.asarray(a, np.float32) for name, a in arrays.items()}, arms)


async def started(router_app: StartRouter, policy: Policy, **router: Any) -> Routed:
    specs = {"plain": PLAIN, "pool": POOL}
    return await router_app(specs, **{**ROUTER, "policy": policy, **router})


def forecast(app: Routed) -> Forecast | None:
    """The forecast in the last request that the pool got."""
    body = orjson.loads(app.engines["pool"].last_body)
    return Forecast.from_json(body["vllm_xargs"][XARG])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
async def test_a_pool_gets_the_policys_forecast(router_app: StartRouter, path: str) -> None:
    app = await started(router_app, policy(ngram=1.2, math=2.5))
    answer = await app.post(path)
    assert answer.headers["x-draftpick-arm"] == "pool/math"
    sent = forecast(app)
    assert sent is not None
    assert sent.tau == pytest.approx({"ngram": 1.2, "math": 2.5}, rel=1e-4)
    assert sent.weight == pytest.approx(0.35 / 0.04, rel=1e-3)
    assert (sent.objective, sent.only) == ("throughput", None)


async def test_the_engine_arguments_of_a_client_stay_beside_the_forecast(router_app: StartRouter) -> None:
    app = await started(router_app, policy(math=2.5))
    await app.post(stream=True, vllm_xargs={"own": 1})
    body = orjson.loads(app.engines["pool"].last_body)
    assert body["vllm_xargs"]["own"] == 1
    assert XARG in body["vllm_xargs"]
    assert body["stream_options"] == {"include_usage": True}


async def test_an_engine_that_is_no_pool_never_sees_a_forecast(router_app: StartRouter) -> None:
    app = await started(router_app, policy(math=2.5))
    await app.post(headers={"x-draftpick-arm": "plain"})
    assert b"vllm_xargs" not in app.engines["plain"].last_body
    specs = {"plain": PLAIN, "pool": POOL.model_copy(update={"fail_share": 1.0})}
    failing = await router_app(specs, policy=policy(math=2.5), **ROUTER)
    answer = await failing.post()
    assert answer.headers["x-draftpick-arm"] == "plain"
    assert XARG.encode() in failing.engines["pool"].last_body
    assert b"vllm_xargs" not in failing.engines["plain"].last_body


async def test_a_failed_pool_is_not_tried_again_by_another_of_its_arms(router_app: StartRouter) -> None:
    specs = {"pool": POOL.model_copy(update={"fail_share": 1.0}), "plain": PLAIN}
    app = await router_app(specs, policy=FixedPolicy(ARMS, "pool"), max_attempts=2)
    app.replicas.update("pool", [app.engines["pool"].url, "http://127.0.0.1:9"])
    assert (await app.post()).headers["x-draftpick-arm"] == "plain"


async def test_a_pin_of_a_drafter_is_an_order_and_one_of_the_pool_leaves_the_choice(router_app: StartRouter) -> None:
    app = await started(router_app, policy(ngram=3.0, math=2.5))
    answer = await app.post(headers={"x-draftpick-arm": "pool/math"})
    assert answer.headers["x-draftpick-arm"] == "pool/math"
    assert forecast(app) == Forecast(only="math")
    drafters = answer.json()["metrics"]["speculative_decoding"]["drafters"]
    assert drafters["math"]["steps"] > 0 == drafters["ngram"]["steps"]
    answer = await app.post(headers={"x-draftpick-arm": "pool"})
    assert answer.headers["x-draftpick-arm"] == "pool/ngram"
    assert forecast(app).tau["ngram"] == pytest.approx(3.0)  # type: ignore[union-attr]
    wrong = await app.post(headers={"x-draftpick-arm": "pool/maths"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "unknown_engine")
    assert [r.decision.reason for r in await app.records(2)] == ["pinned", "pinned"]


@pytest.mark.parametrize(
    ("chosen", "only"),
    [(FixedPolicy(ARMS, "pool"), None), (FixedPolicy(ARMS, "pool/math"), "math"), (UniformPolicy(ARMS[3:]), "math")],
)
async def test_a_policy_without_predictions_orders_a_drafter_or_leaves_the_choice(
    router_app: StartRouter, chosen: Policy, only: str | None
) -> None:
    app = await started(router_app, chosen)
    await app.post()
    assert forecast(app) == Forecast(only=only)


async def test_a_record_holds_the_forecast_and_what_every_drafter_did(router_app: StartRouter) -> None:
    app = await started(router_app, policy(ngram=1.2, math=2.5))
    await app.post(stream=True)
    (record,) = await app.records(1)
    assert record.decision.predicted_tau == pytest.approx([1.0, 1.0, 1.2, 2.5], rel=1e-4)
    assert record.decision.forecast == forecast(app)
    drafters = record.outcome.drafters
    assert drafters is not None
    assert set(drafters) == {"none", "ngram", "math"}
    assert sum(one.steps for one in drafters.values()) == drafters["ngram"].scored > 0
    assert drafters["math"].tau == pytest.approx(3.0, rel=0.4)


async def test_what_a_pool_scores_on_every_request_is_not_explored(router_app: StartRouter) -> None:
    app = await started(
        router_app, policy(ngram=1.0, math=1.25), exploration={"rate": 0.5, "min_probability": 0.01}, online=FIXED
    )
    await app.post()
    (record,) = await app.records(1)
    shares = record.decision.probabilities
    assert shares["pool/none"] == shares["pool/ngram"] == 0.0
    assert shares["plain"] == pytest.approx(0.01)  # a near-tie, of which no more than the least share is learned


async def test_a_quarantined_drafter_is_forecast_to_draft_nothing(router_app: StartRouter) -> None:
    app = await started(router_app, policy(ngram=1.2, math=2.5))
    app.parts.acceptance_monitor.suspects.add("pool/math")
    app.parts.acceptance_monitor._arms["pool/math"].quarantined_until = float("inf")
    await app.post()
    sent = forecast(app)
    assert sent is not None
    assert sent.tau == pytest.approx({"ngram": 1.2, "math": 1.0}, rel=1e-4)


async def test_every_scored_drafter_is_learned_from_one_answer(router_app: StartRouter) -> None:
    app = await started(router_app, policy(ngram=2.0, math=2.0), online={"correction": {"enabled": True}})
    for _ in range(12):
        await app.post(headers={"x-draftpick-arm": "pool"})
    app.parts.attempts.drain()
    for _ in range(12):
        await app.post()
    app.parts.attempts.drain()
    online = app.parts.active_policies.learners()[0][1]
    assert online.correction.answers[2] == online.correction.answers[3] > 0
    assert online.shifts is not None
    assert online.shifts[0][2] > online.shifts[0][3] + 0.3
    sent = forecast(app)
    assert sent is not None
    assert sent.tau["math"] > 1.3 * sent.tau["ngram"]


async def test_metrics_count_what_every_drafter_did(router_app: StartRouter) -> None:
    app = await started(router_app, policy(ngram=1.2, math=2.5))
    await app.post()
    page = (await app.client.get("/metrics")).text
    samples = {
        line.split(" ")[0]: float(line.split(" ")[1])
        for line in page.splitlines()
        if line.startswith("draftpick_drafter")
    }
    steps = samples['draftpick_drafter_steps_total{router="0",arm="pool/math"}']
    assert 10 < steps < 60
    assert samples['draftpick_drafter_drafted_tokens_total{router="0",arm="pool/math"}'] == 4 * steps
    scored = samples['draftpick_drafter_scored_steps_total{router="0",arm="pool/ngram"}']
    tokens = samples['draftpick_drafter_scored_tokens_total{router="0",arm="pool/ngram"}']
    assert 1.0 <= tokens / scored < 1.6


async def test_an_explanation_tells_the_forecast_and_what_a_pool_makes_of_it(router_app: StartRouter) -> None:
    app = await started(router_app, policy(ngram=1.2, math=2.5))
    told = (await app.client.post("/v1/route/explain", json=asked())).json()
    assert told["arm"] == "pool/math"
    assert told["forecast"]["tau"] == pytest.approx({"ngram": 1.2, "math": 2.5}, rel=1e-4)
    assert told["tipped"].endswith("; pool begins with math and changes the drafter at any step")


IGNORED = 'draftpick_ignored_forecasts_total{router="0",engine="pool"}'


async def ignored(app: Routed) -> float:
    """Ignored forecasts of the pool, by /metrics."""
    lines = (await app.client.get("/metrics")).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(IGNORED))


async def test_an_engine_without_our_plugin_ignores_forecasts_which_is_counted(
    router_app: StartRouter, servers: Servers
) -> None:
    app = await started(router_app, policy(math=2.5))
    await app.post(stream=True)
    await app.post(RESPONSES)  # its answers carry no metrics, whoever gives them
    assert await ignored(app) == 0
    app.replicas.update("pool", [(await servers.mock(PLAIN)).url])
    answers = [await app.post(), await app.post(stream=True), await app.post(n=2), await app.post(RESPONSES)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert await ignored(app) == 2


def strict(spec: MockSpec) -> ASGIApp:
    """An engine that knows no `vllm_xargs`."""
    inner = mock_app(spec, model=MODEL)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body() if scope["type"] == "http" else b""
        if b"vllm_xargs" in body:
            error = {"error": {"message": "vllm_xargs: Extra inputs are not permitted", "code": 400}}
            return await JSONResponse(error, 400)(scope, receive, send)
        sent: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return sent.pop() if sent else await receive()

        await inner(scope, again, send)

    return app


async def test_an_engine_that_rejects_a_forecast_is_asked_without_one(
    router_app: StartRouter, servers: Servers
) -> None:
    app = await router_app({"pool": POOL}, policy=policy(ARMS[1:], math=2.5), **{**ROUTER, "max_attempts": 2})
    app.replicas.update("pool", [(await servers.serve(strict(PLAIN))).url])
    assert [(await app.post()).status_code for _ in range(2)] == [200, 200]
    assert await ignored(app) >= 1
    assert (await app.post(vllm_xargs={"own": 1})).status_code == 400  # the client's own mistake
    attempts = [record.attempt for record in await app.records(4)]
    assert attempts == [1, 2, 1, 1]


@pytest.mark.parametrize(("step_s", "chosen"), [(0.0097, "pool/ngram"), (0.008, "ngram")])
async def test_an_engine_of_its_own_serves_in_place_of_a_pool_if_it_is_faster_by_what_a_pool_may_gain(
    step_s: float, chosen: str
) -> None:
    arms = ("pool/none", "pool/ngram", "ngram")
    made = policy(arms, ngram=2.0)
    pool, alone = (Profile("b", "m", (1, 8), (64,), ((((s,), (s,)),) * 2), 0.0, 0.0, 8) for s in (0.01, step_s))
    made.use_profiles({"pool/none": pool, "pool/ngram": pool, "ngram": alone})
    context = Context(np.zeros(LexicalFeaturizer().dimension, np.float32), LexicalFeaturizer().id)
    assert made.decide(DecisionInput(context, arms), np.random.default_rng(0)).arm == chosen
