"""`serve run draftpick.deploy.app:build config=...` and a Serve YAML file start the same application."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from draftpick.deploy.launch.ports import free_port

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
DEFAULT_PORT = 8000
FLEET = {
    "target": {"name": "mock-model"},
    "engines": [{"name": "plain", "kind": "mock"}],
    "router": {"policy": "uniform", "default_engine": "plain", "local_admin": True},
}


@contextmanager
def serve_run(*args: str) -> Iterator[None]:
    """Ray Serve's own command line, ended as Ctrl-C ends it."""
    # A test run in the background of a shell ignores this signal, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [str(Path(sys.executable).with_name("serve")), "run", *args]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def ready(port: int) -> dict[str, object]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5)
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code == 200 and all(answer.json()["engines"].values()):
            return dict(answer.json())
        time.sleep(0.5)
    raise AssertionError("the application was not ready in time")


@pytest.mark.parametrize("early", [True, False], ids=["starting", "serving"])
def test_a_signal_to_the_whole_process_group_ends_all_soon(tmp_path: Path, early: bool) -> None:
    fleet, port = tmp_path / "fleet.yaml", free_port()
    fleet.write_text(yaml.safe_dump(FLEET))
    command = [sys.executable, "-m", "draftpick", "serve", "--config", str(fleet), "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    ready(port)
    while not early and b"ready" not in (tmp_path / "log").read_bytes():
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(20)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def application(port: int) -> tuple[object, ...]:
    state = ready(port)
    body = {"model": "mock-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=30)
    return state["engines"], state["policy"], answer.status_code, answer.json()["choices"]


def test_import_path_and_yaml_start_the_same_application(tmp_path: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", DEFAULT_PORT)) == 0:
            pytest.skip(f"port {DEFAULT_PORT} is taken, and `serve run` with an import path takes no other")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(yaml.safe_dump(FLEET))
    with serve_run("draftpick.deploy.app:build", f"config={fleet}"):
        by_import_path = application(DEFAULT_PORT)
    config = yaml.safe_load((ROOT / "deploy/serve/one-machine.yaml").read_text())
    config["http_options"]["port"] = port = free_port()
    config["applications"][0]["args"] = {"config": str(fleet)}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    with serve_run(os.fspath(path)):
        assert application(port) == by_import_path
