"""Background tasks outlive their errors."""

import asyncio
import logging
from collections import Counter

import pytest

from draftpick.router import supervision
from draftpick.router.supervision import Supervisor


async def test_a_task_goes_on_after_errors_which_are_logged_once_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_FIRST_PAUSE_S", 0.001)
    failures, calls, reached = Counter[tuple[str, str]](), 0, asyncio.Event()

    async def work() -> None:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise RecursionError("an odd page") if calls < 3 else OverflowError("another")
        reached.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(Supervisor(failures).run("load", work))
    async with asyncio.timeout(5):
        await reached.wait()
    assert failures == {("load", "RecursionError"): 2, ("load", "OverflowError"): 1}
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_work_that_returns_is_finished() -> None:
    failures = Counter[tuple[str, str]]()

    async def work() -> None:
        return

    await Supervisor(failures).run("load", work)
    assert not failures
