"""What the router adds, measured beside its peers: `python -m tests.bench.overhead`.

Interleaved with requests straight to the same mock engines, in repeats; means and percentiles are subtracted. Writes
overhead.json, peers.json and overhead.png.
"""

import argparse
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import psutil

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from draftpick.deploy.console import progress_bar
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.evaluation.evaluate import Interval
from tests.bench.figures import show, spread
from tests.bench.overhead.contestants import PEERS, Contestant, draftpick, engines, on_serve, peer
from tests.bench.overhead.decision import decisions
from tests.bench.overhead.measures import LONG, SHORT, Figures, many_at_once, many_streams, one_at_a_time

_BUSY_PERCENT = 10.0
_CONCURRENCY = (1, 8, 64, 256)
_STREAMS, _PACE_MS = 200, 8  # 25,000 chunks/s are offered
_HELD = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=250, help="requests of a repeat, of each kind, on each path")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS), help="comma list; the first run installs them")
    parser.add_argument("--no-ray", action="store_true", help="leave out what runs on Ray Serve")
    parser.add_argument("--environments", type=Path, default=Path("runs/peers"))
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine, too")
    parser.add_argument("--output-dir", type=Path, help="folder of overhead.json, peers.json and overhead.png")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    busy = psutil.cpu_percent(3)
    if busy > _BUSY_PERCENT and not args.anyway:
        sys.exit(f"error: the machine is busy ({busy:.0f} % of its cores): figures would tell of that (--anyway)")
    names = [name for name in args.peers.split(",") if name]
    with progress_bar() as bar:
        row = bar.add_task("measuring", total=2 + args.repeats * (7 + 5 * (1 + len(names) + 2 * (not args.no_ray))))
        runs, versions = measured(args, names, lambda: bar.advance(row))
    order = dict.fromkeys(name for run in runs for name in run)
    figures = {name: spread([run[name] for run in runs if name in run]) for name in order}
    show({**headline(figures), **figures})
    if args.output_dir:
        save(args.output_dir, args.n * args.repeats, figures, versions, busy)


def measured(args: Any, names: list[str], on_progress: Any) -> tuple[list[Figures], dict[str, str]]:
    """Figures of every repeat, and the contestants' versions."""
    runs: list[Figures] = [{} for _ in range(args.repeats)]
    runs[0] |= {f"decision_{k}": v for k, v in decisions(2000).items()}
    on_progress()
    runs[0] |= {f"decision_with_sentence_encoder_{k}": v for k, v in decisions(100, "sentence").items()}
    on_progress()
    with contestants(args, names) as (urls, found):
        for run in runs:
            run |= one_at_a_time(urls[0], found, args.n)
            on_progress()
            for contestant in found:
                for concurrency in _CONCURRENCY:
                    made = many_at_once(contestant, concurrency, _requests(args.n, contestant, concurrency))
                    run |= {f"{contestant.name}/at_{concurrency}/{k}": v for k, v in made.items()}
                    on_progress()
                streams = many_streams(contestant, _STREAMS, 100, _PACE_MS)
                run |= {f"{contestant.name}/streams/{k}": v for k, v in streams.items()}
                on_progress()
            run |= _long(found[0], args.n)
            on_progress()
        versions = {contestant.name: contestant.version for contestant in found}
    for run in runs:
        for processes in (1, 2, 4):
            run |= _scaled(processes, args.n)
            on_progress()
        run |= _held(on_progress)
    return runs, versions


def _requests(n: int, contestant: Contestant, concurrency: int) -> int:
    """Enough to last, and not longer, for routers whose speeds are far apart."""
    slow = contestant.name in ("litellm", "ray-serve-llm")
    return max(n if slow else 5 * n, 2 * concurrency)


def _long(contestant: Contestant, n: int) -> Figures:
    made = many_at_once(contestant, 64, 5 * n, LONG)
    return {f"{contestant.name}/long_at_64/{k}": v for k, v in made.items()}


def _scaled(processes: int, n: int) -> Figures:
    """Requests/s of several processes on one port; engines and client share the cores with them."""
    with engines(2) as urls, tempfile.TemporaryDirectory() as folder, draftpick(urls, Path(folder), processes) as made:
        found = many_at_once(made, 64, 10 * n, SHORT)
        return {f"processes/{processes}/{name}": found[name] for name in ("rps", "cpu_s_per_1000", "failed")}


def _held(on_progress: Any) -> Figures:
    with engines(2) as urls, tempfile.TemporaryDirectory() as folder, draftpick(urls, Path(folder)) as made:
        many_at_once(made, 8, 200)
        found = many_streams(made, _HELD, 20, 500)
        on_progress()
        return {f"held/{k}": v for k, v in found.items()} | {"held/streams": _HELD - found["failed"]}


@contextmanager
def contestants(args: Any, names: list[str]) -> Iterator[tuple[list[str], list[Contestant]]]:
    """(addresses of the engines, all that is measured over them); Draftpick comes first."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = stack.enter_context(engines(2))
        found = [stack.enter_context(draftpick(urls, folder))]
        found += [stack.enter_context(peer(name, urls, folder, args.environments)) for name in names]
        if not args.no_ray:
            found += stack.enter_context(on_serve(urls, folder))
        yield urls, found


def headline(figures: dict[str, Interval]) -> dict[str, Interval]:
    """The figures that aims are about, under their short names."""
    wanted = {
        "decision_p50_ms": "decision_p50_ms",
        "decision_p99_ms": "decision_p99_ms",
        "added_median_ms_direct": "draftpick/long/e2e/added_median_ms",
        "added_median_ms_proxy": "draftpick-serve/long/e2e/added_median_ms",
        "added_chunk_ms": "draftpick/stream/chunk/added_median_ms",
        "rps": "draftpick/at_64/rps",
        "chunks_per_s": "draftpick/streams/chunks_per_s",
        "streams_held": "held/streams",
    }
    return {short: figures[name] for short, name in wanted.items() if name in figures}


def compared(figures: dict[str, Interval], names: list[str]) -> dict[str, Interval]:
    """`added_median_ms/<name>`, `rps_per_core/<name>`, and the ratios to ours."""
    found = {}
    for short, of in (("added_median_ms", "long/e2e/added_median_ms"), ("rps_per_core", "at_64/rps_per_core")):
        for name in names:
            found[f"{short}/{name}"] = figures[f"{name}/{of}"]
        for name in names[1:]:
            ratio = figures[f"{name}/{of}"].value / figures[f"{names[0]}/{of}"].value
            found[f"{short}_over_ours/{name}"] = Interval(ratio, ratio, ratio)
    return found


def save(folder: Path, n: int, figures: dict[str, Interval], versions: dict[str, str], busy: float) -> None:
    """Both files and the plot."""
    more: dict[str, Any] = {"contestants": versions, "busy_percent_before": round(busy, 1)}
    write(folder / "overhead.json", n, {**headline(figures), **figures}, **more)
    write(folder / "peers.json", n, compared(figures, list(versions)), **more)
    figure, (latency, rate) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    names = list(versions)[::-1]
    for axes, of, title in (
        (latency, "long/e2e/added_median_ms", "added to a request of 200 words, median ms"),
        (rate, "at_64/rps_per_core", "requests/s for each core of the router, 64 at once"),
    ):
        shown = [figures[f"{name}/{of}"] for name in names]
        spread = [[s.value - s.low for s in shown], [s.high - s.value for s in shown]]
        colours = ["#d9622b" if name.startswith("draftpick") else "#7a8ca3" for name in names]
        axes.barh(names, [s.value for s in shown], xerr=spread, color=colours, error_kw={"linewidth": 0.8})
        axes.set_xscale("log")
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "overhead.png", dpi=130)


if __name__ == "__main__":
    main()
