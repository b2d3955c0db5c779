"""The engines' metrics as one page."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from engines.client import EngineClient
from router.fleet_metrics import fleet_metrics
from tests.fleet import REFUSING_URL, Servers, StartMock

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = """# HELP vllm:spec_decode_num_drafts_total Number of drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} %d.0
# HELP vllm:e2e_s Durations.
# TYPE vllm:e2e_s histogram
vllm:e2e_s_bucket{le="0.3"} 1.0
vllm:e2e_s_bucket{le="+Inf"} 2.0
vllm:e2e_s_count 2.0
vllm:e2e_s_sum 1.5
# HELP up A gauge.
# TYPE up gauge
up 1.0
"""


@pytest_asyncio.fixture(loop_scope="module")
async def client() -> AsyncIterator[EngineClient]:
    opened = EngineClient(first_byte_timeout_s=30, timeout_s=60)
    yield opened
    await opened.close()


async def page(servers: Servers, drafts: int) -> str:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(PAGE % drafts)(scope, receive, send)

    return (await servers.serve(app)).url


async def test_samples_of_all_engines_stand_together_by_family(
    client: EngineClient, servers: Servers, mock_engine: StartMock
) -> None:
    first, second = await page(servers, 3), await page(servers, 5)
    silent = (await mock_engine()).url  # a mock engine has no such page
    text = await fleet_metrics(client, {"a": [first, second], "b": [silent], "c": [REFUSING_URL], "d": []})
    families = {family.name: family for family in text_string_to_metric_families(text)}
    drafts = families["vllm:spec_decode_num_drafts"].samples
    assert [(s.labels["replica"], s.labels["model_name"], s.value) for s in drafts] == [
        (first, "m", 3),
        (second, "m", 5),
    ]
    assert {s.labels["arm"] for s in drafts} == {"a"}
    assert len(families["vllm:e2e_s"].samples) == 8
    assert len(families["up"].samples) == 2
    assert text.count("# TYPE up") == 1
