"""A Ray cluster that takes jobs and training, started once for all tests of this folder."""

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="package")
def dashboard() -> Iterator[str]:
    """Where the cluster takes jobs."""
    context = ray.init(num_cpus=4, include_dashboard=True, log_to_driver=False, logging_level="error")
    yield f"http://{context.dashboard_url}"
    ray.shutdown()


@pytest.fixture(scope="package")
def cluster(dashboard: str) -> str:
    """The address of the cluster."""
    return str(ray.get_runtime_context().gcs_address)
