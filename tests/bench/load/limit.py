"""What there is to gain in the sweep of `tests.bench.load.real`, simulated: `python -m tests.bench.load.limit`.

Clients that never pause, over an engine without a drafter and one with a suffix tree, whose steps and acceptance
lengths are measured (`measured_engines.py`). A figure `<strategy>/<clients>` is the mean time of an answer over our
router's (above 1: we are faster). `oracle` is our router, which takes requests one by one, told every acceptance length
and number of tokens beforehand, and `oracle_gain` what it has over the best other way. `long_prompts/...`: the same on
a derived GPU, four engines, prompts of 6,000 tokens and answers of 105, where reading is most of the work.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from heapq import heappop, heappush
from pathlib import Path

import numpy as np

from draftpick.deploy.workflows.results import write
from draftpick.engines.profile.profile import Profile
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.fleet import Fleet, Pools
from draftpick.policy_training.simulator.replica import Replica, RequestLog
from draftpick.policy_training.simulator.requests import Requests
from draftpick.policy_training.simulator.routing import Strategy, strategy
from draftpick.policy_training.simulator.simulate import interval
from draftpick.policy_training.simulator.traffic import predicted_tau
from tests.bench.equal_resources import skill_of
from tests.bench.figures import show
from tests.bench.measured_engines import on_cpus, on_gpu, requests

_SEEDS, _TOKENS, _LONGER = 8, 32, 40
_CLIENTS, _MANY_CLIENTS = (1, 4, 16, 32), (8, 32, 128)
_ARMS, _GPU_ARMS = ("plain", "suffix"), ("plain", "hybrid", "general", "code")
_STRATEGIES = ("oracle", "text", "least_loaded", "round_robin")


def mean_s(fleet: Fleet, made: Requests, choose: Strategy, clients: int) -> float:
    """Mean seconds of an answer, while so many clients ask one request after the other; the first and last left out."""
    book = RequestLog(made)
    pools, events, ticket = Pools(fleet, made, book), list[tuple[float, int, Replica]](), 0
    sent_s: list[float] = []

    def plan(replica: Replica) -> None:
        nonlocal ticket
        if replica.next_s < math.inf:
            ticket += 1
            heappush(events, (replica.next_s, ticket, replica))

    def send(now: float) -> None:
        if (i := len(sent_s)) < len(made):
            sent_s.append(now)
            replica = pools.lease(choose.choose(i, pools.least_loaded))
            before = replica.next_s
            replica.arrive(now, i)
            if replica.next_s != before:
                plan(replica)

    for _ in range(clients):
        send(0.0)
    while events:
        at, _, replica = heappop(events)
        if replica.next_s != at:  # overtaken by another event of this replica
            continue
        before = replica.in_flight
        ended = replica.run(at)
        if replica.in_flight != before:
            pools.release(replica, before)
        plan(replica)
        for _ in ended:
            send(at)
    took_s = np.asarray(book.finish_s) - np.asarray(sent_s)
    return float(took_s[clients : len(made) - clients].mean())


def compared(profiles: Mapping[str, Profile], rows: Requests, skill: float, clients: int) -> dict[str, Interval]:
    """Times of all other ways over those of our router, on one replica of each engine."""
    arms = [Arm.from_profile(name, profile) for name, profile in profiles.items()]
    fleet, found = Fleet(tuple(arms), (1,) * len(arms)), dict[str, list[float]]()
    for seed in range(_SEEDS):
        made = rows.draw(400 + 6 * clients, np.random.default_rng(seed))
        tau = predicted_tau(made.tau, skill, seed)
        routed = mean_s(fleet, made, strategy("throughput", fleet, made, tau), clients)
        times = {name: mean_s(fleet, made, strategy(name, fleet, made, tau), clients) for name in _STRATEGIES}
        for arm in arms:
            alone = Fleet((arm,), (len(arms),))
            times[f"fixed/{arm.name}"] = mean_s(alone, made, strategy("least_loaded", alone, made, tau), clients)
        best = min(value for name, value in times.items() if name != "oracle")
        for name, value in {**times, "best_other": best}.items():
            found.setdefault(name, []).append(value / routed)
        found.setdefault("oracle_gain", []).append(best / times["oracle"])
        found.setdefault("routed_s", []).append(routed)
    return {f"{name}/{clients}": interval(values) for name, values in found.items()}


def figures() -> dict[str, Interval]:
    """Of both worlds."""
    rows, cpus, gpu = requests(), on_cpus(), on_gpu()
    found: dict[str, Interval] = {}
    short = replace(rows, output_tokens=np.minimum(rows.output_tokens, _TOKENS))
    skill = skill_of(rows, cpus)
    for clients in _CLIENTS:
        found |= compared({name: cpus[name] for name in _ARMS}, short, skill, clients)
    long = replace(rows, prompt_tokens=rows.prompt_tokens * _LONGER)
    for clients in _MANY_CLIENTS:
        ours = compared({name: gpu[name] for name in _GPU_ARMS}, long, skill, clients)
        found |= {f"long_prompts/{name}": value for name, value in ours.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    found = figures()
    show(found)
    if args.json_file:
        write(args.json_file, _SEEDS, found)


if __name__ == "__main__":
    main()
