"""The state that the page shows: who may see it, what it tells, its bounds, and that no text of a prompt is in it."""

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from draftpick.router.monitoring.status import DECISIONS, EVENTS, RegistryStatus
from draftpick.router.registry.registry import STATE, Registry
from draftpick.router.telemetry.recent_requests import KEPT
from tests.fleet import CHAT, FAILS, FAST, StartRouter, asked
from tests.leaks import PROMPT
from tests.router.http.test_admin import ADMIN
from tests.router.registry.test_registry_service import ARMS, fixed_policy, served

PAGE = "/v1/route/state"
TEAM = {"authorization": "Bearer team"}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """`p0001` takes `plain` and serves; `p0002` takes `ngram`, has passed its gate and decides a tenth."""
    made = Registry(tmp_path / "registry")
    checks = [{"name": "replay_gain", "passed": True, "value": 0.1, "limit": 0.0, "why": "gains 10%"}]
    for arm in ARMS:
        report = {"reason": f"for {arm}", "gate": {"passed": True, "checks": checks}}
        made.add(fixed_policy(tmp_path / arm, arm), report, "test")
    made.promote("p0001", "test")
    made.set_canary_share("p0002", 0.1, "test", start=True)
    return made


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTPICK_API_KEYS", "team")
    monkeypatch.setenv("DRAFTPICK_ADMIN_KEYS", "boss")


async def state(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get(PAGE)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert PROMPT not in answer.text
    found: dict[str, Any] = answer.json()
    return found


# --- who may ---


@pytest.mark.usefixtures("keys")
async def test_it_needs_a_key_of_scope_admin(registry: Registry, tmp_path: Path) -> None:
    async with served(registry.path, tmp_path / "records") as (_, client):
        for headers, status, code in (({}, 401, "invalid_api_key"), (TEAM, 403, "missing_scope")):
            answer = await client.get(PAGE, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        client.headers.update(ADMIN)
        assert (await state(client))["keys"]


# --- what it tells ---


async def test_a_router_that_has_seen_nothing(registry: Registry, tmp_path: Path) -> None:
    async with served(registry.path, tmp_path / "records") as (_, client):
        shown = await state(client)
    assert (shown["kinds"], shown["decisions"], shown["window"]["attempts"], shown["window"]["seconds"]) == (
        [],
        [],
        0,
        0,
    )
    assert (shown["keys"], shown["ready"], shown["baseline"], shown["model"]) == (
        False,
        True,
        "plain",
        "smollm2-135m-instruct",
    )
    for row, arm in zip(shown["arms"], ARMS, strict=True):
        standing = {
            "replicas": 1,
            "in_flight": 0,
            "total_in_flight": 0,
            "ineligible_reason": None,
            "breakers": {"closed": 1},
        }
        assert row["standing"] == {
            **standing,
            "quarantine_state": "ok",
            "stale": False,
            "costs": None,
            "unable": None,
        }
        assert (row["arm"], row["share"], row["tokens_per_s"], row["saved_share"]) == (arm, None, 0.0, None)


async def test_traffic_shows_by_arm_by_kind_and_one_by_one(registry: Registry, tmp_path: Path) -> None:
    async with served(registry.path, tmp_path / "records") as (_, client):
        for i in range(20):
            await client.post(CHAT, json=asked(), headers={"x-request-id": f"mine-{i}"})
        shown = await state(client)
    plain, ngram = shown["arms"]
    assert plain["attempts"] + ngram["attempts"] == shown["window"]["attempts"] == 20
    assert plain["share"] + ngram["share"] == pytest.approx(1.0)
    assert plain["tokens_per_s"] > 0
    assert sum(sum(kind["arms"].values()) for kind in shown["kinds"]) == 20
    assert {kind["name"] for kind in shown["kinds"]} == {"all requests"}
    assert [row["request_id"] for row in shown["decisions"]] == [f"mine-{i}" for i in range(20)][::-1]
    assert shown["decisions"][0]["reason"] == "policy"


async def test_what_it_shows_is_bounded(registry: Registry, tmp_path: Path) -> None:
    async with served(registry.path, tmp_path / "records") as (router, client):
        for _ in range(3):
            await client.post(CHAT, json=asked())
        recent, serving = router.parts.recent, router.parts.active_policies
        router.parts.attempts.drain()
        for i in range(3 * KEPT):
            recent._pending_ring.append(recent._pending_ring[0])
            recent.num_unprocessed += 1
            serving.emit_for_arm("arm_changed", f"text {i}", "plain")
        shown = await state(client)
    assert len(shown["decisions"]) == DECISIONS
    assert len(shown["events"]) == EVENTS
    assert shown["events"][0]["text"] == f"text {3 * KEPT - 1}"
    assert shown["window"]["attempts"] == KEPT
    assert len(orjson.dumps(shown)) < 120_000


@pytest.mark.asyncio(loop_scope="module")
async def test_failures_and_standings_show(router_app: StartRouter) -> None:
    app = await router_app({"plain": FAST, "ngram": FAILS})
    for _ in range(3):
        await app.post(headers={"x-draftpick-arm": "ngram"})
    shown = await state(app.client)
    ngram = shown["arms"][1]
    assert (ngram["attempts"], ngram["failed"]) == (3, 3)
    assert (ngram["standing"]["ineligible_reason"], ngram["standing"]["breakers"]) == ("breaker_open", {"open": 1})
    assert {row["status"] for row in shown["decisions"]} == {"engine_error"}
    assert shown["registry"] is None


# --- policies ---


async def test_policies_come_with_their_gates_and_history(registry: Registry, tmp_path: Path) -> None:
    async with served(registry.path, tmp_path / "records") as (_, client):
        shown = await state(client)
        registry.promote("p0002", "test", "it is better")
        after = (await state(client))["registry"]
    found = shown["registry"]
    assert (found["active"], found["pinned"], found["candidate"]["share"]) == ("p0001", False, 0.1)
    assert [one["id"] for one in found["policies"]] == ["p0001", "p0002"]
    check = {"name": "replay_gain", "passed": True, "why": "gains 10%"}
    assert found["policies"][1]["gate"] == {"passed": True, "checks": [check]}
    assert (shown["policy"], shown["candidate"]) == ("fixed:plain", {"policy": "fixed:ngram", "share": 0.1})
    assert (after["active"], after["candidate"], after["history"][0]["reason"]) == ("p0002", None, "it is better")


def test_an_unreadable_registry_is_reported_until_it_is_repaired(registry: Registry) -> None:
    policies = RegistryStatus(registry)
    whole = (registry.path / STATE).read_text()
    assert policies.state()["active"] == "p0001"
    (registry.path / STATE).write_text("{")
    assert STATE in str(policies.state()["error"])
    (registry.path / STATE).write_text(whole)
    assert policies.state()["active"] == "p0001"


def test_a_folder_that_is_to_become_a_registry_shows_none(tmp_path: Path) -> None:
    assert RegistryStatus(Registry(tmp_path)).state()["policies"] == []


REPORTS: list[dict[str, Any]] = [
    {},
    {"reason": 7, "gate": "yes"},
    {"reason": "r" * 9000, "gate": {"passed": 1, "checks": {"a": 1}}},
    {"gate": {"checks": [7, {"name": [], "passed": "yes"}] + [{}] * 500}},
]


@pytest.mark.parametrize("report", REPORTS)
def test_reports_of_any_form_are_taken(tmp_path: Path, report: dict[str, Any]) -> None:
    made = Registry(tmp_path / "registry")
    made.add(fixed_policy(tmp_path / "plain", "plain"), report, "test")
    shown: Any = RegistryStatus(made).state()["policies"]
    (row,) = shown
    assert len(orjson.dumps(row)) < 3000
    assert row["gate"] is None or row["gate"]["passed"] is False


def test_of_many_policies_the_newest_are_shown(tmp_path: Path) -> None:
    made = Registry(tmp_path / "registry")
    for _ in range(25):
        made.add(fixed_policy(tmp_path / "plain", "plain"), {}, "test")
    made.promote("p0001", "test")
    shown: Any = RegistryStatus(made).state()["policies"]
    assert [one["id"] for one in shown] == ["p0001", *(f"p{n:04}" for n in range(6, 26))]


async def test_lost_records_are_told(registry: Registry, tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    (records / "records-1.jsonl").write_bytes(b"torn\n")
    async with served(registry.path, records) as (_, client):
        shown = await state(client)
    assert shown["records"] == {"written": 0, "dropped": 0, "damaged": 1}
