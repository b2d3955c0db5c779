"""A shipped fleet with records of its own. What is slow to start, the tests of a folder share."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from draftpick.deploy.config import FLEETS, resolve
from draftpick.router import records
from draftpick.router.config.router_config import DraftpickConfig
from draftpick.router.types import Record


def fleet(name: str, records: Path, **router: Any) -> DraftpickConfig:
    """A shipped fleet that keeps records below `records`."""
    config = yaml.safe_load((FLEETS / f"{name}.yaml").read_text())
    config["router"] |= {"records": {"dir": str(records)}, **router}
    return resolve(config)


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Whether it holds in time: much more time than it takes where other tests leave it a processor."""
    until = time.monotonic() + timeout_s
    while not (holds := condition()) and time.monotonic() < until:
        time.sleep(0.05)
    return holds


def recorded(folder: Path, *ids: str) -> list[Record]:
    """All records of these requests, once each has one."""

    def found() -> list[Record]:
        return [record for record in records.read(folder) if record.client_request_id in ids]

    assert eventually(lambda: {record.client_request_id for record in found()} == set(ids))
    return found()


@pytest.fixture(scope="module")
def records_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")
