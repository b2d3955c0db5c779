"""The page on other gateways: its LiteLLM plug-in routes requests, with LiteLLM itself where it is installed."""

import contextlib
import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import orjson
import pytest
import yaml

from draftpick.engines.reporting.report import BATCH
from draftpick.router.config.router_config import load_config
from tests.deploy.docs.code_blocks import blocks
from tests.fleet import CHAT, FAST, MODEL, Servers, StartRouter, until
from tests.router.request.test_leases import Start, reporting

__all__ = ["reporting"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = Path(__file__).parents[3] / "docs" / "gateways.md"
(PLUGIN,) = (block.text for block in blocks(PAGE) if block.name == "draftpick_litellm.py")
MESSAGES = [{"role": "user", "content": "Which engine?"}]


class StandIn:
    """What LiteLLM's router makes of a plug-in: it asks for a deployment, and sends the request there."""

    def __init__(self, plugin: Any) -> None:
        self._plugin = plugin

    async def acompletion(self, model: str, messages: list[dict[str, str]], **kwargs: Any) -> dict[str, Any]:
        chosen = await self._plugin.async_get_available_deployment(model, messages, request_kwargs=kwargs)
        params = chosen["litellm_params"]
        body = {"model": params["model"].partition("/")[2], "messages": messages, **kwargs, **params["extra_body"]}
        headers = {"authorization": f"Bearer {params['api_key']}", **params["extra_headers"]}
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{params['api_base']}/chat/completions", json=body, headers=headers)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found


def plugin(monkeypatch: pytest.MonkeyPatch, url: str) -> Any:
    """The page's plug-in for a router; without LiteLLM, over an empty base class in its place."""
    if importlib.util.find_spec("litellm") is None:
        types = ModuleType("litellm.types.router")
        types.CustomRoutingStrategyBase = object  # type: ignore[attr-defined]  # LiteLLM's has no behaviour either
        for name in ("litellm", "litellm.types"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, "litellm.types.router", types)
    found: dict[str, Any] = {}
    exec(compile(PLUGIN, "draftpick_litellm.py", "exec"), found)
    return found["Draftpick"](url)


@contextlib.asynccontextmanager
async def client(made: Any) -> AsyncIterator[StandIn]:
    yield StandIn(made)
    await made.router.aclose()


async def test_the_plug_in_sends_requests_to_the_leased_engine(
    reporting: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await reporting({"a": FAST})
    made = plugin(monkeypatch, app.server.url)
    async with client(made) as gateway:
        answer = await gateway.acompletion(MODEL, MESSAGES, max_tokens=5)
    assert answer["usage"]["completion_tokens"] == 5
    await until(lambda: app.num_attempts == 1)
    (record,) = await app.records(1)
    assert (record.outcome.status, record.outcome.output_tokens, record.path) == ("ok", 5, CHAT)
    assert record.sampling == {"max_tokens": 5.0}


async def test_the_pages_blocks_are_what_they_seem(router_app: StartRouter, servers: Servers) -> None:
    fleet, outcomes = (next(b.text for b in blocks(PAGE) if b.language == name) for name in ("yaml", "json"))
    assert load_config(yaml.safe_load(fleet)).router.leases.enabled
    assert len(BATCH.validate_json(outcomes).outcomes) == 2
    app = await router_app({"a": FAST}, leases={"enabled": True})
    told = await app.client.post("/v1/outcomes", json=orjson.loads(outcomes))
    assert told.json() == {"outcomes": {"unknown": 2}}


@pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="LiteLLM is not installed")
async def test_litellm_takes_the_plug_in(reporting: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    import litellm

    app = await reporting({"a": FAST})
    params = {"model": f"hosted_vllm/{MODEL}", "api_base": "http://127.0.0.1:9/v1", "api_key": "none"}
    gateway = litellm.Router(model_list=[{"model_name": MODEL, "litellm_params": params}])
    register = getattr(gateway, "register_plugin", None) or gateway.set_custom_routing_strategy
    register(plugin(monkeypatch, app.server.url))
    answer = await gateway.acompletion(MODEL, MESSAGES, max_tokens=5)
    assert answer.usage.completion_tokens == 5
    await until(lambda: app.num_attempts == 1)
