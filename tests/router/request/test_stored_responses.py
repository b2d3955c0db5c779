"""Stored responses: their state is in one engine, and requests for it go there."""

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from draftpick.router.errors import NotFound
from draftpick.router.policies.baselines import UniformPolicy
from draftpick.router.request.stored_responses import StoredResponses
from tests.fleet import FAST, RESPONSES, Routed, Servers, StartRouter

ARMS = ("a", "b", "c")


def storing(name: str) -> ASGIApp:
    """An engine that keeps its responses, as vLLM does."""
    kept: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        http = Request(scope, receive)
        answer: Response = JSONResponse({"error": {"message": "not found", "code": 404}}, 404)
        if http.method == "POST" and http.url.path == RESPONSES:
            previous = (await http.json()).get("previous_response_id")
            if previous in (None, *kept):
                kept.append(f"resp_{name}{len(kept)}")
                answer = JSONResponse({"id": kept[-1], "object": "response", "output": []})
        elif http.url.path.split("/")[3] in kept:
            answer = JSONResponse({"id": http.url.path.split("/")[3]})
        await answer(scope, receive, send)

    return app


async def fleet(router_app: StartRouter, servers: Servers) -> Routed:
    urls = {name: (await servers.serve(storing(name))).url for name in ARMS}
    return await router_app(urls, policy=UniformPolicy(ARMS), breaker={"consecutive_failures": 1})


@pytest.mark.asyncio(loop_scope="module")
async def test_a_conversation_goes_on_where_it_is(router_app: StartRouter, servers: Servers) -> None:
    app = await fleet(router_app, servers)
    for _ in range(6):
        first = (await app.post(RESPONSES)).json()["id"]
        second = await app.post(RESPONSES, previous_response_id=first)
        third = await app.client.get(f"{RESPONSES}/{first}")
        assert (second.status_code, third.json()["id"]) == (200, first)
        assert second.headers["x-draftpick-attempts"] == third.headers["x-draftpick-attempts"] == "1"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_response_of_unknown_place_is_looked_for(router_app: StartRouter, servers: Servers) -> None:
    app = await fleet(router_app, servers)
    ids = [(await app.post(RESPONSES)).json()["id"] for _ in range(6)]
    app.parts.dispatcher._responses = StoredResponses()
    assert [(await app.client.get(f"{RESPONSES}/{one}/cancel")).status_code for one in ids] == [200] * 6
    gone = await app.client.get(f"{RESPONSES}/resp_x")
    assert (gone.status_code, gone.headers["x-draftpick-attempts"]) == (404, "3")
    assert {state for states in app.replicas.health().values() for state in states.values()} == {"closed"}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_place_of_a_streamed_response_is_known(router_app: StartRouter) -> None:
    app = await router_app(dict.fromkeys(ARMS, FAST), policy=UniformPolicy(ARMS))
    for _ in range(4):
        answer = await app.post(RESPONSES, stream=True)
        name = answer.text.split('"id":"')[1].split('"')[0]
        arm = answer.headers["x-draftpick-arm"]
        assert app.parts.dispatcher._responses.holder(name, "") == app.replicas.urls()[arm][0]


def test_a_response_belongs_to_the_key_that_asked_for_it() -> None:
    known = StoredResponses(max_known=2)
    known.add("resp_1", "u", "one")
    assert known.holder("resp_1", "one") == "u"
    with pytest.raises(NotFound):
        known.holder("resp_1", "two")
    known.add("resp_2", "u", "one")
    known.add("resp_3", "u", "one")
    known.add(None, "u", "one")
    assert known.holder("resp_1", "two") is None
