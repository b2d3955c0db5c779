"""The router without Ray, in front of running engines: one process, or several on one port, or with a picker beside."""

import asyncio
import logging
import multiprocessing
import os
import resource
import signal
import socket
import tempfile
import threading
import time
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any

from draftpick.engines.errors import ConfigError, DraftpickError
from draftpick.router.config.router_config import DraftpickConfig, load_config

_BACKLOG = 4096
_POLL_S = 0.1
_MIN_LIFE_S = 5.0
"""Minimum interval between restarts of a process."""
_DESCRIPTORS, _FEW_DESCRIPTORS = 65_536, 4096
"""Files that a router opens at most, and a number that suffices for few connections."""

log = logging.getLogger("draftpick.router")


class RouteFailed(DraftpickError):
    """The routers did not start."""


class RouterProcesses:
    """`processes` routers that share one listening socket; failed ones are replaced. Raises `ConfigError`.

    Each has its own slots, rate limits, breakers and quarantine. `/metrics` covers all of them, whichever answers.
    """

    def __init__(
        self, config: DraftpickConfig, host: str, port: int, processes: int, picker: tuple[str, int] | None = None
    ) -> None:
        """`picker`: address on which the one process also serves an endpoint picker."""
        if started := [engine.name for engine in config.engines if engine.kind != "url"]:
            raise ConfigError(
                "engines",
                f"{', '.join(started)} would have to be started",
                "set `url` for each, or use `draftpick serve`",
            )
        self._config, self._drain_s = config.model_dump(mode="json"), config.drain_timeout_s
        if picker is not None:
            _listening(*picker).close()  # the process itself will listen there: an error would be lost in its output
        self._socket, self._picker = _listening(host, port), picker
        self._context = multiprocessing.get_context("spawn")
        self._stopping = False
        self._ready = self._context.Semaphore(0)
        self._folder = tempfile.TemporaryDirectory(prefix="draftpick-")
        self._processes = [self._start(i) for i in range(processes)]
        self._started = [time.monotonic()] * processes

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def wait(self, timeout_s: float = 60.0) -> None:
        """Wait until all of them answer. Raises `RouteFailed`."""
        until, waiting = time.monotonic() + timeout_s, len(self._processes)
        while waiting and not self._stopping:
            if self._ready.acquire(timeout=_POLL_S):
                waiting -= 1
            elif not all(process.is_alive() for process in self._processes):
                raise RouteFailed("a router exited immediately: see its output above")
            elif time.monotonic() > until:
                raise RouteFailed(f"the routers did not answer within {timeout_s:g} s")

    def request_stop(self) -> None:
        """Make `supervise` return; safe in a signal handler."""
        self._stopping = True

    def supervise(self) -> None:
        """Replace failed processes until `request_stop`."""
        while not self._stopping:
            for i, process in enumerate(self._processes):
                if not process.is_alive() and time.monotonic() - self._started[i] > _MIN_LIFE_S:
                    self._processes[i], self._started[i] = self._start(i), time.monotonic()
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Let all of them finish their requests, for at most `drain_timeout_s`."""
        self._stopping = True
        # Closed here and in the processes: new clients are refused at once, and none waits in the backlog.
        self._socket.close()
        for process in self._processes:
            process.terminate()
        until = time.monotonic() + self._drain_s + 5
        for process in self._processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
        self._folder.cleanup()

    def _start(self, number: int) -> BaseProcess:
        folder = Path(self._folder.name)
        given = (self._config, self._socket, self._drain_s, self._ready, folder, str(number), self._picker)
        process = self._context.Process(target=serve_one, args=given, name=f"router-{number}", daemon=True)
        process.start()
        return process


def serve_one(
    config: dict[str, Any],
    listening: socket.socket,
    drain_s: float,
    ready: Semaphore,
    folder: Path,
    name: str,
    picker: tuple[str, int] | None = None,
) -> None:
    """Run one router in this process until SIGTERM; `ready` is released once it answers.

    `folder`: the sockets of all routers; `name`: its own among them; `picker`: address of an endpoint picker.
    """
    import uvicorn
    import uvloop

    from draftpick.router.http.protocol import server_settings
    from draftpick.router.monitoring.peer_metrics import PeerSockets
    from draftpick.router.router import Router, addresses_behind, fixed_address
    from draftpick.router.telemetry import logging as logs

    threading.Thread(target=_end_with_parent, daemon=True).start()
    made = load_config(config)
    logs.configure(made.router.logs)
    descriptors = _raise_descriptor_limit()

    async def serve() -> None:
        siblings = PeerSockets(folder, name)
        find = fixed_address if picker is None else addresses_behind
        sources = {engine.name: find(str(engine.url)) for engine in made.engines}
        router = Router(made, sources, name=name, peer_pages=siblings.pages)
        if picker is not None:
            from draftpick.router.epp.server import PickerServer

            router.beside.append(PickerServer(router.app, router.parts, *picker, router.access))
        await siblings.serve(router.own_metrics)
        server = uvicorn.Server(server_settings(router.app, made.router, drain_s, descriptors))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn has no such event
            await asyncio.sleep(0.01)
        ready.release()
        await serving
        siblings.close()

    uvloop.run(serve())


def _raise_descriptor_limit() -> int:
    """Raise the number of files that this process may open to its hard limit, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if max(soft, wanted) < _FEW_DESCRIPTORS:
        log.warning("this process may open %d files: raise `ulimit -n` for more connections", max(soft, wanted))
    return max(soft, wanted)


def _end_with_parent() -> None:
    """End this process with its parent, even if that is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm only if the protocol is named.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        problem = f"cannot listen on {host}:{port}: {error.strerror}"
        raise ConfigError("port", problem, "stop the process that listens there, or set --port") from error
    made.listen(_BACKLOG)
    return made
