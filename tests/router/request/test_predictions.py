"""A prediction goes to engines that draft from it, as they take it; forecast and decision expect it to come true."""

from typing import Any

import orjson
import pytest

from draftpick.engines.config import FleetConfig
from draftpick.engines.pool import forecast as pool_forecast
from draftpick.engines.pool.forecast import Forecast
from draftpick.engines.pool.prediction import XARG
from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.request.ability import configured_abilities
from draftpick.router.request.predictions import Predictions
from draftpick.router.types import Outcome, PredictionTokens
from tests.fleet import CHAT, COMPLETIONS, Routed, Servers, StartRouter, asked
from tests.router.request.test_pool import ARMS, PLAIN, POOL, ROUTER, policy, started, strict

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "the a of to"
PREDICTION = {"type": "content", "content": TEXT}
COPYING = {"pool": frozenset({"pool/ngram"})}


def body_at(app: Routed, engine: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(app.engines[engine].last_body)
    return found


async def predicting(router_app: StartRouter, **tau: float) -> Routed:
    """A router that knows that the pool's n-gram drafter copies."""
    app = await started(router_app, policy(**tau))
    app.parts.dispatcher.predictions = Predictions(COPYING)
    return app


async def test_a_pool_gets_the_text_and_a_forecast_that_its_copying_drafters_do_well(router_app: StartRouter) -> None:
    app = await predicting(router_app, ngram=1.2, math=2.5)
    answer = await app.post(prediction=PREDICTION)
    body = body_at(app, "pool")
    assert "prediction" not in body
    assert body["vllm_xargs"][XARG] == TEXT
    sent = Forecast.from_json(body["vllm_xargs"][pool_forecast.XARG])
    assert sent is not None
    assert sent.tau["ngram"] == pytest.approx(sum(0.7**i for i in range(9)))
    assert sent.tau["math"] == pytest.approx(2.5, rel=1e-4)
    details = answer.json()["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"] == 4


async def test_an_engine_that_drafts_from_predictions_is_preferred(router_app: StartRouter) -> None:
    app = await started(router_app, policy(math=2.5))
    app.parts.dispatcher.predictions = Predictions({"plain": frozenset({"plain"})})
    assert (await app.post()).headers["x-draftpick-arm"] == "pool/math"
    assert (await app.post(prediction=PREDICTION)).headers["x-draftpick-arm"] == "plain"


async def test_a_fixed_engine_stays_the_one_that_serves(router_app: StartRouter) -> None:
    app = await router_app({"plain": PLAIN, "pool": POOL}, policy=FixedPolicy(ARMS, "plain"), **ROUTER)
    app.parts.dispatcher.predictions = Predictions(COPYING)
    assert (await app.post(prediction=PREDICTION)).headers["x-draftpick-arm"] == "plain"


async def test_other_engines_never_see_a_prediction(router_app: StartRouter) -> None:
    app = await predicting(router_app, math=2.5)
    answer = await app.post(headers={"x-draftpick-arm": "plain"}, prediction=PREDICTION)
    assert answer.status_code == 200
    assert TEXT.encode() not in app.engines["plain"].last_body
    assert b"prediction" not in app.engines["plain"].last_body
    assert "completion_tokens_details" not in answer.json()["usage"]


async def test_a_stream_s_last_chunk_says_what_was_accepted(router_app: StartRouter) -> None:
    app = await predicting(router_app, math=2.5)
    answer = await app.post(stream=True, stream_options={"include_usage": True}, prediction=PREDICTION)
    assert b"accepted_prediction_tokens" in answer.content
    assert body_at(app, "pool")["stream_options"] == {"include_usage": True}


async def test_arguments_of_the_client_stay(router_app: StartRouter) -> None:
    app = await predicting(router_app, math=2.5)
    await app.post(vllm_xargs={"own": 1}, prediction=PREDICTION)
    assert body_at(app, "pool")["vllm_xargs"].keys() == {"own", XARG, pool_forecast.XARG}


async def test_a_record_and_the_metrics_have_what_was_accepted(router_app: StartRouter) -> None:
    app = await predicting(router_app, math=2.5)
    await app.post(prediction=PREDICTION)
    (record,) = await app.records(1)
    told = record.outcome.prediction
    assert told is not None
    assert told.accepted + told.rejected == 4
    page, arm = (await app.client.get("/metrics")).text, record.decision.arm
    sample = f'draftpick_prediction_tokens_total{{router="0",arm="{arm}",result="rejected"}}'
    assert f"{sample} {told.rejected}" in page


@pytest.mark.parametrize(
    ("prediction", "field"),
    [
        ("text", "prediction"),
        ([], "prediction"),
        ({}, "prediction.type"),
        ({"type": "text", "content": "a"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "content", "content": 7}, "prediction.content"),
        ({"type": "content", "content": {"text": "a"}}, "prediction.content"),
        ({"type": "content", "content": [{"type": "text", "text": "a"}, "b"]}, "prediction.content[1].type"),
        ({"type": "content", "content": [{"type": "image_url", "text": "a"}]}, "prediction.content[0].type"),
        ({"type": "content", "content": [{"type": "text"}]}, "prediction.content[0].text"),
    ],
)
async def test_a_prediction_of_another_shape_is_refused_with_its_field(
    router_app: StartRouter, prediction: Any, field: str
) -> None:
    app = await router_app({"plain": PLAIN})
    answer = await app.post(prediction=prediction)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, field, "invalid_prediction")
    assert error["message"].startswith(f"{field} must be ")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a b", "a b"),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        ("", None),
        ([], None),
    ],
)
async def test_text_and_parts_are_taken(router_app: StartRouter, content: Any, text: str | None) -> None:
    app = await predicting(router_app, math=2.5)
    assert (await app.post(prediction={"type": "content", "content": content})).status_code == 200
    assert body_at(app, "pool")["vllm_xargs"].get(XARG) == text


async def test_null_is_none_and_other_apis_have_no_such_field(router_app: StartRouter) -> None:
    app = await router_app({"plain": PLAIN})
    assert (await app.post(prediction=None)).status_code == 200
    assert "prediction" not in body_at(app, "plain")
    assert (await app.post(COMPLETIONS, prediction=7)).status_code == 200
    assert body_at(app, "plain")["prediction"] == 7


async def test_an_engine_that_rejects_it_is_asked_without(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app(
        {"copier": PLAIN}, policy=FixedPolicy(("copier",), "copier"), **{**ROUTER, "max_attempts": 2}
    )
    app.parts.dispatcher.predictions = Predictions({"copier": frozenset({"copier"})})
    app.replicas.update("copier", [(await servers.serve(strict(PLAIN))).url])
    assert [(await app.post(prediction=PREDICTION)).status_code for _ in range(2)] == [200, 200]
    assert [record.attempt for record in await app.records(3)] == [1, 2, 1]


async def test_a_lease_says_what_its_engine_takes(router_app: StartRouter) -> None:
    app = await router_app(
        {"plain": PLAIN, "pool": POOL}, policy=FixedPolicy(ARMS, "pool"), **ROUTER, leases={"enabled": True}
    )
    app.parts.dispatcher.predictions = Predictions(COPYING)
    granted = (await app.client.post("/v1/route", json=asked(CHAT, prediction=PREDICTION))).json()
    assert granted["fields"]["vllm_xargs"][XARG] == TEXT


def told(accepted: int, rejected: int) -> Outcome:
    return Outcome("ok", prediction=PredictionTokens(accepted, rejected))


async def test_the_share_is_that_of_earlier_predictions() -> None:
    predictions = Predictions(COPYING)
    before = predictions.forecast("pool/none", Forecast({"ngram": 1.0, "math": 2.0}), "a")
    for _ in range(40):
        predictions.observe(told(900, 100), "a")
    after = predictions.forecast("pool/none", Forecast({"ngram": 1.0, "math": 2.0}), "a")
    assert predictions.share("a") == pytest.approx(0.9, abs=0.01)
    assert after.tau["ngram"] > before.tau["ngram"] > after.tau["math"] == 2.0
    predictions.observe(Outcome("ok"), "a")
    assert predictions.share("a") == pytest.approx(0.9, abs=0.01)


async def test_predictions_that_never_come_are_worth_no_preference() -> None:
    predictions = Predictions(COPYING)
    assert predictions.engines("a") == {"pool"}
    for _ in range(40):
        predictions.observe(told(0, 1000), "a")
    assert predictions.engines("a") == frozenset()
    assert predictions.engines("b") == {"pool"}  # another client's still may


async def test_engines_that_copy_are_known_from_their_configuration() -> None:
    drafter = {"suffix": {"method": "suffix"}, "ngram": {"method": "ngram"}, "hybrid": {"method": "hybrid"}}
    head = {"name": "head", "method": "eagle3", "model": "a/b"}
    engines: list[dict[str, Any]] = [
        {"name": "plain"},
        {"name": "head", "drafter": {"method": "eagle3", "model": "a/b"}},
        {"name": "suffix", "drafter": drafter["suffix"]},
        {"name": "ngram", "drafter": drafter["ngram"]},
        {"name": "pool", "drafters": [head, {"name": "copy", "method": "ngram"}]},
        {"name": "far-suffix", "url": "http://a:1", "drafter": drafter["suffix"]},  # may be vLLM's own
        {"name": "far-hybrid", "url": "http://a:2", "drafter": drafter["hybrid"]},
        {"name": "far-pool", "url": "http://a:3", "drafters": [head, {"name": "copy", "method": "trigram"}]},
        {"name": "far", "url": "http://a:4"},
    ]
    found = configured_abilities(FleetConfig.model_validate({"engines": engines}))
    assert {name: set(one.copying) for name, one in found.items() if one.copying} == {
        "suffix": {"suffix"},
        "ngram": {"ngram"},
        "pool": {"pool/copy"},
        "far-hybrid": {"far-hybrid"},
        "far-pool": {"far-pool/copy"},
    }
