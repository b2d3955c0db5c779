"""Routers of one port show each other their pages."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from draftpick.router.monitoring.peer_metrics import PeerSockets

pytestmark = pytest.mark.asyncio(loop_scope="module")


StartSibling = Callable[[str, str], Awaitable[PeerSockets]]


@pytest_asyncio.fixture(loop_scope="module")
async def sibling(tmp_path: Path) -> AsyncIterator[StartSibling]:
    """Starts routers of one folder: `await sibling("0", "its page")`."""
    started = []

    async def start(name: str, text: str) -> PeerSockets:
        async def page() -> str:
            return text

        started.append(PeerSockets(tmp_path, name))
        await started[-1].serve(page)
        return started[-1]

    yield start
    for one in started:
        one.close()


async def test_each_sees_all_others(sibling: StartSibling) -> None:
    long = "x 1\n" * 100_000
    first, second, third = [await sibling(n, t) for n, t in (("0", "a 1\n"), ("1", "b 1\n"), ("2", long))]
    assert await first.pages() == {"1": "b 1\n", "2": long}
    assert await second.pages() == {"0": "a 1\n", "2": long}
    assert await third.pages() == {"0": "a 1\n", "1": "b 1\n"}


async def test_one_that_is_gone_is_left_out_until_its_successor_comes(sibling: StartSibling) -> None:
    first, second = await sibling("0", "a 1\n"), await sibling("1", "b 1\n")
    second.close()  # its socket stays, as one of a process that was killed
    assert await first.pages() == {}
    await sibling("1", "c 1\n")
    assert await first.pages() == {"1": "c 1\n"}
