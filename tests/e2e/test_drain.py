"""What stops finishes its streams first: through Serve's proxy, the router and the engine."""

import threading

import httpx
import pytest

from draftpick.deploy.config import resolve
from draftpick.deploy.launch.ray_serve import free_port, running

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


def test_a_stream_that_runs_when_everything_stops_comes_to_its_end() -> None:
    slow = {"name": "plain", "kind": "mock", "mock": {"step_s": 0.02, "output_tokens": 300}}
    live = {"user_config": {"policy": "uniform", "exploration": {"rate": 0.25}, "admission": {"max_in_flight": 7}}}
    router = {"policy": "fixed", "default_engine": "plain", "featurizer": "none", "deployment_options": live}
    config = resolve({"target": {"name": "mock-model"}, "engines": [slow], "router": router})
    body = {
        "model": "mock-model",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 300,
        "stream": True,
    }
    begun, received = threading.Event(), bytearray()

    def read(url: str) -> None:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            for chunk in answer.iter_bytes():
                received.extend(chunk)
                begun.set()

    with running(config, port=free_port()) as url:
        reader = threading.Thread(target=read, args=(url,))
        reader.start()
        assert begun.wait(30)
        # Serve's user_config is taken, over the configuration that the replica began with.
        assert httpx.get(f"{url}/ready").json()["policy"] == "uniform"
    reader.join(60)
    assert received.count(b"data: ") > 250
    assert received.endswith(b"data: [DONE]\n\n")
