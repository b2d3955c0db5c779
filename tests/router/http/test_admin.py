"""Pages for those who run a router: who may see and change what, and how a change that is none is refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from draftpick.router.online.events import Event
from draftpick.router.registry.registry import STATE, Registry
from draftpick.router.router import Router
from tests.leaks import PROMPT
from tests.router.registry.test_registry_service import ARMS, fixed_policy, served

EVENTS, POLICIES = "/v1/route/events", "/v1/route/policies"
ADMIN = {"authorization": "Bearer boss"}
TEAM = {"authorization": "Bearer team"}
PAGES = [("GET", EVENTS), ("GET", POLICIES), ("POST", POLICIES)]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """`p0001` takes `plain` and serves, `p0002` takes `ngram`."""
    made = Registry(tmp_path / "registry")
    for arm in ARMS:
        made.add(fixed_policy(tmp_path / arm, arm), {}, "test")
    made.promote("p0001", "test")
    return made


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTPICK_API_KEYS", "team")
    monkeypatch.setenv("DRAFTPICK_ADMIN_KEYS", "boss")


@asynccontextmanager
async def admin(policy: Path, records: Path) -> AsyncIterator[tuple[Router, httpx.AsyncClient]]:
    """A router whose keys are needed, and a client with one of scope `admin`."""
    async with served(policy, records) as (router, client):
        client.headers.update(ADMIN)
        yield router, client


def refusal(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    return error


# --- who may ---


@pytest.mark.usefixtures("keys")
async def test_pages_need_a_key_of_scope_admin(registry: Registry, tmp_path: Path) -> None:
    body = orjson.dumps({"action": "promote", "id": "p0002"})
    async with served(registry.path, tmp_path / "records") as (_, client):
        for method, path in PAGES:
            for headers, status, code in (({}, 401, "invalid_api_key"), (TEAM, 403, "missing_scope")):
                answer = await client.request(method, path, content=body, headers=headers)
                assert refusal(answer, status)["code"] == code
    assert registry.state().active == "p0001"


async def test_without_keys_state_is_readable_and_changes_are_rejected(registry: Registry, tmp_path: Path) -> None:
    before = registry.state()
    async with served(registry.path, tmp_path / "records") as (_, client):
        assert (await client.get(EVENTS)).json() == {"object": "list", "data": []}
        assert (await client.get(POLICIES)).json()["active"] == "p0001"
        for body in ({"action": "promote", "id": "p0002"}, {"action": "unpin"}, {}):
            assert refusal(await client.post(POLICIES, json=body), 405)["code"] == "keys_needed"
    assert registry.state() == before


# --- events ---


@pytest.mark.usefixtures("keys")
async def test_events_come_whole_and_the_newest_first(registry: Registry, tmp_path: Path) -> None:
    told = [Event(float(i), "arm_changed", f"text {i}", "plain", "p", {"costs": 0.5}) for i in range(3)]
    async with admin(registry.path, tmp_path / "records") as (router, client):
        for event in told:
            router.parts.events.emit(event)
        found = (await client.get(EVENTS)).json()["data"]
    assert [Event(**event) for event in found] == told[::-1]


# --- changes ---


@pytest.mark.usefixtures("keys")
async def test_a_change_says_who_made_it_and_why(registry: Registry, tmp_path: Path) -> None:
    async with admin(registry.path, tmp_path / "records") as (_, client):
        await client.post(POLICIES, json={"action": "canary", "id": "p0002", "reason": "a good report"})
        shown = (await client.get(POLICIES)).json()
    assert shown["candidate"]["share"] == 0.01
    last = shown["history"][-1]
    assert last["by"] == "key draftpick-admin-0"
    assert "a good report" in last["reason"]


@pytest.mark.usefixtures("keys")
async def test_a_policy_is_promoted_rolled_back_pinned_and_unpinned(registry: Registry, tmp_path: Path) -> None:
    async with admin(registry.path, tmp_path / "records") as (_, client):
        for change, field, value in (
            ({"action": "promote", "id": "p0002"}, "active", "p0002"),
            ({"action": "rollback"}, "active", "p0001"),
            ({"action": "pin", "id": "p0001"}, "pinned", True),
            ({"action": "unpin"}, "pinned", False),
        ):
            assert (await client.post(POLICIES, json=change)).json()[field] == value


REFUSED: list[tuple[dict[str, str], str | None, str]] = [
    ({"action": "promote"}, "id", "unknown policy"),
    ({"action": "canary", "id": "p0001"}, "id", "already active"),
    ({"action": "pin", "id": "p0009"}, "id", "unknown policy"),
    ({"action": "rollback"}, None, "no previous policy"),
    ({"action": "unpin"}, None, "no policy is pinned"),
]


@pytest.mark.usefixtures("keys")
async def test_a_rejected_change_is_reported_with_its_reason(registry: Registry, tmp_path: Path) -> None:
    async with admin(registry.path, tmp_path / "records") as (_, client):
        for change, param, told in REFUSED:
            error = refusal(await client.post(POLICIES, json=change), 400)
            assert (error["code"], error["param"]) == ("policy_rejected", param)
            assert told in error["message"]


WRONG: list[tuple[str, str | None]] = [
    ("", None),
    ("null", None),
    (PROMPT, None),
    (f'"{PROMPT}"', None),
    ("[" * 5000, None),
    ('{"id": "p0002"}', "action"),
    (f'{{"action": "{PROMPT}"}}', "action"),
    (f'{{"action": ["{PROMPT}"]}}', "action"),
    (f'{{"action": "pin", "id": ["{PROMPT}"]}}', "id"),
    (f'{{"action": "pin", "id": "{PROMPT}"}}', "id"),
    (f'{{"action": "pin", "id": "{PROMPT * 50}"}}', "id"),
    ('{"action": "canary", "id": "p0002", "share": 0}', "share"),
    ('{"action": "canary", "id": "p0002", "share": 2}', "share"),
    ('{"action": "canary", "id": "p0002", "share": NaN}', "share"),
    (f'{{"action": "canary", "id": "p0002", "share": "{PROMPT}"}}', "share"),
    (f'{{"action": "unpin", "reason": "{PROMPT * 50}"}}', "reason"),
]


@pytest.mark.usefixtures("keys")
async def test_a_body_that_is_wrong_is_refused_by_field_and_not_repeated(registry: Registry, tmp_path: Path) -> None:
    before = registry.state()
    async with admin(registry.path, tmp_path / "records") as (_, client):
        for body, param in WRONG:
            answer = await client.post(POLICIES, content=body)
            assert refusal(answer, 400)["param"] == param, body
            assert PROMPT not in answer.text
            assert len(answer.content) < 500
    assert registry.state() == before


@pytest.mark.usefixtures("keys")
async def test_an_unknown_field_is_named_and_cut(registry: Registry, tmp_path: Path) -> None:
    async with admin(registry.path, tmp_path / "records") as (_, client):
        error = refusal(await client.post(POLICIES, json={"action": "unpin", "x" * 10_000: 1}), 400)
    assert error["param"].startswith("xxx")
    assert len(error["param"]) <= 100


# --- registries that are none, damaged, or cannot be written ---


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_a_registry_it_says_how_to_make_one(tmp_path: Path, method: str) -> None:
    body = orjson.dumps({"action": "unpin"})
    async with admin(Path("uniform"), tmp_path / "records") as (_, client):
        error = refusal(await client.request(method, POLICIES, content=body), 400)
    assert error["code"] == "no_registry"
    assert "draftpick policies activate" in error["message"]


@pytest.mark.usefixtures("keys")
async def test_a_folder_that_is_to_become_one_shows_no_policies(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    async with admin(tmp_path / "registry", tmp_path / "records") as (_, client):
        shown = (await client.get(POLICIES)).json()
    assert (shown["active"], shown["policies"]) == (None, {})


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_damaged_registry_is_reported(registry: Registry, tmp_path: Path, method: str) -> None:
    async with admin(registry.path, tmp_path / "records") as (_, client):
        (registry.path / STATE).write_text("{")
        error = refusal(await client.request(method, POLICIES, content=b'{"action": "unpin"}'), 503)
    assert error["code"] == "registry_damaged"
    assert STATE in error["message"]


@pytest.mark.usefixtures("keys")
async def test_a_failing_disk_is_reported(registry: Registry, tmp_path: Path) -> None:
    (registry.path / ".lock").unlink()
    (registry.path / ".lock").mkdir()  # as on a file system that can only be read
    async with admin(registry.path, tmp_path / "records") as (_, client):
        error = refusal(await client.post(POLICIES, json={"action": "promote", "id": "p0002"}), 503)
        assert (await client.get(POLICIES)).json()["active"] == "p0001"
    assert error["code"] == "registry_failed"
