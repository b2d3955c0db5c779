"""Engines that cannot take a request: from configuration, lists of models, and what they rejected."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from draftpick.engines.config import FleetConfig
from draftpick.engines.http.client import EngineClient
from draftpick.engines.replicas import ReplicaTable
from draftpick.router.load.model_catalog import ModelCatalog
from draftpick.router.openai_request import Request, parse
from draftpick.router.policies.baselines import FixedPolicy, UniformPolicy
from draftpick.router.request.ability import REJECTED_WITH_DRAFTER, Abilities, EngineAbility, configured_abilities
from tests.fleet import CHAT, COMPLETIONS, FAST, RESPONSES, Servers, StartRouter, asked

ENGINES = ("plain", "suffix", "math")
WITH_DRAFTER = "The min_p and logit_bias sampling parameters are not yet supported with speculative decoding."
REJECTED = {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}}


def request(path: str = CHAT, **fields: Any) -> Request:
    return parse(path, orjson.dumps(asked(path, **fields)))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def abilities(
    models: dict[str, dict[str, Any]] | None = None, clock: Callable[[], float] = lambda: 0.0, **drafts: bool | None
) -> Abilities:
    catalog = ModelCatalog(EngineClient(first_byte_timeout_s=1, timeout_s=1), ReplicaTable(ENGINES))
    configured = {engine: EngineAbility(drafts.get(engine)) for engine in ENGINES}
    made = Abilities(ENGINES, "plain", catalog, configured, clock)
    catalog.models = models or {}
    catalog.on_change()
    return made


def card(length: int | None = None) -> dict[str, Any]:
    return {"id": "x", "max_model_len": length}


@pytest.mark.parametrize("field", sorted(REJECTED_WITH_DRAFTER))
def test_a_drafter_excludes_what_vllm_rejects_with_one(field: str) -> None:
    made = abilities(plain=False, suffix=True)
    asking = request(**{field: {"5": -100} if field == "logit_bias" else 0.1})
    assert made.unable(asking) == {"suffix": f"does not take {field}"}
    assert made.unable(request()) == {}


@pytest.mark.vllm
def test_vllm_rejects_just_that_with_a_drafter() -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import SamplingParams

    values: dict[str, Any] = {"min_p": 0.1, "logit_bias": {5: -100.0}, "temperature": 0.5, "top_k": 3, "seed": 1}
    for field, value in values.items():
        params = SamplingParams(**{field: value})
        try:
            params._validate_spec_decode(object())
            rejected = False
        except VLLMValidationError:
            rejected = True
        assert rejected == (field in REJECTED_WITH_DRAFTER)


def test_the_configuration_says_who_drafts_and_which_modality_is_off() -> None:
    fleet = FleetConfig.model_validate(
        {
            "engines": [
                {"name": "plain"},
                {
                    "name": "ngram",
                    "drafter": {"method": "ngram"},
                    "engine_kwargs": {"limit_mm_per_prompt": {"image": 0}},
                },
                {"name": "far", "url": "http://x"},
            ]
        }
    )
    assert configured_abilities(fleet) == {
        "plain": EngineAbility(False),
        "ngram": EngineAbility(True, frozenset({"image"}), frozenset({"ngram"})),
        "far": EngineAbility(None),
    }


def test_a_model_that_one_engine_lacks_excludes_it_unless_its_models_are_unknown() -> None:
    made = abilities({"plain": {"x": card(), "lora": card()}, "suffix": {"x": card()}})
    assert made.unable(request(model="lora")) == {"suffix": "does not serve 'lora'"}
    assert made.unable(request(model="x")) == made.unable(request(model="nowhere")) == {}


def test_a_context_that_is_too_short_excludes_an_engine() -> None:
    made = abilities({"plain": {"x": card(1000)}, "suffix": {"x": card(100)}, "math": {"x": card()}})
    ids = request(COMPLETIONS, model="x", prompt=[1] * 90, max_tokens=20)
    assert made.unable(ids) == {"suffix": "takes at most 100 tokens"}
    assert made.unable(request(COMPLETIONS, model="x", prompt=[1] * 80, max_tokens=20)) == {}
    assert made.unable(request(model="x", text="word " * 400)) == {"suffix": "takes at most 100 tokens"}


def test_where_no_engine_can_all_may_say_so() -> None:
    made = abilities(plain=True, suffix=True, math=True)
    assert made.unable(request(min_p=0.1)) == {}


def test_what_an_engine_rejects_goes_to_the_one_without_a_drafter() -> None:
    made, asking = abilities(), request(min_p=0.1)
    found = made.rejection("suffix", asking, 400, WITH_DRAFTER.encode())
    assert found is not None
    assert found[1] == {"plain"}
    assert made.unable(request(logit_bias={"5": 1})) == {"suffix": "rejects logit_bias"}  # it says that it drafts
    assert made.rejection("plain", asking, 400, WITH_DRAFTER.encode()) is None


@pytest.mark.parametrize(
    ("status", "fields"), [(400, {}), (401, {"tools": [1]}), (403, {"tools": [1]}), (413, {"tools": [1]})]
)
def test_an_error_of_the_request_alone_is_final(status: int, fields: dict[str, Any]) -> None:
    assert abilities().rejection("suffix", request(**fields), status, b"no") is None


def test_a_rejection_is_remembered_once_another_engine_answers() -> None:
    made, asking = abilities(clock=(clock := Clock())), request(structured_outputs={"regex": "a"})
    found = made.rejection("suffix", asking, 400, b"no structured_outputs here")
    assert found is not None
    assert made.unable(asking) == {}
    made.record_answer("plain", asking, [found[0]])
    assert made.unable(asking) == {"suffix": "rejects structured_outputs"}
    assert made.unable(request(tools=[1])) == {}
    clock.now += 601
    assert made.unable(asking) == {}


def test_what_the_engine_without_a_drafter_rejects_is_asked_of_one_other() -> None:
    made, asking = abilities(), request(tools=[{}])
    found = made.rejection("plain", asking, 400, b"no")
    assert found is not None
    assert found[1] == {"suffix", "math"}
    assert made.rejection("suffix", asking, 400, b"no", [found[0]]) is None
    made.record_answer("math", asking, [])
    again = made.rejection("suffix", asking, 400, b"no", [found[0]])
    assert again is not None
    assert again[1] == {"math"}


def test_what_an_engine_has_taken_it_does_not_reject_for_that() -> None:
    made, asking = abilities(), request(structured_outputs={"regex": "(()"})
    made.record_answer("suffix", asking, [])
    assert made.rejection("suffix", asking, 400, b"bad regex") is None


def test_an_answer_ends_what_was_remembered() -> None:
    made, asking = abilities(), request(tools=[{}])
    found = made.rejection("math", asking, 400, b"tools")
    assert found is not None
    made.record_answer("plain", asking, [found[0]])
    made.record_answer("math", asking, [])
    assert made.unable(asking) == {}


def test_a_longer_context_or_the_adapter_is_elsewhere() -> None:
    models = {"plain": {"x": card(100)}, "suffix": {"x": card(1000), "lora": card()}}
    found = abilities(models).rejection("plain", request(model="x"), 400, b"maximum context length is 100 tokens")
    assert found is not None
    assert found[1] == {"suffix"}
    found = abilities(models).rejection("plain", request(model="lora"), 404, b"does not exist")
    assert found is not None
    assert found[1] == {"suffix"}
    assert abilities(models).rejection("suffix", request(model="nowhere"), 404, b"does not exist") is None


def test_a_path_that_one_engine_lacks_is_asked_of_others() -> None:
    made, asking = abilities(), request(RESPONSES)
    found = made.rejection("plain", asking, 404, b'{"detail":"Not Found"}')
    assert found is not None
    assert found[1] == {"suffix", "math"}
    made.record_answer("math", asking, [found[0]])
    assert made.unable(asking) == {"plain": f"rejects {RESPONSES}"}


GONE = b'{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","param":"model","code":404}}'


@pytest.mark.parametrize(
    ("models", "asked_next"),
    [
        ({name: {"x": card()} for name in ENGINES}, {"suffix", "math"}),  # as they were listed before
        ({"plain": {"x": card()}, "suffix": {"x": card()}, "math": {"y": card()}}, {"suffix"}),
    ],
)
def test_a_model_that_one_engine_has_no_more_is_asked_of_others(models: Any, asked_next: set[str]) -> None:
    made, asking = abilities(models), request(model="x")
    found = made.rejection("plain", asking, 404, GONE)
    assert found is not None
    assert found[1] == asked_next
    made.record_answer("suffix", asking, [found[0]])
    assert made.unable(asking)["plain"] == "rejects the model 'x'"
    assert "plain" not in made.unable(request(model="nowhere"))
    made.record_answer("plain", asking, [])
    assert "plain" not in made.unable(asking)


def test_a_model_that_no_engine_lists_is_asked_of_one() -> None:
    assert abilities().rejection("plain", request(model="x"), 404, GONE) is None


# --- in a router ---


def engine(rejects: str, text: str = WITH_DRAFTER) -> ASGIApp:
    """Rejects requests with this field, streams with an error event, as vLLM does."""
    error = {"error": {**REJECTED["error"], "message": text}}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        http = HttpRequest(scope, receive)
        fields = orjson.loads(await http.body() or b"{}")
        answer: Response = JSONResponse({"choices": [{"message": {"content": "x"}}]})
        if fields.get(rejects) and fields.get("stream"):
            data = b"data: %b\n\ndata: [DONE]\n\n" % orjson.dumps(error)
            answer = StreamingResponse(iter([data]), media_type="text/event-stream")
        elif fields.get(rejects):
            answer = JSONResponse(error, 400)
        await answer(scope, receive, send)

    return app


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("stream", [True, False])
async def test_no_request_is_refused_that_one_engine_takes(
    router_app: StartRouter, servers: Servers, stream: bool
) -> None:
    urls = {name: (await servers.serve(engine("min_p"))).url for name in ("suffix", "math", "code")}
    arms = ("plain", *urls)
    app = await router_app({"plain": FAST, **urls}, policy=UniformPolicy(arms), breaker={"consecutive_failures": 1})
    answers = [await app.post(min_p=0.05, stream=stream) for _ in range(16)]
    assert {(one.status_code, one.headers["x-draftpick-arm"]) for one in answers} == {(200, "plain")}
    assert sum(int(one.headers["x-draftpick-attempts"]) for one in answers) <= 16 + 3
    assert all("closed" in states.values() for states in app.replicas.health().values())
    assert len({(await app.post()).headers["x-draftpick-arm"] for _ in range(16)}) > 1
    explained = (await app.client.post("/v1/route/explain", json=asked(min_p=0.05))).json()
    assert {row["arm"]: row["unable"] for row in explained["arms"] if not row["eligible"]} == dict.fromkeys(
        sorted({one.decision.arm for one in await app.records(app.num_attempts)} - {"plain"}), "rejects min_p"
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_that_no_engine_takes_is_asked_once(router_app: StartRouter, servers: Servers) -> None:
    urls = {name: (await servers.serve(engine("logit_bias"))).url for name in "abc"}
    app = await router_app(urls)
    answer = await app.post(logit_bias={"5": -100}, stream=True)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, WITH_DRAFTER)
    assert len(await app.records(1)) == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_wrong_request_costs_at_most_one_more_attempt(router_app: StartRouter, servers: Servers) -> None:
    urls = {name: (await servers.serve(engine("tools", "bad schema"))).url for name in "abc"}
    app = await router_app(urls)
    for number in (2, 4):
        assert (await app.post(tools=[{}])).status_code == 400
        assert app.num_attempts == number


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_waits_for_the_engine_that_takes_it(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": FAST}, policy=FixedPolicy(("a", "b"), "a"))
    app.parts.catalog.drafts = {"a": False, "b": True}
    app.parts.catalog.on_change()
    app.replicas.update("a", [])
    assert (await app.post()).headers["x-draftpick-arm"] == "b"
    answer = await app.post(min_p=0.1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_engine")
