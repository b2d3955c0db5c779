"""A shipped fleet with records of its own. What is slow to start, the tests of a folder share."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from draftpick.deploy.config import FLEETS, resolve
from draftpick.router.config.router_config import DraftpickConfig


def fleet(name: str, records: Path, **router: Any) -> DraftpickConfig:
    """A shipped fleet that keeps records below `records`."""
    config = yaml.safe_load((FLEETS / f"{name}.yaml").read_text())
    config["router"] |= {"records": {"dir": str(records)}, **router}
    return resolve(config)


@pytest.fixture(scope="module")
def records_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")
