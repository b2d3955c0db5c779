"""Starts and stops the application on Ray, and reports its progress."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import ray
from ray import serve
from ray.exceptions import RayError

from draftpick.deploy.app import APP_NAME, build
from draftpick.deploy.launch.ports import free_port
from draftpick.deploy.launch.ray_watch import until_shutdown
from draftpick.engines.errors import ConfigError, DraftpickError
from draftpick.router.config.router_config import DraftpickConfig

_PROXY = {
    # HAProxy, which ships with Ray, sends requests directly to the router's replicas. Serve's Python proxy would send
    # each through Ray's object store.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # If a router ends before it answers, HAProxy tries another one. Generating again is safe for the client.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    # Closes clients that neither send nor read; waiting for an answer does not count. Its buffers bound headers.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
_PROXY_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

ProgressCallback = Callable[[dict[str, str]], None]
"""Called with the state of each deployment: `waiting`, `starting`, or `ready`."""


class StartFailed(DraftpickError):
    """The application did not start; the message names the part and the reason."""


@contextmanager
def running(
    config: DraftpickConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    address: str | None = None,
    timeout_s: float = 1800.0,
    progress: ProgressCallback | None = None,
) -> Iterator[str]:
    """Yield the base URL of the running application, which is drained and shut down on exit.

    Starts Ray on this machine, or joins the cluster at `address` (`auto`: the local one).
    """
    if address is None:
        _check_port(host, port)
    if config.router.local_admin is None and host in _LOOPBACK:
        router = config.router.model_copy(update={"local_admin": True})
        config = config.model_copy(update={"router": router})
    _start_ray(config, address)
    with until_shutdown(owned=address is None):
        try:
            serve.start(http_options={"host": host, "port": port}, logging_config={"enable_access_log": False})
            target = serve.RunTarget(build(config.model_dump(mode="json")), name=APP_NAME, route_prefix="/")
            serve.run_many([target], wait_for_applications_running=False)
            url = f"http://{host}:{port}"
            _wait(timeout_s, progress or (lambda states: None))
            _wait_for_router(url)
            yield url
            _drain(config.drain_timeout_s)
        finally:
            serve.shutdown()


def use_policy(name: str, address: str) -> list[str]:
    """Activate a policy on every router replica of this cluster; return their ids."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except ConnectionError as error:
        fix = "give --registry FOLDER, or the cluster's address as --ray-address"
        raise ConfigError("--ray-address", f"no Ray cluster at {address!r}", fix) from error
    try:
        handle = serve.get_deployment_handle("router", APP_NAME)
        return [str(found) for found in handle.broadcast("use_policy", name).results(timeout_s=120)]
    finally:
        ray.shutdown()


def _check_port(host: str, port: int) -> None:
    """Raise ConfigError if the port is in use; Ray Serve would only report a dead actor."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                "port",
                f"cannot listen on {host}:{port}: {error.strerror}",
                "stop the process that listens there, or set --port",
            ) from error


_RAY_STARTS, _RAY_LATE = 3, "timed out during startup"
"""Ray waits for its own processes for a fixed time, too short for a machine that does much else."""


def _start_ray(config: DraftpickConfig, address: str | None) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    log_to_driver = bool(os.environ.get("DRAFTPICK_LOG_TO_DRIVER"))
    quiet: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": "error"}
    if address:
        ray.init(address=address, **quiet)
        return
    for name, value in [*_PROXY.items(), *((name, str(free_port())) for name in _PROXY_PORTS)]:
        os.environ.setdefault(name, value)
    # Serve's own actors and the router need little; the engines' shares may exceed a small machine's cores.
    wanted = 4 + sum(e.deployment.num_cpus * e.deployment.num_replicas + 0.1 for e in config.engines)
    for left in reversed(range(_RAY_STARTS)):
        try:
            ray.init(num_cpus=max(os.cpu_count() or 1, round(wanted)), include_dashboard=False, **quiet)
            return
        except Exception as error:  # what Ray raises has no type of its own
            if _RAY_LATE not in str(error):
                raise
            if not left:
                raise DraftpickError("Ray did not start in time: is this machine busy with other work?") from error
            logging.getLogger(__name__).warning("Ray did not start in time; trying again")


def _drain(timeout_s: float) -> None:
    """Delete the application, so that its replicas finish their streams: `serve.shutdown` alone would abort them."""
    serve.delete(APP_NAME, _blocking=False)
    deadline = time.monotonic() + timeout_s
    while APP_NAME in serve.status().applications and time.monotonic() < deadline:
        time.sleep(0.2)


def _wait(timeout_s: float, progress: ProgressCallback) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        app = serve.status().applications.get(APP_NAME)
        if app is not None:
            states = {name: _state(d.replica_states, str(d.status)) for name, d in app.deployments.items()}
            progress(states)
            if app.status == "RUNNING":
                return
            if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                reasons = [f"{name}: {d.message}" for name, d in app.deployments.items() if d.message]
                raise StartFailed("; ".join(reasons) or app.message or "the application failed to start")
        time.sleep(0.5)
    raise StartFailed(f"the application was not ready after {timeout_s:g} s")


def _wait_for_router(url: str, timeout_s: float = 60.0) -> None:
    """Serve reports running replicas; wait until the router answers and has found them all."""
    deadline = time.monotonic() + timeout_s
    router = serve.get_deployment_handle("router", APP_NAME)
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError, RayError):
            answer = httpx.get(f"{url}/ready", timeout=5)
            if answer.status_code == 200 and all(router.state.remote().result(timeout_s=5)["engines"].values()):
                return
        time.sleep(0.2)
    raise StartFailed(f"the router at {url} did not find all engines within {timeout_s:g} s")


def _state(replicas: dict[Any, int], status: str) -> str:
    if replicas.get("RUNNING") and "UPDATING" not in status:
        return "ready"
    return "starting" if replicas else "waiting"
