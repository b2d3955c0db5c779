"""Profiles measured over HTTP: of mock engines, whose true ones are known."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from starlette.types import ASGIApp, Receive, Scope, Send

from draftpick.engines import load_report as load
from draftpick.engines.errors import EngineUnavailable
from draftpick.engines.http.client import EngineClient
from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import MockSpec, mock_app
from draftpick.engines.mock.spec import MockDrafter
from draftpick.engines.profile import identity, profile
from draftpick.engines.profile.identity import EngineIdentity
from draftpick.engines.profile.measure import (
    ProfilePlan,
    ProfileResult,
    ProfileRun,
    check_increasing,
    find_identity,
    find_target,
    measure_profile,
)
from draftpick.engines.profile.profile import MODES, Profile, ProfileError
from draftpick.engines.profile.prompts import TEXTS

QUICK = ProfilePlan(batches=(1, 3), contexts=(40,), steps=5, min_prompts=2)


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    server = LocalServer(app)
    await server.start()
    try:
        yield server.url
    finally:
        await server.drain(1)


async def measured(spec: MockSpec, plan: ProfilePlan = QUICK, **options: Any) -> ProfileResult:
    async with serving(mock_app(spec, model="target")) as url:
        return await measure_profile(url, plan=plan, **options)


def without(app: ASGIApp, *paths: str, field: str = "") -> ASGIApp:
    """The application with neither these pages nor this field of a request."""

    async def less(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in paths:
            scope = {**scope, "path": "/nowhere"}

        async def stripped() -> Any:
            message = await receive()
            if field and message.get("body"):
                message["body"] = orjson.dumps({k: v for k, v in orjson.loads(message["body"]).items() if k != field})
            return message

        await app(scope, stripped, send)

    return less


async def test_a_profile_is_what_the_engine_takes() -> None:
    spec = MockSpec(
        step_s=0.012, step_s_per_request=0.004, free_requests=1, prefill_s=0.01, prefill_s_per_token=2e-4,
        num_speculative_tokens=4, acceptance_length=2.5, step_s_sampled=0.004, step_s_truncated=0.01,
    )  # fmt: skip
    shares: list[float] = []
    plan = ProfilePlan(batches=(1, 2, 6), contexts=(40, 200), steps=6, min_prompts=2)
    found = await measured(spec, plan, on_progress=shares.append)
    for batch in (1, 2, 4, 6):
        for mode in range(len(MODES)):
            assert found.profile.step(batch, 100, mode) == pytest.approx(spec.mean_step_s(batch, mode), rel=0.25)
    assert found.profile.contexts == pytest.approx((40, 200), rel=0.15)
    first_s = found.profile.prefill_s + 400 * found.profile.prefill_s_per_token
    assert first_s == pytest.approx(spec.prefill_duration_s(400), rel=0.3)
    assert (found.profile.build, found.profile.machine) == (spec.identity().build, "mock")
    assert 0 <= found.disagreement < 0.5
    assert found.profile.disagreement == found.disagreement
    assert found.profile.verify_s == ()  # it always drafts the same number of tokens
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


async def test_a_quick_plan_covers_all_modes_and_the_largest_batch_and_interpolates_between() -> None:
    spec = MockSpec(
        step_s=0.03, step_s_per_request=0.004, max_running=9, prefill_s=0.002, step_s_sampled=0.01,
        step_s_truncated=0.03,
    )  # fmt: skip
    found = (await measured(spec, ProfilePlan.quick(spec.max_running))).profile
    assert found.batches == (1, 3, 9)
    for mode in range(len(MODES)):
        for batch in found.batches:
            assert found.step(batch, 0, mode) == pytest.approx(spec.mean_step_s(batch, mode), rel=0.25)
    assert Profile.from_json(orjson.dumps(found.as_json())) == found


async def test_the_time_by_verified_rows_is_that_of_the_engine_whose_drafts_vary() -> None:
    spec = MockSpec(
        step_s=0.005, step_s_per_drafted_token=0.002, num_speculative_tokens=4, acceptance_length=2,
        step_s_truncated=0.005,
    )  # fmt: skip
    rows = (await measured(spec)).profile.verify_s
    for mode, added_s in enumerate((0.0, 0.0, 0.005)):
        assert rows[mode] == pytest.approx([0.005 + added_s + 0.002 * n for n in range(5)], rel=0.05)


async def test_a_cancelled_measurement_continues_with_the_points_that_are_left() -> None:
    app = mock_app(MockSpec(step_s=0.005), model="target")
    client = EngineClient(first_byte_timeout_s=5, timeout_s=5)
    async with serving(app) as url:
        target = await find_target(client, url, None)
        shares: list[float] = []
        run = ProfileRun(target, await find_identity(target), QUICK, shares.append)
        task = asyncio.create_task(run.run(TEXTS))
        while not shares or shares[-1] < 0.5:  # noqa: ASYNC110  # progress is a plain callback
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        done, before = shares[-1], app.state.engine.started
        assert (await run.run(TEXTS)).profile.batches == (1, 3)
        assert done < 1.0 == shares[-1]
        assert shares == sorted(shares)
        assert app.state.engine.started < 2.5 * before
        await client.close()


def test_profiles_of_the_former_schema_are_read_and_their_sampled_steps_hold_for_top_p() -> None:
    old = {
        "schema": 1, "build": "b", "machine": "m", "batches": [1], "contexts": [64], "step_s": [[[0.01]], [[0.02]]],
        "prefill_s": 0.1, "prefill_s_per_token": 0.0, "max_running": 4,
    }  # fmt: skip
    found = Profile.from_json(orjson.dumps(old))
    assert [found.step(1, 0, mode) for mode in range(len(MODES))] == [0.01, 0.02, 0.02]
    assert (found.verify_s, found.disagreement) == ((), None)


@given(arrays(np.float64, (2, 4, 3), elements=st.floats(0.001, 1.0)))
def test_steps_fall_along_neither_batch_nor_context(steps_s: npt.NDArray[np.float64]) -> None:
    found = check_increasing(steps_s)
    assert (np.diff(found, axis=1) >= -1e-12).all()
    assert (np.diff(found, axis=2) >= -1e-12).all()
    assert found.mean((1, 2)) == pytest.approx(steps_s.mean((1, 2)))
    assert check_increasing(found) == pytest.approx(found)


async def test_batches_that_cannot_run_at_once_are_left_out() -> None:
    found = await measured(
        MockSpec(step_s=0.005, max_running=2), ProfilePlan(batches=(1, 2, 4), contexts=(20,), steps=4)
    )
    assert (found.profile.batches, found.profile.max_running) == ((1, 2), 2)


async def test_an_engine_without_pages_is_known_by_its_address_and_its_largest_batch() -> None:
    app = mock_app(MockSpec(step_s=0.005, max_running=64), model="target")
    async with serving(without(app, identity.PATH, load.PATH, profile.PATH)) as url:
        first = (await measure_profile(url, plan=QUICK)).profile
        again = (await measure_profile(url + "/", plan=QUICK)).profile
    assert first.max_running == 3
    assert (first.build, first.machine) == (again.build, "unknown")
    assert EngineIdentity.from_json(orjson.dumps(EngineIdentity(first.build, first.machine).as_json()))


async def test_an_engine_that_stops_early_is_not_measured() -> None:
    app = mock_app(MockSpec(step_s=0.005, output_tokens=2), model="target")
    async with serving(without(app, field="ignore_eos")) as url:
        with pytest.raises(ProfileError, match="ignore_eos"):
            await measure_profile(url, plan=QUICK)


async def test_an_engine_that_answers_others_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftpick.engines.profile.measure._IDLE_WITHIN_S", 0.2)
    app = mock_app(MockSpec(step_s=0.005, output_tokens=100_000), model="target")
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as other:
        body = {"model": "target", "prompt": "mine", "stream": True}
        async with other.stream("POST", "/v1/completions", json=body) as answer:
            parts = answer.aiter_raw()
            await anext(parts)
            with pytest.raises(ProfileError, match="serves other requests"):
                await measure_profile(url, plan=QUICK)
        assert (await measure_profile(url, plan=QUICK)).profile.batches == (1, 3)


async def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ProfileError, match=r"not serve model nobody.*target"):
        await measured(MockSpec(), model="nobody")
    with pytest.raises(ProfileError, match=r"500.*failed"):
        await measured(MockSpec(fail_share=1))
    with pytest.raises(EngineUnavailable):
        await measure_profile("http://127.0.0.1:9", plan=QUICK)
    with pytest.raises(ProfileError, match="use 32640 or fewer"):
        await measured(MockSpec(), ProfilePlan(contexts=(64, 40_000)))
    for batches, contexts in (((2, 4), (64,)), ((1, 1), (64,)), ((1,), ()), ((1,), (0, 4))):
        with pytest.raises(ProfileError, match="must"):
            ProfilePlan(batches=batches, contexts=contexts)


async def test_a_pool_is_measured_without_drafts_and_with_each_drafter_alone() -> None:
    drafters = {
        "quick": MockDrafter(num_speculative_tokens=2, acceptance_length=1.5, step_s=0.002),
        "slow": MockDrafter(num_speculative_tokens=4, acceptance_length=3.0, step_s=0.006),
    }
    spec = MockSpec(step_s=0.008, drafters=drafters)
    made = (await measured(spec)).profile
    assert made.step(1) == pytest.approx(0.008, rel=0.15)
    assert made.drafter_s == pytest.approx({"quick": 0.002, "slow": 0.006}, abs=0.0015)
