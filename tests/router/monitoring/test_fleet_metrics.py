"""The metrics of routers and engines as one page."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from draftpick.engines.http.client import EngineClient
from draftpick.router.monitoring.fleet_metrics import fleet_metrics, page_of
from draftpick.router.telemetry.metrics import Metrics
from tests.fleet import FAST, REFUSING_URL, Servers, StartMock, StartRouter

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


async def test_a_page_without_an_end_is_left_out(client: EngineClient, servers: Servers) -> None:
    good = await page(servers, 3)
    endless = (await servers.serve(PlainTextResponse("up 1\n" * 2**22))).url
    text = await fleet_metrics(client, {"a": [endless], "b": [good]})
    assert len(text) < 2**12
    assert f'replica="{good}"' in text


async def test_samples_of_all_engines_stand_together_by_family(client: EngineClient, servers: Servers) -> None:
    first, second = await page(servers, 3), await page(servers, 5)
    silent = (await servers.serve(PlainTextResponse("no such page", 404))).url
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


async def test_the_routers_come_first_and_each_by_its_name(client: EngineClient, mock_engine: StartMock) -> None:
    own = await page_of([Metrics(("a",), "a")])
    text = await fleet_metrics(client, {"a": [(await mock_engine()).url]}, {"0": own, "1": own})
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    assert families[0].name.startswith("draftpick_")
    assert families[-1].name.startswith("vllm:")
    first = next(family for family in families if family.name == "draftpick_explored")
    assert [sample.labels for sample in first.samples] == [{"router": "0", "arm": "a"}, {"router": "1", "arm": "a"}]


async def test_an_address_is_shown_without_the_password_in_it(client: EngineClient, servers: Servers) -> None:
    url = await page(servers, 3)
    text = await fleet_metrics(client, {"a": [url.replace("//", "//user:dp-guessed@")]})
    assert f'replica="{url}"' in text
    assert "dp-guessed" not in text


async def test_engines_that_go_while_they_are_asked_cost_no_page(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": REFUSING_URL})
    await app.post()
    text = (await app.client.get("/metrics")).text
    replicas = {s.labels.get("replica") for f in text_string_to_metric_families(text) for s in f.samples}
    assert app.engines["a"].url in replicas
    assert text.endswith("\n")
