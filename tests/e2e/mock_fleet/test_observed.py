"""Two routers on Ray Serve as those who watch them see it: one page of metrics, Ray's own page, lines of JSON."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.ray
ASKED = 24


def by_router(page: str, name: str) -> dict[str, float]:
    """The sum of a metric over its other labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels["router"]] = found.get(sample.labels["router"], 0) + sample.value
    return found


@pytest.fixture(scope="module")
def requests(mock_url: str) -> float:
    """How many requests were asked, once `ASKED` more are answered."""
    before = sum(by_router(httpx.get(f"{mock_url}/metrics", timeout=30).text, "draftpick_requests_total").values())
    for i in range(ASKED):
        body = {"model": "mock-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        answer = httpx.post(
            f"{mock_url}/v1/chat/completions", json=body, headers={"x-request-id": f"of-test-{i}"}, timeout=30
        )
        assert answer.status_code == 200
    return before + ASKED


def test_any_replica_shows_all(mock_url: str, requests: float) -> None:
    for _ in range(4):
        page = httpx.get(f"{mock_url}/metrics", timeout=30).text
        counted = by_router(page, "draftpick_requests_total")
        assert len(counted) == 2
        assert sum(counted.values()) == requests
    assert 'vllm:num_requests_running{arm="plain",' in page


@pytest.mark.usefixtures("requests")
def test_every_request_leaves_a_line_of_json() -> None:
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    text = "".join(path.read_text() for path in folder.glob("serve/replica_draftpick_router_*.log"))
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines() if "of-test-" in line]
    ended = [line for line in lines if line["message"] == "request ended"]
    assert {line["draftpick_request_id"] for line in ended} == {f"of-test-{i}" for i in range(ASKED)}
    assert {line["status"] for line in ended} == {"ok"}
    assert "hello" not in json.dumps(lines)


def test_ray_shows_the_same_figures(mock_url: str, requests: float) -> None:
    (node,) = ray.nodes()
    place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until = time.monotonic() + 60
    counted: dict[str, float] = {}
    while sum(counted.values()) < requests and time.monotonic() < until:
        time.sleep(1)
        counted = by_router(httpx.get(place, timeout=30).text, "ray_draftpick_requests_total")
    own, page = (httpx.get(one, timeout=30).text for one in (f"{mock_url}/metrics", place))
    assert counted == by_router(own, "draftpick_requests_total")
    assert by_router(page, "ray_draftpick_e2e_seconds_count_total") == by_router(own, "draftpick_e2e_seconds_count")
    assert sum(by_router(page, "ray_draftpick_e2e_seconds_sum_total").values()) > 0
    assert set(by_router(page, "ray_draftpick_requests_in_flight")) == set(counted)
