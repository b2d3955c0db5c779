"""An engine measures itself in its turn: not while others start, and once for each machine."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import MockEngine, MockSpec, mock_app
from draftpick.engines.profile import cache as profile_cache
from draftpick.engines.profile.measure import ProfilePlan
from draftpick.engines.profile.on_startup import measure_once, starting

SPEC = MockSpec(step_s=0.004, prefill_s=0, max_running=2)
MODEL = "target"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFTPICK_CACHE", str(tmp_path))
    monkeypatch.setattr("draftpick.engines.profile.on_startup.MAX_DISAGREEMENT", 9.0)  # this machine may be busy
    plan = ProfilePlan(batches=(1, 2), contexts=(20,), steps=4, longest_s=1.0, min_prompts=1)
    monkeypatch.setattr(ProfilePlan, "quick", lambda max_running: plan)
    return tmp_path / "profiles"


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[tuple[str, MockEngine]]:
    app = mock_app(SPEC, model=MODEL)
    server = LocalServer(app)
    await server.start()
    yield server.url, app.state.engine
    await server.drain(1)


async def test_it_measures_itself_once_for_each_machine(engine: tuple[str, MockEngine]) -> None:
    url, mock = engine
    await measure_once(url, MODEL)
    kept, asked = profile_cache.read(SPEC.identity()), mock.started
    assert kept is not None
    assert kept.batches == (1, 2)
    await measure_once(url, MODEL)
    assert mock.started == asked


async def test_nobody_starts_while_one_measures_and_nobody_measures_while_some_start(
    engine: tuple[str, MockEngine],
) -> None:
    url, mock = engine
    async with starting(), starting():
        measuring = asyncio.create_task(measure_once(url, MODEL))
        await asyncio.sleep(0.3)
        assert mock.started == 0
    while not mock.started:  # noqa: ASYNC110  # the mock tells nobody
        await asyncio.sleep(0.002)
    async with starting():
        assert measuring.done() or profile_cache.read(SPEC.identity()) is not None
    await measuring


async def test_engines_that_measure_take_turns_and_the_second_finds_what_the_first_kept(
    engine: tuple[str, MockEngine],
) -> None:
    url, mock = engine
    await measure_once(url, MODEL)
    once = mock.started
    profile_cache.write(profile_cache.read(SPEC.identity())).unlink()  # type: ignore[arg-type]
    await asyncio.gather(measure_once(url, MODEL), measure_once(url, MODEL))
    assert mock.started == 2 * once


async def test_what_a_busy_machine_gave_is_not_kept(
    engine: tuple[str, MockEngine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("draftpick.engines.profile.on_startup.MAX_DISAGREEMENT", -1.0)
    with caplog.at_level(logging.WARNING):
        await measure_once(engine[0], MODEL)
    assert "the machine was busy" in caplog.text
    assert profile_cache.read(SPEC.identity()) is None


async def test_an_engine_that_cannot_be_measured_serves_all_the_same(
    caplog: pytest.LogCaptureFixture, engine: tuple[str, MockEngine]
) -> None:
    url, mock = engine
    mock.reconfigure({"fail_share": 1.0})
    with caplog.at_level(logging.WARNING):
        await measure_once(url, MODEL)
        await measure_once("http://127.0.0.1:9", MODEL)
    assert caplog.text.count("no profile of target") == 2


async def test_without_a_cache_that_can_be_written_engines_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTPICK_CACHE", "/dev/null/cache")
    async with starting():
        pass
