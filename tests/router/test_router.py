"""The router's composition: policy and features by configuration, replicas that are followed, policies that change."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import pytest_asyncio

from draftpick.router.config.router_config import LiveConfig, LiveExplorationConfig, load_config
from draftpick.router.config.sections import AdmissionConfig
from draftpick.router.errors import PolicyRejected
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.http.auth import digest
from draftpick.router.policies import artifact
from draftpick.router.policies.baselines import FixedPolicy, UniformPolicy
from draftpick.router.records import read
from draftpick.router.registry.resolve import resolve_configured
from draftpick.router.router import Router, addresses_behind, make_featurizer
from tests.fleet import CHAT, MODEL, Servers, StartMock, asked, until
from tests.router.policies.test_policies import mlp, weights

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARMS = ("a", "b", "c", "d")
StartedRouter = Callable[..., Awaitable[Router]]


class Addresses:
    """Where an arm's replicas are, as Serve would tell."""

    def __init__(self, *urls: str) -> None:
        self.urls = list(urls)
        self.error: Exception | None = None

    async def __call__(self) -> list[str]:
        if self.error is not None:
            raise self.error
        return self.urls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy for `ARMS` that needs lexical features."""
    manifest = {"kind": "mlp", "arms": list(ARMS), "featurizer": LexicalFeaturizer().id, "options": {}}
    artifact.write(tmp_path / "policy", manifest, weights())
    return tmp_path / "policy"


@pytest_asyncio.fixture(loop_scope="module")
async def start(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StartedRouter]:
    """Starts routers that look for replicas fifty times a second."""
    monkeypatch.setattr("draftpick.router.router._REFRESH_S", 0.02)
    routers: list[Router] = []

    async def start(sources: dict[str, Addresses] | None = None, **router: Any) -> Router:
        engines = [{"name": arm, "kind": "mock"} for arm in ARMS]
        config = {"target": {"name": MODEL}, "engines": engines, "router": {"default_engine": "a", **router}}
        made = Router(load_config(config), dict(sources or {}))
        routers.append(made)
        await made.start()
        return made

    yield start
    for made in routers:
        await made.stop()


async def test_the_router_serves_and_stops_with_its_records_written(
    start: StartedRouter, servers: Servers, mock_engine: StartMock, tmp_path: Path
) -> None:
    router = await start({"a": Addresses((await mock_engine()).url)}, records={"dir": str(tmp_path)})
    async with httpx.AsyncClient(base_url=(await servers.serve(router.app)).url) as client:
        assert (await client.post(CHAT, json=asked())).headers["x-draftpick-arm"] == "a"
        state = (await client.get("/ready")).json()
    assert state["ready"]
    assert state["policy"] == "fixed:a"
    assert state["policy_rejected"] is None
    assert state["engines"] == {"a": 1, "b": 0, "c": 0, "d": 0}
    assert state["in_flight"] == dict.fromkeys(ARMS, 0)
    assert state["counts"] == {"attempts_ok": 1}
    await router.stop()
    assert [record.outcome.status for record in read(tmp_path)] == ["ok"]


async def test_replicas_are_followed(start: StartedRouter) -> None:
    addresses = Addresses()
    router = await start({"a": addresses, "b": Addresses("http://b")})
    assert router.state()["engines"] == {"a": 0, "b": 1, "c": 0, "d": 0}
    addresses.urls = ["http://a1", "http://a2"]
    await until(lambda: router.state()["engines"] == {"a": 2, "b": 1, "c": 0, "d": 0})
    addresses.urls = []
    await until(lambda: router.state()["engines"] == {"a": 0, "b": 1, "c": 0, "d": 0})


async def test_a_name_is_all_of_its_addresses(start: StartedRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = [(socket.AF_INET6, "fd00::1"), (socket.AF_INET, "10.0.0.1"), (socket.AF_INET, "10.0.0.2")]

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        assert (host, port) == ("plain", 8000)
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in hosts]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    addresses = addresses_behind("http://me:secret@plain:8000/v1")
    assert await addresses() == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"], "one pod may have both kinds"
    del hosts[1:]
    assert await addresses() == ["http://[fd00::1]:8000"]
    assert await addresses_behind("https://plain:8000")() == ["https://plain:8000"], "its certificate is for the name"


async def test_all_addresses_of_a_name_are_reached_as_the_engine_is(start: StartedRouter) -> None:
    engines = [{"name": "a", "url": "http://me:secret@plain:8000"}]
    router = Router(load_config({"engines": engines, "router": {"default_engine": "a"}}), {})
    router._sources["a"] = Addresses("http://10.0.0.1:8000", "http://10.0.0.2:8000")
    await router._refresh_replicas("a")
    keys = {url: access.authorization for url, access in router.access.items()}
    assert set(keys.values()) == {"Basic bWU6c2VjcmV0"}
    assert {"http://10.0.0.1:8000", "http://10.0.0.2:8000"} <= set(keys)
    await router.stop()


async def test_servers_beside_it_start_and_stop_with_it(start: StartedRouter) -> None:
    class Beside:
        steps: ClassVar[list[str]] = []

        async def start(self) -> None:
            self.steps.append("start")

        async def stop(self) -> None:
            self.steps.append("stop")

    router = Router(load_config({"engines": [{"name": "a", "kind": "mock"}], "router": {"default_engine": "a"}}), {})
    router.beside.append(Beside())
    await router.start()
    assert Beside.steps == ["start"]
    await router.stop()
    assert Beside.steps == ["start", "stop"]


async def test_an_engine_that_cannot_be_asked_is_asked_again(start: StartedRouter) -> None:
    addresses = Addresses("http://a")
    addresses.error = RuntimeError("starting")
    router = await start({"a": addresses})
    assert not router.state()["ready"]
    addresses.error = None
    await until(lambda: bool(router.state()["ready"]))


# --- policy and features ---


async def test_a_policy_brings_its_features(start: StartedRouter, folder: Path) -> None:
    router = await start(policy=str(folder))
    assert router.rejected is None
    assert isinstance(router.parts.dispatcher.featurizer, LexicalFeaturizer)
    assert router.parts.active_policies.policy.id.startswith("mlp:")


async def test_a_policy_without_its_features_is_refused_and_the_default_engine_serves(
    start: StartedRouter, folder: Path
) -> None:
    router = await start(policy=str(folder), featurizer="none")
    assert router.parts.active_policies.policy.id == "fixed:a"
    assert "needs the features 'lexical-64+lexical-v3'" in str(router.state()["policy_rejected"])


async def test_a_policy_that_cannot_be_read_is_refused_and_the_default_engine_serves(
    start: StartedRouter, tmp_path: Path
) -> None:
    router = await start(policy=str(tmp_path / "nowhere"))
    assert router.parts.active_policies.policy.id == "fixed:a"
    assert "is not a readable policy" in str(router.state()["policy_rejected"])


async def test_another_policy_can_be_taken_into_service_and_back(start: StartedRouter, folder: Path) -> None:
    router = await start(policy="uniform")
    policy_id = await router.use_policy(str(folder))
    assert router.state()["policy"] == policy_id
    assert isinstance(router.parts.dispatcher.featurizer, LexicalFeaturizer)
    assert await router.use_policy("uniform") == router.state()["policy"] == "uniform"


async def test_a_refused_policy_leaves_the_one_that_serves(start: StartedRouter, tmp_path: Path) -> None:
    router = await start(policy="uniform")
    with pytest.raises(PolicyRejected):
        await router.use_policy(str(tmp_path / "nowhere"))
    assert router.state()["policy"] == "uniform"


async def test_a_good_policy_clears_the_refusal_of_another(start: StartedRouter, tmp_path: Path) -> None:
    router = await start(policy=str(tmp_path / "nowhere"))
    await router.use_policy("uniform")
    assert router.state()["policy_rejected"] is None


async def test_choosing_a_policy_never_fails(folder: Path) -> None:
    config = load_config(
        {"engines": [{"name": "a"}, {"name": "x"}], "router": {"default_engine": "x", "policy": str(folder)}}
    )
    chosen, refused = resolve_configured(config.router, config.arms)
    assert chosen.policy.id == "fixed:x"
    assert refused is not None
    assert "was made for the engines" in refused


@pytest.mark.parametrize(
    ("name", "policy", "expected"),
    [
        ("auto", UniformPolicy(ARMS), None),
        ("auto", mlp(), LexicalFeaturizer),
        ("none", mlp(), None),
        ("lexical", FixedPolicy(ARMS, "a"), LexicalFeaturizer),
    ],
)
async def test_features_by_name(name: str, policy: Any, expected: type | None) -> None:
    engines = [{"name": arm} for arm in ARMS]
    config = load_config({"engines": engines, "router": {"default_engine": "a", "featurizer": name}})
    made = make_featurizer(config.router, policy)
    assert made is None if expected is None else isinstance(made, expected)


# --- what changes while it runs ---


async def test_a_file_that_names_a_policy_is_rejected_with_the_way_out(start: StartedRouter, tmp_path: Path) -> None:
    (tmp_path / "active").write_text("uniform\n")
    router = await start(policy=str(tmp_path / "active"))
    assert router.state()["policy"] == "fixed:a"
    assert "draftpick policies activate FOLDER --registry REGISTRY" in str(router.rejected)


async def test_policy_exploration_and_limits_change_while_it_runs(start: StartedRouter, mock_engine: StartMock) -> None:
    router = await start({"a": Addresses((await mock_engine()).url)})
    await router.configure(
        LiveConfig(
            policy="uniform", exploration=LiveExplorationConfig(rate=0.5), admission=AdmissionConfig(max_in_flight=7)
        )
    )
    assert router.state()["policy"] == "uniform"
    assert router.parts.active_policies.explore == 0.5
    assert router.parts.admission.limits.max_in_flight == 7
    await router.configure(LiveConfig(policy="/nowhere"))
    assert router.state()["policy"] == "uniform"
    assert "/nowhere" in str(router.rejected)
    await router.configure(LiveConfig(exploration=LiveExplorationConfig(rate=0.0)))
    assert router.parts.admission.limits.max_in_flight == 7


async def test_keys_that_change_are_taken(start: StartedRouter, servers: Servers, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"- {{name: one, sha256: {digest('one')}}}")
    router = await start(keys={"file": str(path)})

    async with httpx.AsyncClient(base_url=(await servers.serve(router.app)).url) as client:

        async def status(key: str) -> int:
            return (await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code

        assert (await status("one"), await status("two")) == (200, 401)
        path.write_text("- {name: broken}")
        await asyncio.sleep(0.6)
        assert await status("one") == 200
        path.write_text(f"- {{name: two, sha256: {digest('two')}}}")
        await asyncio.sleep(0.6)
        assert (await status("one"), await status("two")) == (401, 200)
