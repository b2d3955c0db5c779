"""Requests that are held at once: which gaps between their chunks count."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.engines.http.client import EngineClient
from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import MockSpec, mock_app
from draftpick.engines.profile.concurrent_decode import Target, _Batch, sustain_batch
from draftpick.engines.profile.profile import ProfileError


def test_gaps_count_while_all_run() -> None:
    batch = _Batch(2, steps=2, longest_s=9)
    assert not batch.observe(0, 1.0, 1)
    assert not batch.observe(0, 2.0, 1)  # alone
    assert not batch.observe(1, 2.5, 1)  # both
    assert not batch.observe(0, 3.0, 1)  # has waited for the other's prefill
    assert not batch.observe(1, 3.5, 1)
    assert not batch.observe(0, 3.6, 1)
    assert batch.observe(0, 4.2, 1)
    assert batch.observe(1, 4.5, 1)  # alone again
    assert batch.gaps() == pytest.approx([0.6, 0.6, 1.0])


@given(
    st.integers(1, 4), st.integers(1, 12), st.floats(0.001, 0.5), st.lists(st.integers(1, 3), min_size=40, max_size=40)
)
def test_chunks_that_come_together_change_no_mean(size: int, steps: int, step_s: float, together: list[int]) -> None:
    batch = _Batch(size, steps, longest_s=1e9)
    for i in range(size):
        batch.observe(i, 0.0, 1)
    for i in range(size):
        at = 0
        for number in together:
            at += number
            if batch.observe(i, at * step_s, number):
                break
    gaps = batch.gaps()
    assert gaps == pytest.approx([step_s] * len(gaps))
    assert len(gaps) >= steps


async def held(spec: MockSpec, requests: int, **options: float) -> list[float]:
    server = LocalServer(mock_app(spec, model="target"))
    await server.start()
    client = EngineClient(first_byte_timeout_s=5, timeout_s=5)
    try:
        target = Target(client, server.url, "target", 4000)
        return await sustain_batch(target, [[1, 2, 3]] * requests, 0, **{"steps": 6, "longest_s": 2.0, **options})  # type: ignore[arg-type]
    finally:
        await client.close()
        await server.drain(1)


async def test_the_engine_is_left_as_soon_as_the_steps_are_taken() -> None:
    began = asyncio.get_running_loop().time()
    gaps = await held(MockSpec(step_s=0.02, step_s_per_request=0.01), 3)
    assert sum(gaps) / len(gaps) == pytest.approx(0.04, rel=0.15)
    assert asyncio.get_running_loop().time() - began < 1.5


async def test_a_refusal_is_told_in_the_engine_s_words() -> None:
    with pytest.raises(ProfileError, match=r"503.*full"):
        await held(MockSpec(refuse_share=1), 2)
