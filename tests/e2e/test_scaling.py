"""Engines on Ray Serve get as many replicas as routers want, and no more than the budget allows."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from draftpick.deploy.config import resolve
from draftpick.deploy.launch.ray_serve import free_port, running

pytestmark = pytest.mark.ray
_SCALING = {
    "min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2, "upscale_delay_s": 0.5,
    "downscale_delay_s": 600, "metrics_interval_s": 0.5, "look_back_period_s": 1.0,
}  # fmt: skip


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    config = {
        "target": {"name": "mock-model"},
        "engines": [
            {"name": "plain", "kind": "mock"},
            {
                "name": "math", "kind": "mock", "deployment": {"autoscaling": _SCALING},
                "mock": {"step_s": 0.02, "output_tokens": 64, "num_speculative_tokens": 2},
            },
        ],
        "router": {
            "policy": "fixed", "default_engine": "math", "records": {"dir": str(tmp_path)},
            "autoscaling": {"max_accelerators": 4, "interval_s": 0.5},
        },
    }  # fmt: skip
    with running(resolve(config), port=free_port()) as url:
        yield url


def test_replicas_follow_the_demand_up_to_the_budget(url: str) -> None:
    stop = threading.Event()
    body = {"model": "mock-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 64}

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop.is_set():
                client.post("/v1/chat/completions", json=body).raise_for_status()

    clients = [threading.Thread(target=ask) for _ in range(16)]
    for client in clients:
        client.start()
    try:
        until, state = time.monotonic() + 60, {}
        while time.monotonic() < until:
            state = httpx.get(f"{url}/ready").json()
            if state["engines"]["math"] == 3:
                break
            time.sleep(0.5)
        time.sleep(3.0)  # it would like more
        state = httpx.get(f"{url}/ready").json()
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert state["target_replicas"] == {"plain": 1, "math": 3}
    assert state["engines"] == {"plain": 1, "math": 3}
