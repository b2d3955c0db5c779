"""Fixtures that several test files share."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from engines.mock import MockSpec
from tests.fleet import FAST, Mock, Routed, Servers, StartMock, StartRouter, routed, signals_kept

settings.register_profile("steady", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("steady")


def pytest_configure(config: pytest.Config) -> None:
    """Ray declares its own models with what this pydantic deprecates; everything else stays an error."""
    config.addinivalue_line(
        "filterwarnings",
        "ignore:Using extra keyword arguments on `Field` is deprecated:pydantic.PydanticDeprecatedSince20",
    )


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    """Serves ASGI applications until the test ends."""
    with signals_kept():
        opened = Servers()
        yield opened
        await opened.drain()


@pytest.fixture
def mock_engine(servers: Servers) -> StartMock:
    """Starts mock engines: `await mock_engine(MockSpec(...), "name")`."""

    async def start(spec: MockSpec = FAST, name: str = "x") -> Mock:
        return await servers.mock(spec, name)

    return start


@pytest.fixture
async def router_app(servers: Servers, tmp_path: Path) -> AsyncIterator[StartRouter]:
    """Starts a router: `await router_app({"a": spec, "b": spec}, policy=..., featurizer=..., max_attempts=...)`."""
    async with AsyncExitStack() as stack:

        async def start(specs: dict[str, Any], **options: Any) -> Routed:
            return await stack.enter_async_context(routed(servers, tmp_path / "records", specs, **options))

        yield start
