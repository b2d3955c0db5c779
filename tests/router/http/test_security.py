"""Who gets in and what gets out: keys, scopes, limits, sizes, headers, and secrets that stay where they are."""

import asyncio
import contextlib
import logging
import socket
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import yaml
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from draftpick.router.http.auth import digest
from draftpick.router.policies.baselines import FixedPolicy
from tests.fleet import CHAT, FAILS, FAST, REFUSING_URL, SLOW, Routed, Servers, StartRouter, asked, until
from tests.leaks import PROMPT as CANARY
from tests.leaks import Trace, found
from tests.router.http.test_app import echo

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE = {"a": FAST}
SECRET, ADMIN = "dp-secret-of-a-team", "dp-secret-of-an-admin"
PROMPT = "a-prompt-that-must-not-be-seen-anywhere"


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "keys.yaml"
    rows = [
        {"name": "team", "sha256": digest(SECRET), "requests_per_minute": 1000},
        {"name": "admin", "sha256": digest(ADMIN), "scopes": ["chat", "admin"]},
        {"name": "late", "sha256": digest("dp-late"), "expires": "2020-01-01T00:00:00Z"},
        {"name": "few", "sha256": digest("dp-few"), "requests_per_minute": 2},
        {"name": "small", "sha256": digest("dp-small"), "tokens_per_minute": 10},
        {"name": "two", "sha256": digest("dp-two"), "max_concurrent": 2, "show_routing": False},
    ]
    path.write_text(yaml.safe_dump(rows))
    return {"file": str(path)}


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def told(answer: httpx.Response, status: int, kind: str, code: str) -> None:
    """The answer is an OpenAI error of this kind."""
    assert answer.status_code == status
    assert (answer.json()["error"]["type"], answer.json()["error"]["code"]) == (kind, code)


# --- keys ---


async def test_a_missing_key_is_refused(router_app: StartRouter, keys: dict[str, Any]) -> None:
    app = await router_app(ONE, keys=keys)
    answer = await app.post()
    told(answer, 401, "authentication_error", "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert app.engines["a"].engine.started == 0


async def test_a_good_key_is_taken_and_does_not_reach_the_engine(router_app: StartRouter, keys: dict[str, Any]) -> None:
    app = await router_app(ONE, keys=keys)
    assert (await app.post(headers=bearer(SECRET))).status_code == 200
    assert "authorization" not in app.engines["a"].engine.state()["last_headers"]


@pytest.mark.parametrize("status", [401, 403, 407])
async def test_an_engine_that_wants_another_key_is_no_fault_of_a_client_whose_key_is_good(
    router_app: StartRouter, servers: Servers, keys: dict[str, Any], status: int
) -> None:
    locked = {"a": (await servers.serve(Response(b'{"error":"key"}', status))).url}
    app = await router_app({**locked, "b": FAST}, keys=keys)
    assert (await app.post(headers=bearer(SECRET))).headers["x-draftpick-arm"] == "b"
    told(
        await (await router_app(locked, keys=keys)).post(headers=bearer(SECRET)),
        502,
        "api_connection_error",
        "engine_unavailable",
    )
    assert (await (await router_app(locked)).post()).status_code == status  # there the key is the client's


async def test_without_keys_the_authorization_is_the_engines(router_app: StartRouter) -> None:
    app = await router_app(ONE)
    await app.post(headers=bearer("of-the-engine"))
    assert app.engines["a"].engine.state()["last_headers"]["authorization"] == "Bearer of-the-engine"


async def test_the_request_limit_is_kept(router_app: StartRouter, keys: dict[str, Any]) -> None:
    app = await router_app(ONE, keys=keys)
    answers = [await app.post(headers=bearer("dp-few")) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    told(answers[-1], 429, "rate_limit_error", "requests_per_minute")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert (await app.post(headers=bearer(SECRET))).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_the_token_limit_is_kept(router_app: StartRouter, keys: dict[str, Any], stream: bool) -> None:
    app = await router_app(ONE, keys=keys)
    first = await app.post(headers=bearer("dp-small"), stream=stream)
    assert first.status_code == 200
    told(await app.post(headers=bearer("dp-small")), 429, "rate_limit_error", "tokens_per_minute")


@pytest.mark.parametrize("stream", [True, "true", 1, False])
async def test_who_leaves_early_pays_for_what_was_made(
    router_app: StartRouter, keys: dict[str, Any], stream: Any
) -> None:
    app = await router_app({"a": SLOW}, keys=keys)
    app.replicas.by_arm["a"][0].record_tpot(SLOW.step_s)
    body = asked(stream=stream, max_tokens=400)
    with contextlib.suppress(httpx.ReadTimeout):
        async with app.client.stream(
            "POST", CHAT, json=body, headers=bearer("dp-small"), timeout=30 * SLOW.step_s
        ) as answer:
            num_events = 0
            async for part in answer.aiter_raw():
                if (num_events := num_events + part.count(b"data: ")) > 20:
                    break
    await until(lambda: app.replicas.in_flight() == {"a": 0})
    told(await app.post(headers=bearer("dp-small")), 429, "rate_limit_error", "tokens_per_minute")


async def test_an_engines_failures_cost_no_tokens(router_app: StartRouter, keys: dict[str, Any]) -> None:
    app = await router_app({"a": FAILS}, keys=keys)
    for _ in range(3):
        assert (await app.post(text="word " * 50, headers=bearer("dp-small"))).status_code == 500


async def test_a_key_has_so_many_requests_at_once(router_app: StartRouter, keys: dict[str, Any]) -> None:
    app = await router_app({"a": SLOW}, keys=keys)
    tasks = [asyncio.create_task(app.post(headers=bearer("dp-two"), max_tokens=10)) for _ in range(2)]
    await until(lambda: app.replicas.in_flight() == {"a": 2})
    told(await app.post(headers=bearer("dp-two")), 429, "rate_limit_error", "max_concurrent")
    assert (await app.post(headers=bearer(SECRET), max_tokens=1)).status_code == 200
    assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200, 200]
    assert (await app.post(headers=bearer("dp-two"), max_tokens=1)).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_engine_and_policy_may_be_hidden_from_a_key(
    router_app: StartRouter, keys: dict[str, Any], stream: bool
) -> None:
    app = await router_app({"secret-engine": FAST}, keys=keys)
    shown, hidden = [await app.post(headers=bearer(key), stream=stream) for key in (SECRET, "dp-two")]
    assert {"x-draftpick-arm", "x-draftpick-policy"} <= set(shown.headers)
    assert set(shown.headers) - set(hidden.headers) == {"x-draftpick-arm", "x-draftpick-policy"}
    failing = await router_app({"secret-engine": REFUSING_URL}, keys=keys, wait_for_engine_s=0)
    answer = await failing.post(headers=bearer("dp-two"), stream=stream)
    assert answer.status_code >= 500
    assert b"secret-engine" not in answer.content + str(answer.headers).encode()


async def test_models_ask_for_a_key_and_health_does_not(router_app: StartRouter, keys: dict[str, Any]) -> None:
    app = await router_app(ONE, keys=keys)
    assert (await app.client.get("/health")).status_code == 200
    assert (await app.client.get("/v1/models")).status_code == 401
    assert (await app.client.get("/v1/models", headers=bearer(SECRET))).status_code == 200


async def test_the_state_is_for_admins_and_readiness_for_all(router_app: StartRouter, keys: dict[str, Any]) -> None:
    app = await router_app(ONE, keys=keys)
    for headers in ({}, bearer(SECRET), bearer("dp-guessed")):
        assert (await app.client.get("/ready", headers=headers)).json() == {"ready": True}
    assert "policy" in (await app.client.get("/ready", headers=bearer(ADMIN))).json()


# --- scopes ---


async def test_a_pin_needs_the_admin_scope(router_app: StartRouter, keys: dict[str, Any]) -> None:
    app = await router_app({"a": FAST, "b": FAST}, keys=keys)
    pin = {"x-draftpick-arm": "b"}
    told(await app.post(headers={**bearer(SECRET), **pin}), 403, "permission_error", "missing_scope")
    assert (await app.post(headers={**bearer(ADMIN), **pin})).headers["x-draftpick-arm"] == "b"


@pytest.mark.parametrize(
    "path", ["/sleep", "/v1/load_lora_adapter", "/reset_prefix_cache", "/docs", "/v1/chat/completions/x"]
)
async def test_an_engines_own_paths_need_the_admin_scope(
    router_app: StartRouter, servers: Servers, keys: dict[str, Any], path: str
) -> None:
    app = await router_app({"a": (await servers.serve(echo)).url}, keys=keys)
    told(await app.client.post(path, headers=bearer(SECRET)), 403, "permission_error", "missing_scope")
    assert (await app.client.post(path, headers=bearer(ADMIN))).status_code == 201


async def test_to_explain_needs_the_admin_scope(router_app: StartRouter, keys: dict[str, Any]) -> None:
    app = await router_app(ONE, keys=keys)
    path, body = "/v1/route/explain", asked()
    assert (await app.client.post(path, json=body)).status_code == 401
    told(await app.client.post(path, json=body, headers=bearer(SECRET)), 403, "permission_error", "missing_scope")
    assert (await app.client.post(path, json=body, headers=bearer(ADMIN))).status_code == 200
    assert app.engines["a"].engine.started == 0


# --- sizes ---


async def test_oversized_headers_are_refused(router_app: StartRouter) -> None:
    app = await router_app(ONE, max_header_bytes=2048)
    told(await app.post(headers={"x": "y" * 2048}), 431, "invalid_request_error", "headers_too_large")
    many = {f"x-{i}": "1" for i in range(200)}
    told(await app.post(headers=many), 431, "invalid_request_error", "headers_too_large")


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
async def test_a_deeply_nested_body_is_refused(router_app: StartRouter, opening: bytes, closing: bytes) -> None:
    app = await router_app(ONE, max_json_depth=32)
    for depth, status in ((20, 200), (40, 400), (900, 400), (50_000, 400)):
        nested = opening * depth + b"1" + closing * depth
        body = orjson.dumps(asked())[:-1] + b',"x":' + nested + b"}"
        assert (await app.client.post(CHAT, content=body)).status_code == status
    assert app.engines["a"].engine.started == 1


async def test_brackets_in_a_text_are_no_depth(router_app: StartRouter) -> None:
    app = await router_app(ONE, max_json_depth=8)
    assert (await app.post(text="[{" * 1000)).status_code == 200


# --- headers and hosts ---


async def test_a_header_cannot_be_injected(router_app: StartRouter, keys: dict[str, Any]) -> None:
    """A line break in what comes back as a header never gets there."""
    app = await router_app(ONE, keys=keys)
    host, port = app.server.url.removeprefix("http://").split(":")
    body = orjson.dumps(asked())
    for bad in (b"x\r\nx-evil: 1", b"x\nx-evil: 1", b"x\x00y", b"\xff\xfe", b"a" * 500):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer %s\r\nx-request-id: %s\r\n"
            b"content-length: %d\r\n\r\n%s" % (CHAT.encode(), SECRET.encode(), bad, len(body), body)
        )
        answer = (await reader.read()).split(b"\r\n\r\n")[0].lower()
        writer.close()
        assert b"\nx-evil" not in answer
        if answer.startswith(b"http/1.1 200"):
            (given,) = [v for v in answer.split(b"\r\n") if v.startswith(b"x-draftpick-request-id:")]
            assert given.removeprefix(b"x-draftpick-request-id: ") == b"x" or len(given.split(b": ")[1]) == 32


async def test_no_request_steers_the_router_to_another_host(router_app: StartRouter, servers: Servers) -> None:
    reached: list[str] = []

    async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["path"])
        await Response()(scope, receive, send)

    other = (await servers.serve(elsewhere)).url
    app = await router_app({"a": (await servers.serve(echo)).url})
    host, port = app.server.url.removeprefix("http://").split(":")
    targets = (
        other + CHAT,
        "//" + other.removeprefix("http://") + "/x",
        "/@" + other.removeprefix("http://"),
        "/..//x",
    )
    for target in targets:
        with socket.create_connection((host, int(port))) as raw:
            request = f"GET {target} HTTP/1.1\r\nhost: {other.removeprefix('http://')}\r\nconnection: close\r\n\r\n"
            await asyncio.to_thread(raw.sendall, request.encode())
            await asyncio.to_thread(raw.recv, 65536)
    await app.client.get("/x", headers={"x-forwarded-host": other, "forwarded": f"host={other}", "location": other})
    assert reached == []


async def test_a_redirect_of_an_engine_is_not_followed(router_app: StartRouter, servers: Servers) -> None:
    async def redirect(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(status_code=307, headers={"location": "http://127.0.0.1:9/"})(scope, receive, send)

    app = await router_app({"a": (await servers.serve(redirect)).url})
    answer = await app.client.get("/version", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "http://127.0.0.1:9/")


@pytest.mark.parametrize("address", ["http://{}", "//{}", "HTTPS://{}", "http://user:password@{}"])
async def test_a_redirect_to_the_engine_itself_stays_here(
    router_app: StartRouter, servers: Servers, address: str
) -> None:
    async def redirect(scope: Scope, receive: Receive, send: Send) -> None:
        host = dict(scope["headers"])[b"host"].decode()
        location = f"{address.format(host)}{scope['path'].rstrip('/')}?a=1"
        await Response(status_code=307, headers={"location": location})(scope, receive, send)

    app = await router_app({"a": (await servers.serve(redirect)).url})
    answer = await app.client.post(f"{CHAT}/", json=asked(), follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, f"{CHAT}?a=1")


# --- without keys ---


@pytest.mark.parametrize("path", ["/sleep", "/v1/load_lora_adapter", f"{CHAT}/x"])
async def test_without_keys_too_only_the_open_paths_reach_an_engine(
    router_app: StartRouter, servers: Servers, path: str
) -> None:
    app = await router_app({"a": (await servers.serve(echo)).url})
    told(await app.client.post(path), 403, "permission_error", "path_not_open")
    assert app.num_attempts == 0


@pytest.mark.parametrize("path", ["/v1/x/../sleep", "/v1/x/%2e%2e/sleep", "/v1/x/./y"])
async def test_no_path_leaves_its_pattern(router_app: StartRouter, servers: Servers, path: str) -> None:
    app = await router_app({"a": (await servers.serve(echo)).url}, paths=["/v1/x/*"])
    url = httpx.URL(app.server.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)  # as it stands: clients tidy paths
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert (await reader.readline()).split()[1] == b"400"
    writer.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "router.example"}, 200),
        ({"host": "attacker.example"}, 403),
        ({"x-forwarded-for": "10.0.0.1"}, 403),
        ({"x-forwarded-host": "router.example"}, 403),
        ({"cf-connecting-ip": "10.0.0.1"}, 403),
    ],
)
async def test_without_keys_administration_is_for_this_machine(
    router_app: StartRouter, headers: dict[str, str], status: int
) -> None:
    app = await router_app(ONE, hosts=["Router.example"])
    for path in ("/v1/route/state", "/v1/route/events", "/metrics"):
        assert (await app.client.get(path, headers=headers)).status_code == status
    shown = (await app.client.get("/ready", headers=headers)).json()
    assert ("policy" in shown) == (status == 200)
    assert (await app.post(headers=headers)).status_code == 200


async def test_administration_from_this_machine_can_be_switched_off(router_app: StartRouter) -> None:
    app = await router_app(ONE, local_admin=False)
    told(await app.client.get("/v1/route/state"), 403, "permission_error", "keys_needed")


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://127.0.0.1:9", "127.0.0.1:9", 200),
        ("http://other:9", "127.0.0.1:9", 403),
        ("http://attacker.example", "attacker.example", 403),
        ("null", "127.0.0.1:9", 403),
        ("http://[::1", "127.0.0.1:9", 403),
    ],
)
async def test_without_keys_foreign_pages_may_send_nothing(
    router_app: StartRouter, origin: str, host: str, status: int
) -> None:
    app = await router_app(ONE)
    assert (await app.post(headers={"origin": origin, "host": host})).status_code == status
    assert (await app.client.get("/v1/models", headers={"origin": origin, "host": host})).status_code == 200


async def test_other_origins_are_not_let_in(router_app: StartRouter, servers: Servers) -> None:
    async def open_to_all(scope: Scope, receive: Receive, send: Send) -> None:
        assert not [name for name, _ in scope["headers"] if name == b"origin"]
        await Response(b"{}", headers={"access-control-allow-origin": "*"})(scope, receive, send)

    app = await router_app({"a": (await servers.serve(open_to_all)).url})
    origin = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    for answer in (await app.client.get("/version", headers=origin), await app.client.options(CHAT, headers=origin)):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert (await app.client.options(CHAT, headers=origin)).status_code == 405


# --- what must not be seen ---


async def test_no_secret_and_no_prompt_in_logs_records_state_or_errors(
    router_app: StartRouter, keys: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    app = await router_app({"a": FAILS, "b": FAST}, keys=keys)
    answers = [await _ask(app, secret) for secret in (SECRET, ADMIN, "dp-guessed-secret", "dp-late")]
    bad = await app.client.post(CHAT, content=b'{"x": "' + PROMPT.encode(), headers=bearer(SECRET))
    state = (await app.client.get("/ready", headers=bearer(ADMIN))).text
    await app.records(4)
    records = "".join(path.read_text() for path in app.folder.iterdir())
    assert [answer.status_code for answer in answers] == [200, 200, 401, 401]
    errors = "".join(answer.text for answer in [*answers[2:], bad])
    for where in (caplog.text, records, state, errors):
        for hidden in (SECRET, ADMIN, "dp-guessed-secret", digest(SECRET), PROMPT):
            assert hidden not in where


async def test_what_must_be_hidden_would_be_found(
    router_app: StartRouter, nothing_leaks: Trace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The search after the whole suite sees logs, answers, spans and records."""
    app = await router_app(ONE, policy=Broken())
    before = dict(nothing_leaks.seen)
    assert (await app.post()).status_code == 200
    assert (await app.post(headers={"x-draftpick-arm": "none"})).status_code == 400
    await app.records(1)
    assert nothing_leaks.seen["logged"] > before["logged"]  # that the policy failed
    assert nothing_leaks.seen["answers"] == before["answers"] + 1
    assert nothing_leaks.seen["spans"] > before["spans"]
    bad = tmp_path / "bad" / "records-1.jsonl"
    bad.parent.mkdir()
    bad.write_text(f'{{"text": "{CANARY}"}}\n')
    assert found(bad, bad.parent)[0].startswith("records-1.jsonl: ")
    bad.unlink()


class Broken(FixedPolicy):
    """A policy that fails."""

    def __init__(self) -> None:
        super().__init__(("a",), "a")

    def probabilities(self, context: Any, eligible: Any) -> Any:
        raise RuntimeError("broken")


async def _ask(app: Routed, secret: str) -> httpx.Response:
    return await app.client.post(CHAT, json=asked(text=PROMPT), headers=bearer(secret))
