"""A router that follows a registry: canaries, promotions and rollbacks without a restart, over HTTP, and its events."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import mock_app
from draftpick.router.config.router_config import load_config
from draftpick.router.online.events import EVENTS, decode_events
from draftpick.router.policies import artifact
from draftpick.router.registry.registry import Registry
from draftpick.router.router import Router, fixed_address
from tests.deploy.artefact import write_policy
from tests.fleet import CHAT, FAST, MODEL, asked, until

ARMS = ("plain", "ngram")


def fixed_policy(folder: Path, arm: str) -> Path:
    """A policy that always takes one arm."""
    artifact.write(folder, {"kind": "fixed", "arms": list(ARMS), "featurizer": "", "options": {"arm": arm}}, {})
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """`p0001` takes `plain` and serves, `p0002` takes `ngram`."""
    made = Registry(tmp_path / "registry")
    for arm in ARMS:
        made.add(fixed_policy(tmp_path / arm, arm), {"reason": "test"}, "test")
    made.promote("p0001", "test")
    return made


@asynccontextmanager
async def served(registry: Path, records: Path, **more: Any) -> AsyncIterator[tuple[Router, httpx.AsyncClient]]:
    """A router that follows the registry, over one mock engine for both arms."""
    engine = LocalServer(mock_app(FAST, model=MODEL, engine="x"))
    await engine.start()
    settings = {"policy": str(registry), "default_engine": "plain", "featurizer": "none", "seed": 0, **more}
    engines = [{"name": arm, "url": engine.url} for arm in ARMS]
    config = load_config({"engines": engines, "router": {**settings, "records": {"dir": str(records)}}})
    router = Router(config, dict.fromkeys(ARMS, fixed_address(engine.url)))
    await router.start()
    server = LocalServer(router.app)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
            yield router, client
    finally:
        await asyncio.gather(server.drain(0.1), engine.drain(0.1))
        await router.stop()


async def arms_of(client: httpx.AsyncClient, n: int) -> list[str]:
    answers = [await client.post(CHAT, json=asked()) for _ in range(n)]
    assert all(answer.status_code == 200 for answer in answers)
    return [answer.headers["x-draftpick-arm"] for answer in answers]


async def test_a_canary_a_promotion_and_a_rollback_are_followed(registry: Registry, tmp_path: Path) -> None:
    async with served(registry.path, tmp_path / "records") as (router, client):
        assert set(await arms_of(client, 5)) == {"plain"}
        registry.set_canary_share("p0002", 0.3, "test", start=True)
        await until(lambda: router.parts.active_policies.share == 0.3)
        assert 20 < (await arms_of(client, 150)).count("ngram") < 75
        assert router.state()["candidate"] == {"policy": "fixed:ngram", "share": 0.3}
        registry.promote("p0002", "test")
        await until(lambda: router.state()["policy"] == "fixed:ngram")
        assert set(await arms_of(client, 5)) == {"ngram"}
        registry.rollback("test")
        await until(lambda: router.state()["policy"] == "fixed:plain")
        assert router.state()["candidate"] is None
    written = (tmp_path / "records" / "online" / EVENTS).read_bytes()
    kinds = [event.kind for event in decode_events(written)]
    assert kinds == ["policy_activated", "policy_activated"]


async def test_a_folder_that_becomes_a_registry_is_followed(tmp_path: Path) -> None:
    home = tmp_path / "registry"
    home.mkdir()
    async with served(home, tmp_path / "records") as (router, client):
        assert set(await arms_of(client, 3)) == {"plain"}
        assert "no active policy" in str(router.rejected)
        registry = Registry(home)
        registry.promote(registry.add(fixed_policy(tmp_path / "new", "ngram"), {}, "test"), "test")
        await until(lambda: router.rejected is None)
        assert set(await arms_of(client, 3)) == {"ngram"}


async def test_an_unusable_candidate_is_reported_and_the_active_policy_stays(
    registry: Registry, tmp_path: Path
) -> None:
    id = registry.add(write_policy(tmp_path / "mlp", ARMS), {}, "test")
    async with served(registry.path, tmp_path / "records") as (router, client):
        registry.set_canary_share(id, 0.9, "test", start=True)
        await until(lambda: router.candidate_rejected is not None)
        assert "needs the features" in str(router.state()["candidate_rejected"])
        assert set(await arms_of(client, 5)) == {"plain"}


async def test_a_state_that_cannot_be_read_leaves_what_serves(registry: Registry, tmp_path: Path) -> None:
    async with served(registry.path, tmp_path / "records") as (router, client):
        (registry.path / "state.json").write_text("{")
        await until(lambda: router.rejected is not None)
        assert set(await arms_of(client, 3)) == {"plain"}
        assert [event.kind for event in router.events.recent] == ["policy_rejected"]


# --- what replicas tell each other ---


async def test_a_folder_that_cannot_be_written_costs_news_and_no_request(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    online = {"dir": str(tmp_path / "file"), "correction": {"enabled": True}}
    async with served(registry.path, tmp_path / "records", online=online) as (router, client):
        registry.promote("p0002", "test")
        await until(lambda: any(part == "events" for part, _ in router.parts.metrics.failures), 5.0)
        assert set(await arms_of(client, 3)) == {"ngram"}


async def test_shadows_are_asked_of_all_other_engines_and_recorded_as_such(registry: Registry, tmp_path: Path) -> None:
    async with served(registry.path, tmp_path / "records", shadow={"sample_rate": 1.0}) as (router, client):
        await arms_of(client, 5)
        await until(lambda: router.parts.metrics.attempts()["ok"] == 10)
    lines = [json.loads(x) for path in (tmp_path / "records").glob("*.jsonl") for x in path.read_text().splitlines()]
    shadows = [line["decision"] for line in lines if line["decision"]["reason"] == "shadow"]
    assert [(one["arm"], one["probabilities"]) for one in shadows] == [("ngram", {"plain": 0.0, "ngram": 1.0})] * 5
