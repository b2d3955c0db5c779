"""Turns of a session go where their prefix is, and what they accepted forecasts the next one."""

import math
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from draftpick.engines.mock.spec import MockSpec
from draftpick.router.openai_request import parse
from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.types import Accepted
from tests.fleet import CHAT, FAST, MODEL, REFUSING_URL, RESPONSES, Routed, Servers, StartRouter
from tests.router.request.test_pool import ARMS, PLAIN, ROUTER, forecast, policy, started

pytestmark = pytest.mark.asyncio(loop_scope="module")

SESSION = "x-draftpick-session"
NAMED = {SESSION: "agent-1"}
ONE_ENGINE = FixedPolicy(("a",), "a")


async def replicated(router_app: StartRouter, servers: Servers, spec: MockSpec = FAST, **router: Any) -> Routed:
    """A router over one engine with three replicas."""
    app = await router_app({"a": spec}, policy=ONE_ENGINE, **router)
    urls = [app.engines["a"].url, *[(await servers.mock(spec)).url for _ in range(2)]]
    app.replicas.update("a", urls)
    return app


def conversation(turns: int) -> dict[str, Any]:
    """A short body, whose first bytes differ by turn, so that no prefix of it is known."""
    said = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"so {i}"} for i in range(2 * turns - 1)]
    return {"seed": turns, "model": MODEL, "messages": said}


async def turn(app: Routed, number: int, headers: Mapping[str, str] = NAMED, **fields: Any) -> str:
    """What a turn of a conversation says that it found."""
    answer = await app.client.post(CHAT, json={**conversation(number), **fields}, headers=dict(headers))
    assert answer.status_code == 200
    return answer.headers.get(SESSION, "")


async def test_turns_stay_at_the_replica_of_the_last_one(router_app: StartRouter, servers: Servers) -> None:
    app = await replicated(router_app, servers)
    assert [await turn(app, number) for number in range(1, 6)] == ["new", "kept", "kept", "kept", "kept"]
    assert [await turn(app, number, {}) for number in range(1, 3)] == ["", ""]


async def test_a_turn_moves_from_a_busy_replica(router_app: StartRouter, servers: Servers) -> None:
    app = await replicated(router_app, servers)
    await turn(app, 1)
    busy = next(one for one in app.replicas.by_arm["a"] if one.answered_at > 0)
    busy.foreign_in_flight = 64
    assert await turn(app, 2) == "moved"


async def test_a_session_whose_replica_is_gone_starts_fresh(router_app: StartRouter, servers: Servers) -> None:
    app = await replicated(router_app, servers)
    await turn(app, 1)
    there = next(one.url for one in app.replicas.by_arm["a"] if one.answered_at > 0)
    app.replicas.update("a", [one.url for one in app.replicas.by_arm["a"] if one.url != there])
    assert [await turn(app, 2), await turn(app, 3)] == ["fresh", "kept"]


async def test_a_replica_that_dies_in_a_turn_loses_no_answer(router_app: StartRouter, servers: Servers) -> None:
    app = await replicated(router_app, servers)
    await turn(app, 1)
    session = next(iter(app.parts.dispatcher.sessions._by_key[""].values()))
    session.url = REFUSING_URL
    app.replicas.update("a", [REFUSING_URL, app.engines["a"].url])
    answer = await app.client.post(CHAT, json=conversation(2), headers=NAMED)
    assert (answer.status_code, answer.headers[SESSION]) == (200, "fresh")
    assert answer.headers["x-draftpick-attempts"] == "2"


@pytest.mark.parametrize(
    "fields", [{"prompt_cache_key": "one"}, {"conversation": "one"}, {"conversation": {"id": "one"}}]
)
async def test_fields_of_openai_name_a_session(
    router_app: StartRouter, servers: Servers, fields: dict[str, Any]
) -> None:
    app = await replicated(router_app, servers)
    assert [await turn(app, 1, {}, **fields), await turn(app, 2, {}, **fields)] == ["new", "kept"]
    assert await turn(app, 3, {}, prompt_cache_key="two") == "new"
    assert await turn(app, 3, NAMED, **fields) == "new"  # the header counts first


@pytest.mark.parametrize("value", [None, "", 7, ["one"], {"id": 7}])
async def test_a_field_of_another_form_is_left_to_the_engine(value: Any) -> None:
    body = b'{"prompt_cache_key":%b}' % orjson.dumps(value)
    assert parse(CHAT, body).session is None


@pytest.mark.parametrize("name", ["", "a b", "é", "x" * 129])
async def test_a_malformed_name_is_said_with_its_header(router_app: StartRouter, name: str) -> None:
    app = await router_app({"a": FAST})
    answer = await app.client.post(CHAT, json=conversation(1), headers={SESSION: name.encode()})  # type: ignore[dict-item]
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, SESSION, "bad_session")
    assert "1 to 128 letters" in error["message"]


async def test_an_engine_never_sees_the_header(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST})
    await turn(app, 1)
    state = app.engines["a"].engine.state()
    assert "agent-1" not in str(state)


async def test_a_record_has_our_id_and_the_tools_of_the_turn(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST})
    await turn(app, 1)
    call = {"id": "c", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
    loop = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "b"},
    ]
    tools = [{"type": "function", "function": {"name": "ls"}}]
    await app.client.post(CHAT, json={"model": MODEL, "messages": loop, "tools": tools}, headers=NAMED)
    await app.post()
    first, second, other = await app.records(3)
    assert first.turn is not None
    assert second.turn is not None
    assert other.turn is None
    assert first.turn.session == second.turn.session
    assert (first.turn.number, first.turn.placement, first.turn.tool_results) == (1, "new", 0)
    assert (second.turn.number, second.turn.placement) == (2, "kept")
    assert (second.turn.tool_results, second.turn.after_tool) == (1, True)
    assert "agent-1" not in "".join(path.read_text() for path in app.folder.iterdir())


@pytest.mark.parametrize(
    ("path", "body", "found"),
    [
        (RESPONSES, b'{"input":[{"type":"function_call_output"},{"role":"user"}],"tools":[1]}', (1, False)),
        ("/v1/messages", b'{"messages":[{"role":"user","content":[{"type":"tool_result"}]}],"tools":[1]}', (1, True)),
        (CHAT, b'{"messages":[7,{"role":"tool"}],"tools":[1]}', (1, True)),
        (CHAT, b'{"messages":"x","tools":[1]}', (0, False)),
    ],
)
async def test_results_of_tools_are_counted_as_each_api_has_them(
    path: str, body: bytes, found: tuple[int, bool]
) -> None:
    request = parse(path, body)
    assert (request.tool_results, request.after_tool) == found


async def test_a_pool_expects_what_the_last_turns_accepted(router_app: StartRouter) -> None:
    app = await started(router_app, policy(ngram=1.2, math=1.2))
    await turn(app, 1)
    before = forecast(app)
    for number in range(2, 5):
        await turn(app, number)
    after = forecast(app)
    assert before is not None
    assert after is not None
    assert before.tau["math"] == pytest.approx(1.2, rel=1e-3)
    assert 1.8 < after.tau["math"] < 3.0  # the pool's drafter has 3.0
    assert after.tau["ngram"] < 1.3
    assert before.weight < after.weight <= 32.0
    await turn(app, 5, {SESSION: "agent-2"})
    assert forecast(app).tau["math"] < after.tau["math"]  # type: ignore[union-attr]


async def test_a_pool_of_a_fixed_policy_gets_the_turns_alone(router_app: StartRouter) -> None:
    app = await started(router_app, FixedPolicy(ARMS, "pool"))
    await turn(app, 1)
    assert forecast(app).tau == {}  # type: ignore[union-attr]
    await turn(app, 2)
    sent = forecast(app)
    assert sent is not None
    assert sent.tau["math"] > 2.0 > sent.tau["ngram"]
    assert sent.weight == 8.0


async def test_engines_with_one_drafter_are_chosen_by_the_turns(router_app: StartRouter) -> None:
    specs = {
        "plain": PLAIN,
        "math": FAST.model_copy(
            update={"output_tokens": 60, "num_speculative_tokens": 4, "acceptance_length": 1.0, "step_s": 0.001}
        ),
    }
    made = policy(("plain", "math"), math=1.15)
    online = {"correction": {"enabled": False}}
    app = await router_app(specs, policy=made, **ROUTER, online=online, load={"enabled": False})
    assert (await app.post(headers=NAMED)).headers["x-draftpick-arm"] == "math"
    session = next(iter(app.parts.dispatcher.sessions._by_key[""].values()))
    session.accepted["math"] = Accepted(math.log(0.5), 16.0)
    assert (await app.post(headers=NAMED)).headers["x-draftpick-arm"] == "plain"
    assert (await app.post()).headers["x-draftpick-arm"] == "math"


async def test_no_session_is_kept_if_none_may_be(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST}, sessions={"max_sessions": 0})
    assert [await turn(app, 1), await turn(app, 2)] == ["", ""]
