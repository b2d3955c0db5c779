"""Engines on Ray Serve get as many replicas as routers want, and no more than the budget allows; what stops finishes
its streams first: through Serve's proxy, the router and the engine.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from draftpick.deploy.config import resolve
from draftpick.deploy.launch.ports import free_port
from draftpick.deploy.launch.ray_serve import running

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]
_SCALING = {
    "min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2, "upscale_delay_s": 0.5,
    "downscale_delay_s": 600, "metrics_interval_s": 0.5, "look_back_period_s": 1.0,
}  # fmt: skip
_LIVE = {"policy": "fixed", "exploration": {"rate": 0.0}, "admission": {"max_in_flight": 64}}
BODY = {"model": "mock-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 64}


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Callable[[], None]]]:
    """Its address, and what stops it."""
    config = {
        "target": {"name": "mock-model"},
        "engines": [
            {"name": "plain", "kind": "mock", "mock": {"step_s": 0.02, "output_tokens": 200}},
            {
                "name": "math", "kind": "mock", "deployment": {"autoscaling": _SCALING},
                "mock": {"step_s": 0.02, "output_tokens": 64, "num_speculative_tokens": 2},
            },
        ],
        "router": {
            "policy": "uniform", "default_engine": "math", "records": {"dir": str(tmp_path_factory.mktemp("records"))},
            "autoscaling": {"max_accelerators": 4, "interval_s": 0.5}, "deployment_options": {"user_config": _LIVE},
        },
    }  # fmt: skip
    with ExitStack() as stack:
        yield stack.enter_context(running(resolve(config), port=free_port())), stack.close


@pytest.fixture
def url(application: tuple[str, Callable[[], None]]) -> str:
    return application[0]


def test_user_config_is_taken_over_the_configuration_that_the_replica_began_with(url: str) -> None:
    assert httpx.get(f"{url}/ready").json()["policy"].startswith("fixed")


def test_replicas_follow_the_demand_up_to_the_budget(url: str) -> None:
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop.is_set():
                client.post("/v1/chat/completions", json=BODY).raise_for_status()

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


def test_a_stream_that_runs_when_everything_stops_comes_to_its_end(
    application: tuple[str, Callable[[], None]],
) -> None:
    url, stop = application
    begun, received = threading.Event(), bytearray()

    def read() -> None:
        body, pinned = {**BODY, "max_tokens": 200, "stream": True}, {"x-draftpick-arm": "plain"}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=pinned, timeout=60) as answer:
            for chunk in answer.iter_bytes():
                received.extend(chunk)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(30)
    stop()
    reader.join(60)
    assert received.count(b"data: ") > 150
    assert received.endswith(b"data: [DONE]\n\n")
