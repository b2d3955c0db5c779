"""Leases: what others send teaches as much as what is relayed; a place is held until an outcome comes, no longer."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from draftpick.engines.mock.app import MockSpec
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.http.lease_pages import ReportInbox
from draftpick.router.records import read
from draftpick.router.types import Record
from tests.fleet import CHAT, COMPLETIONS, FAST, HANGS, REFUSING_URL, SLOW, Routed, Servers, StartRouter, asked, until
from tests.router.request.test_pool import POOL, policy

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a secret of some length"
ROUTE, OUTCOMES = "/v1/route", "/v1/outcomes"
ON: dict[str, Any] = {"leases": {"enabled": True}}
Start = Callable[..., Awaitable[Routed]]


@pytest.fixture
def reporting(monkeypatch: pytest.MonkeyPatch, servers: Servers, router_app: StartRouter) -> Start:
    """Starts a router that gives leases, over engines that report to it."""

    async def start(specs: dict[str, MockSpec | str], **router: Any) -> Routed:
        monkeypatch.setenv("DRAFTPICK_REPORT_SECRET", SECRET)
        app = await router_app(specs, **{**ON, **router})
        inbox = ReportInbox(app.parts.config, app.parts.leases, SECRET)
        app.parts.leases.inbox = (await servers.serve(inbox)).url, SECRET
        return app

    return start


async def lease(app: Routed, path: str = CHAT, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    """A lease for a request with these fields."""
    answer = await app.client.post(f"{ROUTE}?path={path}", json=asked(path, **fields), headers=headers)
    assert answer.status_code == 200, answer.text
    granted: dict[str, Any] = answer.json()
    return granted


async def send(granted: dict[str, Any], path: str = CHAT, to: dict[str, Any] | None = None, **fields: Any) -> None:
    """Send the request of a lease to an address of it, as its holder does."""
    to, body = to or granted["address"], {**asked(path, **fields), **granted["fields"]}
    async with httpx.AsyncClient(timeout=10) as client:
        with contextlib.suppress(httpx.RemoteProtocolError):  # of an engine that breaks off
            await client.post(to["url"] + path, json=body, headers=to["headers"])


async def tell(app: Routed, *outcomes: dict[str, Any]) -> dict[str, int]:
    """Tell outcomes; returns their number by what became of them."""
    answer = await app.client.post(OUTCOMES, json={"outcomes": outcomes})
    assert answer.status_code == 200, answer.text
    found: dict[str, int] = answer.json()["outcomes"]
    return found


async def ended(app: Routed) -> None:
    """Wait until no lease is open."""
    await until(lambda: not len(app.parts.leases))
    app.parts.attempts.drain()


# --- the same traffic, relayed and reported ---

ENGINES: dict[str, MockSpec | str] = {
    "plain": FAST.model_copy(update={"step_s": 0.004, "output_tokens": 24}),
    "pool": POOL.model_copy(update={"step_s": 0.004, "output_tokens": 40}),
    "drafts": FAST.model_copy(
        update={"step_s": 0.004, "output_tokens": 40, "num_speculative_tokens": 3, "acceptance_length": 2.0}
    ),
    "fails": FAST.model_copy(update={"fail_share": 1.0}),
    "full": FAST.model_copy(update={"refuse_share": 1.0}),
    "breaks": FAST.model_copy(update={"break_share": 1.0}),
}
ARMS = ("plain", "pool/none", "pool/ngram", "pool/math", "drafts", "fails", "full", "breaks")
TRAFFIC: list[tuple[str, str | None, dict[str, Any]]] = [
    *((CHAT, None, {"text": f"solve {n}", "stream": bool(n % 2)}) for n in range(8)),
    *((COMPLETIONS, arm, {"text": f"write {arm}"}) for arm in ("plain", "drafts", "pool/ngram")),
    (CHAT, "drafts", {"text": "twice", "n": 2}),
    (CHAT, "plain", {"model": "another"}),
    *((CHAT, "fails", {"stream": stream}) for stream in (True, False, True)),
    *((CHAT, "full", {}) for _ in range(3)),
    *((CHAT, "breaks", {"stream": stream}) for stream in (True, False, True)),
]


async def relayed(app: Routed) -> None:
    """Send all traffic through the router."""
    for path, arm, fields in TRAFFIC:
        with contextlib.suppress(httpx.RemoteProtocolError):
            await app.post(path, {"x-draftpick-arm": arm} if arm else {}, **fields)


async def reported(app: Routed) -> None:
    """Send all traffic to the engines that the router names."""
    for number, (path, arm, fields) in enumerate(TRAFFIC, 1):
        granted = await lease(app, path, {"x-draftpick-arm": arm} if arm else {}, **fields)
        await send(granted, path, **fields)
        await until(lambda number=number: app.num_attempts == number)  # type: ignore[misc]  # bound at once


def learned(app: Routed) -> dict[str, Any]:
    """What a router knows after its traffic, without times."""
    metrics, (_, online) = app.parts.metrics, app.parts.active_policies.learners()[0]
    of_arms = {
        name: (arm.attempts, arm.faults, arm.decisions, arm.sums, [sum(series.counts) for series in arm.series])
        for name, arm in metrics.arms.items()
    }
    return {
        "metrics": (of_arms, dict(metrics.requests), metrics.drafters),
        "breakers": [state for by_url in app.replicas.health().values() for state in by_url.values()],
        "quarantine": app.parts.acceptance_monitor.state(),
        "answers": online.correction.answers,
    }


def without_times(record: Record) -> tuple[Any, ...]:
    decision, outcome = record.decision, record.outcome
    return (
        *(record.attempt, record.path, record.stream, record.sampling, record.in_flight, decision.arm, decision.reason),
        *(outcome.status, outcome.fault, outcome.http_status, outcome.prompt_tokens, outcome.output_tokens),
        *(outcome.acceptance_length, outcome.acceptance_rate, outcome.drafters),
    )


async def test_reports_teach_what_relayed_answers_do(reporting: Start) -> None:
    found = []
    for traffic in (relayed, reported):
        router = {"featurizer": LexicalFeaturizer(), "exploration": {"rate": 0.0}, "max_attempts": 1}
        router |= {"breaker": {"base_ejection_s": 60, "max_ejection_s": 60}}  # open to the end
        app = await reporting(ENGINES, policy=policy(ARMS, ngram=1.2, math=3.0), **router)
        await traffic(app)
        app.parts.attempts.drain()
        corrections = app.parts.active_policies.learners()[0][1].correction.residuals()
        known = learned(app)
        await asyncio.to_thread(app.writer.close)
        found.append((list(read(app.folder))[-len(TRAFFIC) :], known, corrections))
    (bytes_records, bytes_known, bytes_corrections), (records, known, corrections) = found
    assert [without_times(one) for one in records] == [without_times(one) for one in bytes_records]
    assert {one.outcome.status for one in records} == {"ok", "client_error", "engine_error", "broken"}
    assert known == bytes_known
    assert "open" in known["breakers"]
    assert any(known["answers"])
    assert corrections == pytest.approx(bytes_corrections, abs=0.4)
    for told, seen in zip(records, bytes_records, strict=True):
        assert [value is None for value in _times(told)] == [value is None for value in _times(seen)]
        if told.outcome.tpot_s is not None:
            assert told.outcome.tpot_s == pytest.approx(seen.outcome.tpot_s, rel=0.8)
            assert told.outcome.ttft_s == pytest.approx(seen.outcome.ttft_s, abs=0.5)
    assert np.isfinite(corrections).all()


def _times(record: Record) -> tuple[float | None, ...]:
    outcome = record.outcome
    return outcome.ttft_s, outcome.tpot_s, outcome.queue_s


async def test_a_caller_that_leaves_its_engine_is_no_fault_of_it(reporting: Start) -> None:
    app = await reporting({"a": SLOW})
    granted = await lease(app, stream=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await send(granted, stream=True)
    await ended(app)
    (record,) = await app.records(1)
    assert (record.outcome.status, record.outcome.fault) == ("cancelled", "client")
    assert app.replicas.in_flight() == {"a": 0}


async def test_a_pool_gets_the_forecast_of_the_lease(reporting: Start) -> None:
    arms = ("plain", "pool/none", "pool/ngram", "pool/math")
    specs: dict[str, MockSpec | str] = {"plain": FAST, "pool": POOL}
    app = await reporting(specs, policy=policy(arms, math=3.0), featurizer=LexicalFeaturizer(), exploration={"rate": 0})
    granted = await lease(app, vllm_xargs={"own": 1})
    assert granted["arm"] == "pool/math"
    assert granted["fields"]["vllm_xargs"]["own"] == 1
    await send(granted)
    assert b"draftpick_forecast" in app.engines["pool"].last_body
    await ended(app)
    (record,) = await app.records(1)
    assert record.outcome.drafters is not None
    assert record.outcome.drafters["math"].scored > 0


# --- places ---


async def test_a_lease_holds_its_place_until_its_outcome(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST}, **ON)
    granted = await lease(app)
    assert (granted["object"], granted["address"]["engine"], granted["expires_in_s"]) == ("lease", "a", 600.0)
    assert granted["address"]["url"] == app.engines["a"].url
    assert (app.replicas.in_flight(), app.parts.admission.in_flight) == ({"a": 1}, 1)
    assert await tell(app, {"lease": granted["lease"], "status": 200}) == {"told": 1}
    await ended(app)
    assert (app.replicas.in_flight(), app.parts.admission.in_flight) == ({"a": 0}, 0)
    assert app.parts.leases.ends["told"] == 1


async def test_an_expired_lease_frees_its_place_and_is_counted(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST}, leases={"enabled": True, "lease_s": 0.05})
    granted = await lease(app)
    await ended(app)
    assert app.replicas.in_flight() == {"a": 0}
    assert app.parts.leases.ends["expired"] == 1
    assert await tell(app, {"lease": granted["lease"], "status": 200}) == {"late": 1}
    (record,) = await app.records(1)
    assert record.outcome.status == "cancelled"


async def test_places_are_limited_as_those_of_relayed_requests(router_app: StartRouter) -> None:
    limits = {"max_in_flight": 1, "max_queued": 0}
    app = await router_app({"a": FAST}, admission=limits, **ON)
    granted = await lease(app)
    refused = await app.client.post(ROUTE, json=asked())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    await tell(app, {"lease": granted["lease"]})
    await lease(app)


async def test_a_full_engine_is_not_leased(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": FAST}, admission={"max_in_flight_per_replica": 1}, **ON)
    assert [(await lease(app))["arm"] for _ in range(2)] == ["a", "b"]
    refused = await app.client.post(ROUTE, json=asked())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")


# --- outcomes that are told ---


@pytest.mark.parametrize(
    ("outcome", "status", "fault"),
    [
        ({"error": "unreachable"}, "engine_error", "network"),
        ({"error": "timeout"}, "timeout", "client"),
        ({"error": "broken", "status": 200}, "broken", "engine"),
        ({"error": "broken", "status": 400}, "broken", "client"),
        ({"error": "cancelled"}, "cancelled", "client"),
        ({"status": 503}, "engine_error", "engine"),
        ({"status": 422}, "client_error", "client"),
    ],
)
async def test_a_failure_is_judged_as_if_it_were_seen(
    router_app: StartRouter, outcome: dict[str, Any], status: str, fault: str
) -> None:
    app = await router_app({"a": FAST}, **ON)
    await tell(app, {"lease": (await lease(app))["lease"], **outcome})
    await ended(app)
    (record,) = await app.records(1)
    assert (record.outcome.status, record.outcome.fault) == (status, fault)


async def test_an_engine_that_had_its_time_is_at_fault(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST}, timeout_s=0.02, **ON)
    granted = await lease(app)
    await asyncio.sleep(0.03)
    await tell(app, {"lease": granted["lease"], "error": "timeout"})
    await ended(app)
    (record,) = await app.records(1)
    assert (record.outcome.status, record.outcome.fault) == ("timeout", "engine")


@pytest.mark.parametrize(("max_tokens", "fault"), [(8, "engine"), (10**6, "client")])
async def test_a_timeout_that_is_told_is_judged_by_what_others_usually_need(
    router_app: StartRouter, max_tokens: int, fault: str
) -> None:
    app = await router_app({"a": FAST, "b": FAST.model_copy(update={"step_s": 0.001})}, timeout_s=0.2, **ON)
    await app.post(stream=True, headers={"x-draftpick-arm": "b"})
    granted = await lease(app, headers={"x-draftpick-arm": "a"}, max_tokens=max_tokens)
    await app.post(headers={"x-draftpick-arm": "a"})  # it answers others meanwhile
    await asyncio.sleep(0.25)
    await tell(app, {"lease": granted["lease"], "error": "timeout"})
    await ended(app)
    record = (await app.records(3))[-1]
    assert (record.outcome.status, record.outcome.fault) == ("timeout", fault)


async def test_an_unreachable_engine_gets_no_more_leases(router_app: StartRouter) -> None:
    app = await router_app({"a": REFUSING_URL, "b": FAST}, **ON)
    granted = await lease(app)
    assert granted["arm"] == "a"
    assert [one["engine"] for one in granted["fallbacks"]] == ["b"]
    await tell(app, {"lease": granted["lease"], "error": "unreachable"})
    await ended(app)
    assert (await lease(app))["arm"] == "b"


async def test_fallbacks_are_the_next_best_engines(router_app: StartRouter) -> None:
    arms = ("plain", "ngram", "math")
    chosen = policy(arms, ngram=1.5, math=3.0)
    app = await router_app(
        dict.fromkeys(arms, FAST), policy=chosen, featurizer=LexicalFeaturizer(), exploration={"rate": 0.0}, **ON
    )
    granted = await lease(app)
    assert (granted["arm"], [one["engine"] for one in granted["fallbacks"]]) == ("math", ["ngram", "plain"])
    assert {one["url"] for one in granted["fallbacks"]} == {app.engines[arm].url for arm in ("ngram", "plain")}


async def test_what_a_gateway_tells_of_an_answer_is_recorded(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST}, **ON)
    usage = {"prompt_tokens": 7, "completion_tokens": 11, "prompt_tokens_details": None}
    told = {"status": 200, "ttft_s": 0.5, "e2e_s": 1.5, "usage": usage}
    await tell(app, {"lease": (await lease(app))["lease"], **told})
    await ended(app)
    (record,) = await app.records(1)
    outcome = record.outcome
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.tpot_s) == (7, 11, pytest.approx(0.1))
    assert outcome.ttft_s == pytest.approx(0.5, abs=0.1)


async def test_a_fallbacks_answer_says_nothing_of_the_leased_engine(reporting: Start) -> None:
    app = await reporting({"a": HANGS, "b": FAST})
    granted = await lease(app)
    assert granted["arm"] == "a"
    await send(granted, to=granted["fallbacks"][0])
    await ended(app)
    assert app.parts.leases.ends["elsewhere"] == 1
    (record,) = await app.records(1)
    assert (record.decision.arm, record.outcome.status, record.outcome.output_tokens) == ("a", "cancelled", None)


async def test_only_the_first_outcome_of_a_lease_counts(reporting: Start) -> None:
    app = await reporting({"a": FAST})
    granted = await lease(app)
    await send(granted)
    await ended(app)
    again, unknown = {"lease": granted["lease"], "status": 500}, {"lease": "0" * 32, "status": 500}
    assert await tell(app, again, unknown) == {"doubled": 1, "unknown": 1}
    assert dict(app.parts.leases.rejected) == {"unknown": 1, "doubled": 1, "late": 0, "forged": 0, "invalid": 0}
    (record,) = await app.records(1)
    assert record.outcome.status == "ok"
    assert set(app.replicas.health()["a"].values()) == {"closed"}


async def test_what_engines_lose_is_counted(reporting: Start) -> None:
    app = await reporting({"a": FAST})
    url, secret = app.parts.leases.inbox or ("", "")
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {secret}"}) as engine:
        assert (await engine.post(OUTCOMES, json={"outcomes": [], "lost": {"full": 3, "x": 1}})).status_code == 200
    assert dict(app.parts.leases.lost) == {"full": 3, "old": 0, "refused": 0}


async def test_a_lease_that_waits_ends_with_the_router(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST}, admission={"max_in_flight": 1}, **ON)
    await lease(app)
    waiting = asyncio.create_task(app.client.post(ROUTE, json=asked()))
    await until(lambda: app.parts.admission.queued == 1)
    await app.parts.leases.close()
    assert (await waiting).status_code == 503
    assert app.parts.leases.ends["cancelled"] == 1
    assert not len(app.parts.leases)


async def test_a_caller_that_leaves_before_its_lease_gets_none(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST}, admission={"max_in_flight": 1}, **ON)
    await lease(app)
    with pytest.raises(httpx.ReadTimeout):
        await app.client.post(ROUTE, json=asked(), timeout=0.05)
    await until(lambda: app.parts.admission.queued == 0)
    assert len(app.parts.leases) == 1


async def test_no_place_is_lost_whatever_becomes_of_requests(reporting: Start) -> None:
    mixed = FAST.model_copy(update={"step_s": 0.001, "fail_share": 0.1, "refuse_share": 0.1, "break_share": 0.1})
    app = await reporting({"a": mixed, "b": mixed.model_copy(update={"seed": 1}), "c": REFUSING_URL})

    async def one(number: int) -> None:
        answer = await app.client.post(ROUTE, json=asked(stream=bool(number % 2)))
        if answer.status_code != 200:
            return
        granted = answer.json()
        try:
            if number % 5:
                await send(granted, stream=bool(number % 2))
        except httpx.ConnectError:
            await tell(app, {"lease": granted["lease"], "error": "unreachable"})
        if not number % 5:
            await tell(app, {"lease": granted["lease"], "error": "cancelled"})

    await asyncio.gather(*map(one, range(80)))
    await ended(app)
    leases = app.parts.leases
    assert app.replicas.in_flight() == {"a": 0, "b": 0, "c": 0}
    assert (app.replicas.busy, app.parts.admission.in_flight) == (0, 0)
    assert leases.ends["told"] == sum(leases.ends.values()) > 0
    assert len(await app.records(leases.ends["told"])) == leases.ends["told"]


async def test_leases_end_with_the_router(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST}, **ON)
    await lease(app)
    await app.parts.leases.close()
    assert app.parts.leases.ends["cancelled"] == 1
    assert app.replicas.in_flight() == {"a": 0}
