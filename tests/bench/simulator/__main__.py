"""The simulator against running fleets: `python -m tests.bench.simulator --json-file FILE` (4 minutes).

Mock engines behind a router get, over HTTP, the requests of a simulation at the same moments: one engine that is nearly
full, three engines of different drafters by text alone, and by load, and the same with a flash crowd. The simulation
knows what the engines were told to take, not what they took. `--real ENGINE` does the same with an engine of the
embedded fleet, whose steps are measured first, and adds to the file; `--pools` adds what `pools.py` simulates.

`million_requests_s`: seconds that a million requests take on a thousand replicas of seven engines.
"""

import argparse
import asyncio
import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress

from draftpick.deploy.console import progress_bar
from draftpick.deploy.workflows.results import merge_into, write
from draftpick.engines.mock.app import MockSpec
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.simulator.arrivals import Bursts, poisson
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.fleet import Fleet
from draftpick.policy_training.simulator.requests import Requests
from draftpick.policy_training.simulator.routing import strategy
from draftpick.policy_training.simulator.simulate import simulate
from draftpick.policy_training.simulator.traffic import predicted_tau, read_spec
from tests.bench.figures import show, spread
from tests.bench.simulator.live import mock_body, mock_fleet, send

_KINDS = ("math", "edit", "chat")
_SECONDS, _SKILL = 25.0, 0.7
SPECS: Mapping[str, MockSpec] = {
    "plain": MockSpec(step_s=0.040, step_s_per_request=0.0016, free_requests=4, output_tokens=200),
    "copy": MockSpec(
        step_s=0.044, step_s_per_request=0.006, free_requests=2, num_speculative_tokens=6, output_tokens=200,
        acceptance_length=1.3, acceptance_by_class={"edit": 3.2, "chat": 1.3, "math": 1.4},
    ),
    "head": MockSpec(
        step_s=0.050, step_s_per_request=0.008, free_requests=1, num_speculative_tokens=4, output_tokens=200,
        acceptance_length=1.6, acceptance_by_class={"math": 2.8, "chat": 1.9, "edit": 1.5},
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setup:
    """One fleet under one load. `most`: requests that an engine runs at once."""

    replicas: Mapping[str, int]
    strategy: str
    rate: float
    most: int = 16
    crowds: Bursts | None = None


SETUPS: Mapping[str, Setup] = {
    "one_engine_nearly_full": Setup({"plain": 3}, "least_loaded", 3.1, most=4),
    "by_text": Setup({"plain": 1, "copy": 2, "head": 2}, "text", 6.0),
    "by_load": Setup({"plain": 1, "copy": 2, "head": 2}, "throughput", 10.0),
    "flash_crowd": Setup({"plain": 2, "copy": 1, "head": 1}, "throughput", 4.5, crowds=Bursts(10.0, 2.5, 3.0)),
}


def specs(setup: Setup) -> dict[str, MockSpec]:
    """The engines of a setup."""
    changes = {"max_running": setup.most, "prefill_s": 0.06, "prefill_s_per_token": 0.0008}
    return {name: SPECS[name].model_copy(update=changes) for name in setup.replicas}


def requests(setup: Setup, seed: int) -> Requests:
    """Three kinds of requests, for about as long as a run shall last."""
    rng, arms = np.random.default_rng(seed), specs(setup)
    n = round(setup.rate * _SECONDS)
    kind = rng.integers(0, len(_KINDS), n)
    tau = np.asarray([[spec.tau("", name) for spec in arms.values()] for name in _KINDS])
    return Requests(
        kinds=_KINDS, columns=tuple(arms), kind=kind, prompt_tokens=rng.integers(20, 120, n).astype(float),
        output_tokens=rng.integers(20, 140, n).astype(float), sampled=np.zeros(n, bool), tau=tau[kind],
        arrival_s=poisson(n, setup.rate, rng, setup.crowds),
    )  # fmt: skip


def compared(simulated: np.ndarray, live: np.ndarray) -> dict[str, float]:
    """Seconds of both, and by which share the simulation is wrong; positive: it says too much."""
    found: dict[str, float] = {}
    for name in ("mean", "p95"):
        ours, theirs = (float(v.mean() if name == "mean" else np.quantile(v, 0.95)) for v in (simulated, live))
        found |= {f"{name}/simulated_s": ours, f"{name}/live_s": theirs, f"{name}/error": ours / theirs - 1}
        found[f"{name}/off"] = abs(ours / theirs - 1)
    return found


def run(setup: Setup, seed: int, on_progress: Callable[[], None]) -> dict[str, float]:
    """One setup, simulated and live."""
    engines = specs(setup)
    arms = {name: Arm.from_profile(name, spec.profile(), lock_step=False) for name, spec in engines.items()}
    fleet, made = Fleet.from_counts(arms, setup.replicas), requests(setup, seed)
    tau = predicted_tau(made.tau, _SKILL, seed)
    simulated = simulate(fleet, made, strategy(setup.strategy, fleet, made, tau))
    chooser = strategy(setup.strategy, fleet, made, tau)
    with mock_fleet(fleet, engines) as url:
        live = asyncio.run(send(url, made, mock_body(made), on_progress, chooser, fleet))
    same = float((live.arm == simulated.arm).mean())
    return {**compared(simulated.latency_s, live.latency_s), "same_arm": same}


def million(n: int = 1_000_000, replicas: int = 1000) -> dict[str, float]:
    """Seconds and gigabytes of simulating so many requests, routed by load."""
    from draftpick.engines.profile.profile import Profile

    spec = read_spec("six_kinds")
    names = ("plain", "suffix", "hybrid", "general", "math", "code", "chat")
    steps = [tuple((0.03 + slope * (b - 1),) for b in (1, 64)) for slope in (0.0007, *[0.003] * 6)]
    arms = {
        name: Arm.from_profile(name, Profile("none", "none", (1, 64), (0,), (table, table), 0.05, 1e-3, 64))
        for name, table in zip(names, steps, strict=True)
    }
    fleet = Fleet.from_counts(arms, {name: replicas // 7 + (i < replicas % 7) for i, name in enumerate(names)})
    rng = np.random.default_rng(0)
    made = spec.rows(names).draw(n, rng).with_arrivals(poisson(n, 0.9 * replicas, rng))
    tau = predicted_tau(made.tau, _SKILL, 0)
    began = time.perf_counter()
    simulate(fleet, made, strategy("throughput", fleet, made, tau))
    took_s = time.perf_counter() - began
    return {
        "million_requests_s": took_s,
        "million_requests_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def figures(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Interval]:
    """All of every setup, the median of its repeats."""
    return {
        f"{name}/{key}": spread([one[key] for one in several]) for name, several in runs.items() for key in several[0]
    }


def errors(found: Mapping[str, Interval]) -> dict[str, Interval]:
    """The mean size of the errors over setups, with the least and the greatest; those of real engines by themselves."""
    told = {}
    for prefix in ("", "real/"):
        for what in ("mean", "p95"):
            ends = f"/{what}/off"
            sizes = [f.value for n, f in found.items() if n.endswith(ends) and n.startswith("real/") == bool(prefix)]
            if sizes:
                told[f"{prefix}{what}_error"] = Interval(float(np.mean(sizes)), min(sizes), max(sizes))
    return told


def mocks(repeats: int, bar: Progress) -> dict[str, Interval]:
    """All setups with mock engines."""
    row = bar.add_task("requests", total=repeats * sum(round(one.rate * _SECONDS) for one in SETUPS.values()))
    runs = {
        name: [run(setup, seed, lambda: bar.advance(row)) for seed in range(repeats)] for name, setup in SETUPS.items()
    }
    return figures(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each setup, with other requests each")
    parser.add_argument("--real", action="append", default=[], metavar="ENGINE", help="an engine of the embedded fleet")
    parser.add_argument("--pools", action="store_true", help="simulate pools against single engines")
    parser.add_argument("--profiles", type=Path, help="with --real: folder that the measured profiles go into, too")
    parser.add_argument(
        "--json-file", type=Path, help="also write the figures; with --real or --pools, add to those that are there"
    )
    args = parser.parse_args()
    with progress_bar() as bar:
        if args.real:
            from tests.bench.simulator.real import reals

            found = figures(reals(args.real, args.profiles, bar))
        elif args.pools:
            from tests.bench.simulator.pools import pools

            found = pools(bar)
        else:
            found = mocks(args.repeats, bar)
            found |= {name: Interval(value, value, value) for name, value in million().items()}
    if args.json_file and args.real:
        held = json.loads(args.json_file.read_text())["figures"]
        found |= errors({name: Interval(**figure) for name, figure in held.items()} | found)
        merge_into(args.json_file, found)
    elif args.pools:
        if args.json_file:
            merge_into(args.json_file, found)
    else:
        found |= errors(found)
        if args.json_file:
            write(args.json_file, args.repeats * len(SETUPS), found, seconds_of_a_run=_SECONDS)
    show(found)


if __name__ == "__main__":
    main()
