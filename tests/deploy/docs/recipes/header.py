"""The request header of docs/extending.md: parsed, applied, and described."""

import pytest

from draftpick.deploy.generate import config_page
from draftpick.router.http.app import _client_fields
from draftpick.router.http.auth import ANONYMOUS
from tests.fleet import FAST, StartRouter

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "x-draftpick-objective"


async def test_it_sets_the_objective_of_a_request(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST})
    assert (await app.post(headers={NAME: "latency"})).status_code == 200
    assert (await app.post(headers={NAME: "luck"})).json()["error"]["code"] == "bad_objective"
    assert _client_fields({NAME: "cost"}, ANONYMOUS, 0.0, "id")["objective"] == "cost"
    described = (await app.client.get("/openapi.json")).json()["paths"]["/v1/chat/completions"]["post"]["parameters"]
    assert NAME in [header["name"] for header in described]
    assert f"| `{NAME}` |" in config_page.text()
