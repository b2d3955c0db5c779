"""Ends this process if the Ray that it started ends first: no call to Ray returns within a minute then, and nothing
stops Ray's HAProxy, which would keep the port.

A signal to the whole process group does this, as `timeout` sends it, or a service manager to its control group.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import ray  # first: it ships psutil, and makes it importable
from psutil import STATUS_ZOMBIE, Error, NoSuchProcess, Process, process_iter, wait_procs

from draftpick.deploy.console import err

_EVERY_S, _LAST_WORDS_S = 0.2, 2.0
_CONTROL, _PROXY = ("gcs_server", "raylet"), "haproxy"
"""Either of the first may outlive the other."""


@contextmanager
def until_shutdown(*, owned: bool) -> Iterator[None]:
    """Shut down Ray at the end, or leave its cluster. `owned`: this process has just started it, and watches it."""
    if not owned:
        try:
            yield
        finally:
            ray.shutdown()
        return
    started = Process().children(recursive=True)
    control = [process for process in started if any(_is(process, name) for name in _CONTROL)]
    node_id, ended = ray.get_runtime_context().get_node_id(), threading.Event()

    def watch() -> None:
        while not ended.wait(_EVERY_S):
            if not all(map(_runs, control)):
                err.print("Ray has ended: the engines and the router with it")
                _kill(_proxies(node_id), wait_s=0)  # at once: Ray may end this process, too
                _kill([*started, *_proxies(node_id)])
                os._exit(1)

    threading.Thread(target=watch, name="ray-watch", daemon=True).start()
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler aborts the process, so that nothing below would run.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        ended.set()
        ray.shutdown()
        _kill(_proxies(node_id))


def _is(process: Process, name: str) -> bool:
    with contextlib.suppress(Error):
        return name in process.name()
    return False


def _runs(process: Process) -> bool:
    with contextlib.suppress(NoSuchProcess):
        return bool(process.status() != STATUS_ZOMBIE)
    return False


def _proxies(node_id: str) -> Iterator[Process]:
    """HAProxy processes of this Ray, by the path of their configuration."""
    for process in process_iter():
        with contextlib.suppress(Error):
            if _is(process, _PROXY) and any(node_id in argument for argument in process.cmdline()):
                yield process


def _kill(processes: Iterable[Process], wait_s: float = _LAST_WORDS_S) -> None:
    """Kill those that do not end by themselves soon."""
    for process in wait_procs(list(processes), wait_s)[1]:
        with contextlib.suppress(Error):
            process.kill()
