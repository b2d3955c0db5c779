"""Fixtures that several test files share."""

import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from draftpick.engines.mock.app import MockSpec
from tests import fleet
from tests.fleet import FAST, Mock, Routed, Servers, StartMock, StartRouter, routed
from tests.leaks import Exporter, Trace, found
from tests.rings import RINGS, may_select, rings_in
from tests.vllm_process import vllm_process

settings.register_profile(
    "steady",
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")

# Each client of httpx would read the certificates of all authorities: 23 ms, for addresses without TLS, too.
ssl.create_default_context = cache(ssl.create_default_context)

_OF_RAY = ("DeprecationWarning", "FutureWarning", "ResourceWarning", "pytest.PytestUnraisableExceptionWarning")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    expression = str(config.option.markexpr)
    if not expression or not collection_path.match("test_*.py"):
        return None
    return not may_select(expression, collection_path.read_text()) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray in this process warns of what it leaves open, in whichever test that is found: that is no error of ours."""
    for item in items:
        if rings := RINGS.intersection(marker.name for marker in item.iter_markers()):
            assert rings <= rings_in(item.path.read_text()), f"{item.nodeid}: its file does not name its rings"
        if "ray" in rings:
            item.add_marker(pytest.mark.filterwarnings(*(f"ignore::{name}" for name in _OF_RAY)))


@pytest.fixture(scope="session", autouse=True)
def nothing_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trace]:
    """After the last test: no prompt and no key in any log, record, page of state or metrics, error or span."""
    trace = Trace(tmp_path_factory.getbasetemp() / "trace.txt")
    logging.getLogger().addHandler(trace)
    fleet.HOOKS["response"].append(trace.answered)
    fleet.SPANS.append(SimpleSpanProcessor(Exporter(trace)))
    yield trace
    fleet.SPANS.clear()
    fleet.HOOKS["response"].remove(trace.answered)
    logging.getLogger().removeHandler(trace)
    trace.end()
    assert not (leaks := found(trace.path, tmp_path_factory.getbasetemp())), "\n".join(leaks[:20])


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


@pytest.fixture(scope="session")
def in_vllm() -> Iterator[ProcessPoolExecutor]:
    """Runs functions where vLLM is imported: `in_vllm.submit(function, ...).result()`."""
    with vllm_process() as process:
        yield process
