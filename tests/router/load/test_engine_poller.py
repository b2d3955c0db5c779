"""A router follows its engines' pages: their load, their steps, and that they fall silent."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
import pytest
import pytest_asyncio
from starlette.applications import Starlette

from draftpick.engines import load_report as load
from draftpick.engines.http.client import EngineClient
from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile.profile import Profile
from draftpick.engines.replicas import ReplicaTable
from draftpick.router.config.sections import LoadConfig
from draftpick.router.load.engine_poller import EnginePoller
from draftpick.router.load.load_model import LoadModel
from draftpick.router.load.step_time import CONTRADICTING_ANSWERS
from tests.fleet import FAST, REFUSING_URL, SLOW, Servers, StartRouter, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
RISING = FAST.model_copy(update={"step_s": 0.01, "step_s_per_request": 0.001, "max_running": 17})


class Following:
    """Reports of two arms, `a` and `b`."""

    def __init__(self, client: EngineClient, a: str, b: str) -> None:
        self.now_s = 0.0
        self.table = ReplicaTable(("a", "b"))
        self.table.update("a", [a])
        self.table.update("b", [b])
        clock = lambda: self.now_s  # noqa: E731
        self.model = LoadModel(LoadConfig(), self.table, clock=clock)
        self.reports = EnginePoller(client, self.table, self.model, 0.5, clock)

    async def ask(self) -> None:
        await self.reports.poll()


@pytest_asyncio.fixture(loop_scope="module")
async def client() -> AsyncIterator[EngineClient]:
    made = EngineClient(first_byte_timeout_s=5, timeout_s=5)
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def servers() -> AsyncIterator[Servers]:
    made = Servers()
    yield made
    await made.drain()


async def test_the_profile_of_an_engine_is_followed(client: EngineClient, servers: Servers) -> None:
    following = Following(client, (await servers.mock(RISING)).url, REFUSING_URL)
    await following.ask()
    table = following.model.steps["a"]
    assert table.max_running == 17
    assert table.curves[0][11] == pytest.approx(2.0)
    assert following.model.steps["b"].profile is None


async def test_requests_of_others_are_seen(client: EngineClient, servers: Servers, router_app: StartRouter) -> None:
    mock = await servers.mock(SLOW)
    other = await router_app({"a": mock.url})
    following = Following(client, mock.url, REFUSING_URL)
    asking = [asyncio.create_task(other.post(stream=True)) for _ in range(3)]
    await until(lambda: mock.engine.slots.borrowed_tokens == 3)
    await following.ask()
    assert following.table.by_arm["a"][0].total_in_flight == 3
    for task in asking:
        task.cancel()
    await until(lambda: mock.engine.slots.borrowed_tokens == 0)
    await following.ask()
    assert following.table.by_arm["a"][0].total_in_flight == 0


async def test_an_engine_that_falls_silent_is_stale_and_one_that_shows_no_page_is_not(
    client: EngineClient, servers: Servers
) -> None:
    mock, plain = await servers.mock(), await servers.serve(Starlette())
    following = Following(client, mock.url, plain.url)
    await following.ask()
    await mock.server.drain(0.1)
    following.now_s = 6.0
    await following.ask()
    assert following.model.staleness.suspects == {"a"}


async def test_an_engine_without_pages_is_asked_seldom(client: EngineClient, servers: Servers) -> None:
    asked = []

    async def page(scope: object, receive: object, send: object) -> None:
        asked.append(scope)
        await Starlette()(scope, receive, send)  # type: ignore[arg-type]

    server = await servers.serve(page)
    following = Following(client, server.url, REFUSING_URL)
    for _ in range(10):
        await following.ask()
        following.now_s += 0.5
    assert len(asked) == 1
    following.now_s = 31.0
    await following.ask()
    assert len(asked) == 2


async def test_an_engine_whose_answers_contradict_its_profile_measures_itself_again_but_not_for_ever(
    client: EngineClient, servers: Servers
) -> None:
    profiles, repeats = [RISING.profile(), RISING.model_copy(update={"step_s": 0.02}).profile()], 0

    async def page(scope: Any, receive: Any, send: Any) -> None:
        nonlocal repeats
        repeats += scope["method"] == "POST"
        report: Any = LoadReport(0, 0) if scope["path"] == load.PATH else profiles[min(repeats, 1)]
        await send({"type": "http.response.start", "status": 202 if scope["method"] == "POST" else 200, "headers": []})
        await send({"type": "http.response.body", "body": orjson.dumps(report.as_json())})

    following = Following(client, (await servers.serve(page)).url, REFUSING_URL)
    told: list[Mapping[str, Profile]] = []
    following.model.on_profiles = told.append
    table = following.model.steps["a"]
    await following.ask()
    for _ in range(CONTRADICTING_ANSWERS + 10):
        table.update(1, 0, 0.02)
    await following.ask()
    assert repeats == 1
    following.now_s += 11
    await following.ask()
    assert [profiles["a"].step(1) for profiles in told] == [0.01, 0.02]
    assert not table.contradicted
    for _ in range(9):
        for _ in range(CONTRADICTING_ANSWERS + 10):
            table.update(1, 1, 0.04)
        following.now_s += 31
        await following.ask()
    assert repeats == 3


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"running": -1, "waiting": 0}', b'{"running": "1"}'])
async def test_what_is_no_report_is_passed_over(client: EngineClient, servers: Servers, body: bytes) -> None:
    async def page(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": body})  # type: ignore[operator]

    server = await servers.serve(page)
    following = Following(client, server.url, REFUSING_URL)
    await following.ask()
    assert following.table.by_arm["a"][0].report is None
    assert following.table.by_arm["a"][0].total_in_flight == 0


class TestDecisions:
    """What a router makes of it."""

    async def test_a_stale_arm_is_skipped(self, router_app: StartRouter) -> None:
        router = await router_app({"a": FAST, "b": FAST})  # the policy is fixed: a
        router.parts.load.staleness.suspects = frozenset({"a"})
        assert {(await router.post()).headers["x-draftpick-arm"] for _ in range(3)} == {"b"}

    async def test_while_no_load_is_known_the_plain_engine_serves(self, router_app: StartRouter) -> None:
        router = await router_app({"a": FAST, "b": FAST}, plain="b")
        router.parts.load.staleness.suspects = frozenset({"a", "b"})
        assert (await router.post()).headers["x-draftpick-arm"] == "b"
        assert router.parts.metrics.fallbacks["stale_load"] == 1

    async def test_a_stale_arm_serves_where_it_is_pinned(self, router_app: StartRouter) -> None:
        router = await router_app({"a": FAST, "b": FAST})
        router.parts.load.staleness.suspects = frozenset({"a"})
        answer = await router.post(headers={"x-draftpick-arm": "a"})
        assert answer.headers["x-draftpick-arm"] == "a"

    async def test_a_conversation_goes_on_where_it_was_read(self, router_app: StartRouter, servers: Servers) -> None:
        first, second = await servers.mock(), await servers.mock()
        router = await router_app({"a": first.url})
        router.replicas.update("a", [first.url, second.url])
        said = "What was said. " * 200
        router.replicas.by_arm["a"][0].in_flight += 1
        await router.post(text=said)
        router.replicas.by_arm["a"][0].in_flight -= 1
        await router.post(text=f"{said} And more.")
        await router.post(text="Something else.")
        assert (first.engine.started, second.engine.started) == (1, 2)
