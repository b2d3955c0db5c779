"""Pools against replicas of the best single engine, and what placement among them is worth: simulated, n replicas each.

`pools/N/pool_vs_best_single`: N pools of the embedded fleet's drafters and shorter drafts, each request placed where it
costs all requests there least, against N replicas of the engine with one drafter or none that is the best for this
traffic at this load. `pools/N/placed_vs_least_loaded`: against the same pools where each request goes to the least
loaded one. Ratios of mean latency, geometric means over three loads, which stand below them, with 95 % intervals over
seeds. Half of the requests are sampled; `gpu/`: a derived GPU. Engines and requests are those of `measured_engines.py`.
"""

from dataclasses import replace

import numpy as np
from rich.progress import Progress

from draftpick.engines.profile.profile import Profile
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.fleet import Fleet
from tests.bench.equal_resources import LOADS, Simulations, World, capacity, figures, ratios, world
from tests.bench.measured_engines import on_cpus, on_gpu, requests

SIZES = (1, 2, 8)
_DRAFTERS = ("plain", "suffix", "suffix@2", "hybrid", "general", "general@1")
"""Of the pool; the first one drafts nothing."""
_MIX, _SEEDS, _GPU_LONGER = "even", 5, 4.0


def pools(bar: Progress) -> dict[str, Interval]:
    """All figures, on CPUs and on a GPU."""
    rows = requests()
    longer = replace(
        rows, prompt_tokens=rows.prompt_tokens * _GPU_LONGER, output_tokens=np.round(rows.output_tokens * _GPU_LONGER)
    )
    found: dict[str, Interval] = {}
    for name, profiles, made in (("", on_cpus(), rows), ("gpu/", on_gpu(), longer)):
        row = bar.add_task(f"pools {name or 'cpu/'}", total=len(SIZES) * len(LOADS))
        where, pool = world(name, profiles, made), _pool(profiles)
        for n in SIZES:
            by_load = {}
            for load in LOADS:
                by_load[load] = _compare(where, pool, n, load)
                bar.advance(row)
            found |= {f"{name}pools/{_by_size(key)}": value for key, value in figures(by_load, n, _MIX).items()}
    return found


def _pool(profiles: dict[str, Profile]) -> Arm:
    return Arm.as_pool("pool", {name: profiles[name] for name in _DRAFTERS})


def _compare(where: World, pool: Arm, n: int, load: str) -> dict[str, list[float]]:
    """Ratios by seed, under one load."""
    runs = Simulations(where, where.traffic(_MIX, n, LOADS[load] * n * capacity(where, _MIX)), range(_SEEDS))
    singles = [runs.latencies(Fleet((arm,), (n,)), "least_loaded") for arm in where.arms.values()]
    single = min(singles, key=lambda latencies: float(np.mean(latencies)))
    fleet = Fleet((pool,), (n,))
    placed, least_loaded = runs.latencies(fleet), runs.latencies(fleet, "least_loaded")
    return {
        "pool_vs_best_single": ratios(single, placed),
        "placed_vs_least_loaded": ratios(least_loaded, placed),
    }


def _by_size(key: str) -> str:
    """`2/pool_vs_best_single` of `pool_vs_best_single/2/even`."""
    name, n, _, *load = key.split("/")
    return "/".join([n, name, *load])
