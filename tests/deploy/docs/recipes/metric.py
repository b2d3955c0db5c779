"""The metrics of docs/extending.md: counted, on the router's page, and in the list of metrics."""

import pytest

from draftpick.deploy.generate import metrics_page
from tests.fleet import FAST, StartRouter

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_answers_are_observed_and_state_is_read(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST})
    await app.post()
    page = (await app.client.get("/metrics")).text
    assert 'draftpick_prompt_length_tokens_count{router="0",arm="a"} 1.0' in page
    assert 'draftpick_shadow_requests_total{router="0"} 0.0' in page
    for name in ("draftpick_prompt_length_tokens", "draftpick_shadow_requests_total"):
        assert f"| `{name}` |" in metrics_page.text()
