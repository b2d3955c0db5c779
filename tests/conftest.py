"""Fixtures that several test files share."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from engines.mock import MockSpec
from tests.fleet import FAST, Mock, Routed, Servers, StartMock, StartRouter, routed

settings.register_profile(
    "steady",
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers() -> AsyncIterator[Servers]:
    """Serves ASGI applications until the last test of a file.

    For files with `pytestmark = pytest.mark.asyncio(loop_scope="module")`: stopping servers takes longer than most
    tests do.
    """
    opened = Servers()
    yield opened
    await opened.drain()


@pytest.fixture
def mock_engine(servers: Servers) -> StartMock:
    """Starts mock engines: `await mock_engine(MockSpec(...), "name")`."""

    async def start(spec: MockSpec = FAST, name: str = "x") -> Mock:
        return await servers.mock(spec, name)

    return start


@pytest_asyncio.fixture(loop_scope="module")
async def router_app(servers: Servers, tmp_path: Path) -> AsyncIterator[StartRouter]:
    """Starts a router: `await router_app({"a": spec, "b": spec}, policy=..., featurizer=..., max_attempts=...)`."""
    async with AsyncExitStack() as stack:

        async def start(specs: dict[str, Any], **options: Any) -> Routed:
            return await stack.enter_async_context(routed(servers, tmp_path / "records", specs, **options))

        yield start
