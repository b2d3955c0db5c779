"""The pages of an engine: what they show, and that everything else passes them untouched."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from draftpick.engines import load_report as load
from draftpick.engines.http.status_pages import Endpoint, EndpointTable
from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile import profile
from draftpick.engines.profile.profile import Profile

REPORT = LoadReport(running=3, waiting=1, kv_cache_usage=0.25, tokens_per_s=90.0, acceptance_length=2.5, step_s=0.03)
PROFILE = Profile("b", "m", (1, 8), (0,), (((0.03,), (0.05,)), ((0.04,), (0.06,))), 0.01, 0.001, 16)


async def echo(request: Request) -> Response:
    return PlainTextResponse(f"{request.method} {request.url.path} {(await request.body()).decode()}", 203)


def client(shown: LoadReport | None = REPORT, known: Profile | None = PROFILE) -> httpx.AsyncClient:
    pages: dict[str, Endpoint] = {load.PATH: lambda state: state.load, profile.PATH: lambda state: state.profile}
    routes = [Route("/{path:path}", echo, methods=["GET", "POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(EndpointTable, pages=pages)])
    app.state.load, app.state.profile = shown, known
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://engine")


async def test_pages_show_what_a_router_can_read() -> None:
    async with client() as engine:
        told, measured = await engine.get(load.PATH), await engine.get(profile.PATH)
    assert LoadReport.from_json(told.content) == REPORT
    assert Profile.from_json(measured.content) == PROFILE
    assert told.headers["content-type"] == measured.headers["content-type"] == "application/json"


async def test_a_head_has_no_body() -> None:
    async with client() as engine:
        head, page = await engine.head(load.PATH), await engine.get(load.PATH)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == page.headers["content-length"]


async def test_what_there_is_none_of_is_not_found() -> None:
    async with client(None, None) as engine:
        assert (await engine.get(load.PATH)).status_code == 404
        assert (await engine.get(profile.PATH)).status_code == 404


@pytest.mark.parametrize("path", ["/v1/chat/completions", load.PATH, profile.PATH, f"{load.PATH}/x", "/draftpick"])
async def test_everything_else_passes(path: str) -> None:
    async with client() as engine:
        answer = await engine.post(path, content=b"body")
    assert (answer.status_code, answer.text) == (203, f"POST {path} body")
