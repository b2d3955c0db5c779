"""Recovery of engines that could not be reached, without a client's request."""

import pytest

from draftpick.engines.circuit_breaker import BreakerConfig
from draftpick.engines.http.client import EngineClient
from draftpick.engines.replicas import ReplicaTable
from draftpick.router.load.health_probe import HealthProbe
from tests.fleet import FAST, REFUSING_URL, Servers

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_engine_that_is_back_is_eligible_without_traffic(servers: Servers) -> None:
    there = (await servers.mock(FAST)).url
    replicas = ReplicaTable(["back", "gone"], BreakerConfig(base_ejection_s=30))
    client = EngineClient(first_byte_timeout_s=5, timeout_s=5)
    for arm, url in (("back", there), ("gone", REFUSING_URL)):
        replicas.update(arm, [url])
        with replicas.lease(arm) as lease:
            lease.unreachable = True
    assert not replicas.reachable()
    assert replicas.unavailable_reason("back") == "gone"
    await HealthProbe(client, replicas).probe()
    assert replicas.reachable()
    assert replicas.eligible() == ["back"]
    assert replicas.health() == {"back": {there: "half_open"}, "gone": {REFUSING_URL: "open"}}
    await client.close()
