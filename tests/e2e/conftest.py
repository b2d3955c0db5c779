"""One running application for each ring: mock engines, or real vLLM."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from draftpick.deploy.config import FLEETS, resolve
from draftpick.deploy.launch.ray_serve import free_port, running
from draftpick.router.config.router_config import DraftpickConfig


def fleet(name: str, records: Path, **router: Any) -> DraftpickConfig:
    """A shipped fleet that keeps records below `records`."""
    config = yaml.safe_load((FLEETS / f"{name}.yaml").read_text())
    config["router"] |= {"records": {"dir": str(records)}, **router}
    return resolve(config)


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Where a Ray cluster of its own takes jobs."""
    context = ray.init(num_cpus=4, include_dashboard=True, log_to_driver=False, logging_level="error")
    yield f"http://{context.dashboard_url}"
    ray.shutdown()


@pytest.fixture(scope="module")
def records_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def mock_url(records_dir: Path) -> Iterator[str]:
    with running(fleet("mock", records_dir), port=free_port()) as url:
        yield url
