"""An engine measures itself in its turn: while no engine of the node starts or serves, and once for each machine."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import MockEngine, MockSpec, mock_app
from draftpick.engines.profile import cache as profile_cache
from draftpick.engines.profile import keeper as profile_keeper
from draftpick.engines.profile.keeper import ProfileKeeper
from draftpick.engines.profile.measure import ProfilePlan
from draftpick.engines.profile.node_lock import Serving, node_serves, starting

SPEC = MockSpec(step_s=0.004, prefill_s=0, max_running=2)
MODEL = "target"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFTPICK_CACHE", str(tmp_path))
    monkeypatch.setattr(profile_keeper, "MAX_DISAGREEMENT", 9.0)  # this machine may be busy
    monkeypatch.setattr(profile_keeper, "_QUIET_S", 0.1)
    monkeypatch.setattr(profile_keeper, "_RETRY_S", 0.02)
    plan = ProfilePlan(batches=(1, 2), contexts=(20,), steps=4, longest_s=1.0, min_prompts=1)
    monkeypatch.setattr(ProfilePlan, "quick", lambda max_running: plan)
    return tmp_path / "profiles"


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[tuple[str, MockEngine]]:
    app = mock_app(SPEC, model=MODEL)
    serving = Serving()
    server = LocalServer(app, serving=serving)
    await server.start()
    yield server.url, app.state.engine
    await server.drain(1)
    serving.close()


async def measured(url: str) -> None:
    """Start a keeper, and stop it once it lets its engine be ready."""
    keeper = ProfileKeeper(url, MODEL)
    await keeper.start()
    await keeper.stop()


async def until_asked(mock: MockEngine) -> None:
    while not mock.started:  # noqa: ASYNC110  # the mock tells nobody
        await asyncio.sleep(0.002)


async def test_it_measures_itself_once_for_each_machine(engine: tuple[str, MockEngine]) -> None:
    url, mock = engine
    await measured(url)
    kept, asked = profile_cache.read(SPEC.identity()), mock.started
    assert kept is not None
    assert kept.batches == (1, 2)
    await measured(url)
    assert mock.started == asked


async def test_nobody_starts_while_one_measures_and_nobody_measures_while_some_start(
    engine: tuple[str, MockEngine],
) -> None:
    url, mock = engine
    async with starting(), starting():
        measuring = asyncio.create_task(measured(url))
        await asyncio.sleep(0.3)
        assert mock.started == 0
    await until_asked(mock)
    async with starting():
        assert measuring.done() or profile_cache.read(SPEC.identity()) is not None
    await measuring


async def test_engines_that_measure_take_turns_and_the_second_finds_what_the_first_kept(
    engine: tuple[str, MockEngine],
) -> None:
    url, mock = engine
    await measured(url)
    once = mock.started
    profile_cache.write(profile_cache.read(SPEC.identity())).unlink()  # type: ignore[arg-type]
    await asyncio.gather(measured(url), measured(url))
    assert mock.started == 2 * once


async def test_a_client_ends_the_measurement_which_goes_on_when_the_node_is_idle(
    engine: tuple[str, MockEngine],
) -> None:
    url, mock = engine
    mock.reconfigure({"step_s": 0.02})
    keeper = ProfileKeeper(url, MODEL)
    starts = asyncio.create_task(keeper.start())
    await until_asked(mock)
    body = {"model": MODEL, "prompt": "mine", "max_tokens": 16}
    async with httpx.AsyncClient(base_url=url) as client:
        for _ in range(2):
            answer = asyncio.create_task(client.post("/v1/completions", json=body))
            await asyncio.sleep(0.1)
            assert node_serves()
            assert mock.running == 1  # the client's request alone
            assert (await answer).status_code == 200
            assert not node_serves()
    await starts  # it is ready: its clients have come
    assert profile_cache.read(mock.spec.identity()) is None
    while profile_cache.read(mock.spec.identity()) is None:  # noqa: ASYNC110  # the keeper tells nobody
        await asyncio.sleep(0.01)
    await keeper.stop()


async def test_it_measures_again_on_request_but_not_for_ever(engine: tuple[str, MockEngine]) -> None:
    url, mock = engine
    keeper = ProfileKeeper(url, MODEL)
    await keeper.start()
    repeated = 0
    for _ in range(profile_keeper.MAX_REPEATS):
        mock.started = 0
        repeated += keeper.repeat()
        assert not keeper.repeat()  # one at a time
        await until_asked(mock)
        while not keeper._rests:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)
    assert repeated == profile_keeper.MAX_REPEATS
    assert not keeper.repeat()
    await keeper.stop()


async def test_what_a_busy_machine_gave_is_not_kept_and_measured_a_few_times_more(
    engine: tuple[str, MockEngine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(profile_keeper, "MAX_DISAGREEMENT", -1.0)
    keeper = ProfileKeeper(engine[0], MODEL)
    with caplog.at_level(logging.WARNING):
        await keeper.start()
        assert caplog.text.count("the machine was busy") == 1  # the engine is ready without it
        while caplog.text.count("the machine was busy") <= profile_keeper.MAX_REPEATS:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    await keeper.stop()
    assert caplog.text.count("the machine was busy") == 1 + profile_keeper.MAX_REPEATS
    assert profile_cache.read(SPEC.identity()) is None


async def test_an_engine_that_cannot_be_measured_serves_all_the_same(
    caplog: pytest.LogCaptureFixture, engine: tuple[str, MockEngine]
) -> None:
    url, mock = engine
    mock.reconfigure({"fail_share": 1.0})
    with caplog.at_level(logging.WARNING):
        await measured(url)
        await measured("http://127.0.0.1:9")
    assert caplog.text.count("no profile of target") == 2


async def test_without_a_cache_that_can_be_written_engines_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTPICK_CACHE", "/dev/null/cache")
    async with starting():
        assert not node_serves()
