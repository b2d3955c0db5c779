"""Profiles measured over HTTP: of mock engines, whose true ones are known."""

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
from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import MockSpec, mock_app
from draftpick.engines.profile import identity, profile
from draftpick.engines.profile.identity import EngineIdentity
from draftpick.engines.profile.measure import ProfilePlan, ProfileResult, check_increasing, measure_profile
from draftpick.engines.profile.profile import ProfileError

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
        num_speculative_tokens=4, acceptance_length=2.5,
    )  # fmt: skip
    shares: list[float] = []
    plan = ProfilePlan(batches=(1, 2, 6), contexts=(40, 200), steps=6, min_prompts=2)
    found = await measured(spec, plan, on_progress=shares.append)
    for batch in (1, 2, 4, 6):
        for half in (0, 1):
            assert found.profile.step(batch, 100, half) == pytest.approx(spec.mean_step_s(batch), rel=0.25)
    assert found.profile.contexts == pytest.approx((40, 200), rel=0.15)
    first_s = found.profile.prefill_s + 400 * found.profile.prefill_s_per_token
    assert first_s == pytest.approx(spec.prefill_duration_s(400), rel=0.3)
    assert (found.profile.build, found.profile.machine) == (spec.identity().build, "mock")
    assert 0 <= found.disagreement < 0.5
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


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
    with pytest.raises(ProfileError, match="do not increase"):
        await measured(MockSpec(), ProfilePlan(contexts=(1, 2)))
    for batches, contexts in (((2, 4), (64,)), ((1, 1), (64,)), ((1,), ()), ((1,), (0, 4))):
        with pytest.raises(ProfileError, match="must"):
            ProfilePlan(batches=batches, contexts=contexts)
