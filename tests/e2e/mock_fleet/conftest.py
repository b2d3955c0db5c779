"""The mock fleet behind two routers, started once for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from draftpick.deploy.launch.ports import free_port
from draftpick.deploy.launch.ray_serve import running
from tests.e2e.conftest import fleet


@pytest.fixture(scope="package")
def records_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="package")
def mock_url(records_dir: Path) -> Iterator[str]:
    logs = {"format": "json", "access_log": True}
    with running(fleet("mock", records_dir, num_replicas=2, logs=logs, paths=["*"]), port=free_port()) as url:
        yield url


ARMS = {"plain", "ngram", "suffix", "math"}


def mock_state(url: str, arm: str, **changes: Any) -> dict[str, Any]:
    """Of a mock engine, after these changes of its specification."""
    pinned = {"x-draftpick-arm": arm}
    answer = httpx.request("POST" if changes else "GET", f"{url}/mock/state", json=changes or None, headers=pinned)
    return dict(answer.raise_for_status().json())


def counted(url: str, what: str) -> int:
    """Over all mock engines."""
    return sum(mock_state(url, arm)[what] for arm in ARMS)
