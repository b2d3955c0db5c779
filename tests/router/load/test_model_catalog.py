"""The models of a fleet, from the engines' own pages."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from draftpick.engines.http.client import EngineClient
from draftpick.engines.replicas import ReplicaTable
from draftpick.router.load.model_catalog import ModelCatalog
from tests.fleet import REFUSING_URL, Servers

pytestmark = pytest.mark.asyncio(loop_scope="module")


def serving(models: Any, metrics: str = "") -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        listed = Request(scope).url.path == "/v1/models"
        await (JSONResponse(models) if listed else Response(metrics))(scope, receive, send)

    return app


async def polled(servers: Servers, **engines: ASGIApp | str) -> ModelCatalog:
    table = ReplicaTable(engines)
    for name, app in engines.items():
        table.update(name, [app if isinstance(app, str) else (await servers.serve(app)).url])
    client = EngineClient(first_byte_timeout_s=1, timeout_s=1)
    catalog = ModelCatalog(client, table, engines)
    await catalog.poll()
    await client.close()
    return catalog


def listed(*cards: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": list(cards)}


async def test_models_are_merged_with_their_longest_context(servers: Servers) -> None:
    long, short = {"id": "org/x", "max_model_len": 4096, "owned_by": "vllm"}, {"id": "org/x", "max_model_len": 1024}
    lora = {"id": "lora", "parent": "org/x"}
    catalog = await polled(
        servers, a=serving(listed(lora, short)), b=serving(listed(long)), c=REFUSING_URL, d=serving([1])
    )
    assert [(card["id"], card.get("max_model_len")) for card in catalog.cards("org/x")] == [
        ("org/x", 4096),
        ("lora", None),
    ]
    assert catalog.max_model_len("a", "org/x") == 1024
    assert catalog.max_model_len("c", "org/x") is None


@pytest.mark.parametrize(
    "page", [None, {}, {"data": 3}, {"data": [1, {}, {"id": 3}]}, {"data": [{"id": "x", "max_model_len": "long"}]}]
)
async def test_odd_pages_say_nothing(servers: Servers, page: Any) -> None:
    catalog = await polled(servers, a=serving(page))
    assert catalog.max_model_len("a", "x") is None


async def test_an_engines_metrics_say_whether_it_drafts(servers: Servers) -> None:
    page = "vllm:num_requests_running 0\n"
    spec = page + "vllm:spec_decode_num_drafts_total 0\n"
    vllm = listed({"id": "x", "owned_by": "vllm"})
    engines = {"a": serving(vllm, page), "b": serving(vllm, spec), "c": serving(vllm, "x 1\n"), "d": serving({}, spec)}
    assert (await polled(servers, **engines)).drafts == {"a": False, "b": True}


async def test_clients_share_a_poll_and_cannot_repeat_it_at_will(servers: Servers) -> None:
    asked, now = 0, 0.0

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        await Response(status_code=404)(scope, receive, send)

    table = ReplicaTable(["a"])
    table.update("a", [(await servers.serve(silent)).url])
    client = EngineClient(first_byte_timeout_s=1, timeout_s=1)
    catalog = ModelCatalog(client, table, clock=lambda: now)
    callers = [asyncio.create_task(catalog.refresh()) for _ in range(20)]
    await asyncio.sleep(0.01)
    callers[0].cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    await catalog.refresh()
    assert asked == 1
    now = 1.5
    await catalog.refresh()
    assert asked == 2
    await client.close()
