"""Who gets leases and tells outcomes, and how everybody and everything else is refused."""

from typing import Any

import httpx
import pytest

from draftpick.router.http.lease_pages import ReportInbox
from draftpick.router.router import Router
from tests.fleet import CHAT, FAST, Routed, Servers, StartRouter, asked
from tests.router.request.test_leases import ON, OUTCOMES, ROUTE, SECRET
from tests.router.test_router import Addresses, StartedRouter, start

__all__ = ["start"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = {"environment": {"DRAFTPICK_API_KEYS": "team", "DRAFTPICK_ADMIN_KEYS": "boss"}}
BOSS, TEAM = {"authorization": "Bearer boss"}, {"authorization": "Bearer team"}
LEASE = {"outcomes": [{"lease": "0" * 32}]}


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_leases_are_off_unless_they_are_configured(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST})
    for path, body in ((ROUTE, asked()), (OUTCOMES, LEASE)):
        assert code(await app.client.post(path, json=body)) == (404, "leases_off")


async def test_leases_need_the_scope_admin(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST}, **ON, **KEYS)
    for path, body in ((ROUTE, asked()), (OUTCOMES, LEASE)):
        assert code(await app.client.post(path, json=body)) == (401, "invalid_api_key")
        assert code(await app.client.post(path, json=body, headers=TEAM)) == (403, "missing_scope")
        assert (await app.client.post(path, json=body, headers=BOSS)).status_code == 200


@pytest.mark.parametrize(
    ("body", "headers", "status", "error"),
    [
        (b"{", {}, 400, "invalid_json"),
        (b"[1]", {}, 400, "invalid_json"),
        (b'{"x":"' + b"x" * 5000 + b'"}', {}, 413, "body_too_large"),
        (b"no gzip", {"content-encoding": "gzip"}, 415, "unsupported_encoding"),
    ],
)
async def test_a_bad_body_gets_the_error_of_the_relay(
    router_app: StartRouter, body: bytes, headers: dict[str, str], status: int, error: str
) -> None:
    app = await router_app({"a": FAST}, **ON, max_body_bytes=4096)
    for path in (ROUTE, CHAT):
        assert code(await app.client.post(path, content=body, headers=headers)) == (status, error)


async def test_only_open_paths_are_leased(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST}, **ON)
    assert code(await app.client.post(f"{ROUTE}?path=/metrics", json=asked())) == (400, "path_not_open")


@pytest.mark.parametrize(
    "outcome",
    [
        {"lease": "x"},
        {"lease": "0" * 32, "status": 99},
        {"lease": "0" * 32, "error": "bad luck"},
        {"lease": "0" * 32, "e2e_s": -1},
        {"lease": "0" * 32, "usage": {"prompt_tokens": -1}},
        {"lease": "0" * 32, "arm": "a"},
    ],
)
async def test_an_outcome_that_is_none_changes_nothing(router_app: StartRouter, outcome: dict[str, Any]) -> None:
    app = await router_app({"a": FAST}, **ON)
    assert code(await app.client.post(OUTCOMES, json={"outcomes": [outcome]})) == (400, "bad_outcomes")
    assert app.parts.leases.rejected["invalid"] == 1


async def inbox_of(app: Routed, servers: Servers) -> httpx.AsyncClient:
    server = await servers.serve(ReportInbox(app.parts.config, app.parts.leases, SECRET))
    return httpx.AsyncClient(base_url=server.url)


@pytest.mark.parametrize("secret", ["", "Bearer", "Bearer another secret", f"Basic {SECRET}"])
async def test_reports_without_the_secret_are_counted_and_change_nothing(
    router_app: StartRouter, servers: Servers, secret: str
) -> None:
    app = await router_app({"a": FAST}, **ON)
    granted = (await app.client.post(ROUTE, json=asked())).json()
    forged = {"outcomes": [{"lease": granted["lease"], "status": 500}]}
    async with await inbox_of(app, servers) as engine:
        answer = await engine.post(OUTCOMES, json=forged, headers={"authorization": secret})
    assert code(answer) == (401, "invalid_api_key")
    assert app.parts.leases.rejected["forged"] == 1
    assert len(app.parts.leases) == 1


async def test_the_inbox_has_nothing_else(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app({"a": FAST}, **ON)
    async with await inbox_of(app, servers) as engine:
        for method, path in (("GET", OUTCOMES), ("POST", CHAT), ("GET", "/metrics")):
            assert code(await engine.request(method, path)) == (404, "not_found")


async def test_a_router_opens_its_inbox_if_it_has_a_secret(
    start: StartedRouter, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def opened(**router: Any) -> Router:
        return await start({"a": Addresses("http://127.0.0.1:9")}, **router)

    assert (await opened(**ON)).parts.leases.inbox is None
    monkeypatch.setenv("DRAFTPICK_REPORT_SECRET", SECRET)
    assert (await opened()).parts.leases.inbox is None
    router = await opened(**ON)
    url, secret = router.parts.leases.inbox or ("", "")
    assert secret == SECRET
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {SECRET}"}) as engine:
        told = await engine.post(OUTCOMES, json=LEASE)
        assert told.json() == {"outcomes": {"unknown": 1}}
        too_long = await engine.get(OUTCOMES, headers={"x": "y" * 2**20})
        assert code(too_long) == (431, "headers_too_large")
        await router.stop()
        with pytest.raises(httpx.TransportError):
            await engine.post(OUTCOMES, json=LEASE)
