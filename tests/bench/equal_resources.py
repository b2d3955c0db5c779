"""Why not one engine? `python -m tests.bench.equal_resources --json-file FILE` (half an hour of one core).

Simulated: n replicas of n different engines, routed by load and text, against n replicas of the single engine that is
the best one for this traffic at this load (hindsight chooses it), and against n replicas of the best engine that
chooses its draft length by batch size (vLLM's `num_speculative_tokens_per_batch_size`). Engines, their steps and what
they accept are those of `measured_engines.py`; the policy foresees as much of tau as the shipped one does.

Figures are ratios of mean latency, above 1 where routing is faster, with their 95 % interval over seeds:
`routed_vs_best_single/<n>/<mix>` and `routed_vs_scheduled/<n>/<mix>` are geometric means over three loads, which stand
below them (`.../low`). The n engines are those that an oracle of tau would want at as many running requests.
`planned_*`: the planner chooses the replicas, on other requests, and may take several of an engine. `text_alone_*`: the
router sees no load. `routed_scheduled_vs_scheduled`: all engines choose their draft length by batch size. Loads are
shares of what the best single engine can serve at most. Without prefix: CPUs, half of the requests sampled (with
top-p); `greedy/`: none of them; `gpu/`: a GPU.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from rich.progress import Progress

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.workflows.results import write
from draftpick.engines.profile.profile import GREEDY, SAMPLED, Profile
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.simulator.capacity_plan import WARM_UP, PlanQuestion, plan
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.fleet import Fleet
from draftpick.policy_training.simulator.requests import Requests
from draftpick.policy_training.simulator.routing import Floats, strategy
from draftpick.policy_training.simulator.simulate import interval, simulate
from draftpick.policy_training.simulator.traffic import SyntheticTraffic, predicted_tau
from tests.bench.measured_engines import LENGTHS, column, names, on_cpus, on_gpu, requests
from tests.policy_training.simulated import with_schedule

SIZES = (2, 4, 8, 16)
MIXES: Mapping[str, Mapping[str, float] | None] = {
    "even": None,
    "coding": {"code": 0.5, "edit": 0.3, "json": 0.2},
    "one_kind": {"math": 1.0},
}
LOADS: Mapping[str, float] = {"low": 0.15, "middle": 0.5, "high": 0.85}
SHARE_OF_ORACLE = 0.73
"""Of the gain of one that has read each answer, what the shipped policy has (`kernel/iid` in ladder.json)."""
_SEEDS = 5
_GPU_LONGER = 4.0
"""Prompts and answers are so many times as long on the GPU as those that were measured on CPUs."""


@dataclass(frozen=True, slots=True)
class World:
    """Engines of one kind of hardware, all of them and the scheduled ones, and requests for them."""

    name: str
    arms: Mapping[str, Arm]
    scheduled: Mapping[str, Arm]
    rows: Requests
    skill: float

    def traffic(self, mix: str, n: int, rate: float) -> SyntheticTraffic:
        """Requests for a fleet of that size, so many that most of them find it as busy as it gets."""
        return SyntheticTraffic(self.rows, min(400 + 100 * n, 2000), rate, mix=MIXES[mix])


def world(name: str, profiles: Mapping[str, Profile], rows: Requests) -> World:
    """All sixteen engines; and one scheduled engine for each drafter."""
    choosing = {}
    for drafter, most in LENGTHS.items():
        if most:
            ours = [column(drafter, k) for k in sorted({1, 2, 3, 4, 6, 8}, reverse=True) if k <= most]
            choosing[drafter] = with_schedule(drafter, {c: profiles[c] for c in [*ours, "plain"]}, rows)
    arms = {one: Arm.from_profile(one, profiles[one]) for one in names()}
    return World(name, arms, choosing, rows, skill_of(rows, profiles))


def skill_of(rows: Requests, profiles: Mapping[str, Profile]) -> float:
    """The skill at which a policy that sees text alone has the shipped policy's share of the oracle's gain."""
    columns = [rows.column(one) for one in LENGTHS]
    steps = np.asarray([[profiles[one].step(1, 0.0, half) for one in LENGTHS] for half in (GREEDY, SAMPLED)])
    time_s = steps[rows.sampled.astype(int)] / rows.tau[:, columns]
    fixed, oracle = time_s.mean(0).min(), time_s.min(1).mean()

    def share(skill: float) -> float:
        gains = []
        for seed in range(20):
            seen = steps[rows.sampled.astype(int)] / predicted_tau(rows.tau, skill, seed)[:, columns]
            gains.append(fixed - time_s[np.arange(len(rows)), seen.argmin(1)].mean())
        return float(np.mean(gains) / (fixed - oracle))

    grid = np.linspace(0.05, 1.0, 39)
    return float(grid[np.argmax([share(skill) >= SHARE_OF_ORACLE for skill in grid])])


class Simulations:
    """Mean latencies of fleets under one traffic, by seed; the same requests for every fleet."""

    def __init__(self, world: World, traffic: SyntheticTraffic, seeds: Sequence[int]) -> None:
        self._made: list[tuple[Requests, Floats]] = []
        for seed in seeds:
            made = traffic(seed)
            self._made.append((made, predicted_tau(made.tau, world.skill, seed)))

    def figures(self, fleet: Fleet, name: str = "throughput") -> list[dict[str, float]]:
        """Of each seed."""
        runs = [simulate(fleet, made, strategy(name, fleet, made, tau)) for made, tau in self._made]
        return [one.figures(WARM_UP) for one in runs]

    def latencies(self, fleet: Fleet, name: str = "throughput") -> list[float]:
        """Mean seconds by seed."""
        return [one["latency_s/mean"] for one in self.figures(fleet, name)]


def capacity(world: World, mix: str) -> float:
    """Requests a second of one replica of the engine that serves the most, which never idles."""
    made = SyntheticTraffic(world.rows, 600, 1e6, mix=MIXES[mix])(99)
    rates = []
    for arm in world.arms.values():
        fleet = Fleet((arm,), (1,))
        rates.append(simulate(fleet, made, strategy("least_loaded", fleet, made, made.tau)).figures()["requests_per_s"])
    return max(rates)


def chosen(world: World, arms: Mapping[str, Arm], mix: str, n: int, running: int) -> list[str]:
    """The n different engines, one after the other, that lessen most what a step's token takes on a request's best one.

    With `running` requests on each replica; for more than there are, the first ones again.
    """
    made = world.rows.draw(2000, np.random.default_rng(98), MIXES[mix])
    context, half = made.mean_context, made.sampled.astype(int)
    time_s = {
        name: np.asarray([arm.step_s(running, context, h) for h in (GREEDY, SAMPLED)])[half]
        / made.tau[:, made.column(arm.modes[0].column)]
        for name, arm in arms.items()
    }
    taken: list[str] = []
    while len(taken) < min(n, len(arms)):
        left = [name for name in arms if name not in taken]
        taken.append(min(left, key=lambda name: np.min([time_s[one] for one in [*taken, name]], axis=0).mean()))
    return [taken[i % len(taken)] for i in range(n)]


def fleet_of(arms: Mapping[str, Arm], named: Sequence[str]) -> Fleet:
    """A replica for each name."""
    return Fleet.from_counts(arms, {name: named.count(name) for name in dict.fromkeys(named)})


def compare(world: World, mix: str, n: int, load: str) -> tuple[dict[str, list[float]], dict[str, object]]:
    """All ratios of one fleet size under one traffic, by seed; and which engines they are of."""
    traffic = world.traffic(mix, n, LOADS[load] * n * capacity(world, mix))
    runs = Simulations(world, traffic, range(_SEEDS))
    singles = {name: runs.latencies(Fleet((arm,), (n,))) for name, arm in world.arms.items()}
    choosing = {name: runs.latencies(Fleet((arm,), (n,))) for name, arm in world.scheduled.items()}
    best, best_scheduled = (min(of, key=lambda name: float(np.mean(of[name]))) for of in (singles, choosing))
    alone = runs.figures(Fleet((world.arms[best],), (n,)))
    running = max(round(float(np.mean([one[f"running/{best}"] for one in alone]))), 1)
    engines = chosen(world, world.arms, mix, n, running)
    routed = fleet_of(world.arms, engines)
    both = fleet_of(world.scheduled, chosen(world, world.scheduled, mix, n, running))
    latency_s = {
        "single": singles[best],
        "scheduled": choosing[best_scheduled],
        "routed": runs.latencies(routed),
        "oracle": runs.latencies(routed, "oracle"),
        "text": runs.latencies(routed, "text"),
        "routed_scheduled": runs.latencies(both),
    }
    found = {
        "routed_vs_best_single": ratios(latency_s["single"], latency_s["routed"]),
        "routed_vs_scheduled": ratios(latency_s["scheduled"], latency_s["routed"]),
        "oracle_vs_best_single": ratios(latency_s["single"], latency_s["oracle"]),
        "text_alone_vs_best_single": ratios(latency_s["single"], latency_s["text"]),
        "routed_scheduled_vs_scheduled": ratios(latency_s["scheduled"], latency_s["routed_scheduled"]),
    }
    planned = _planned(world, traffic, n, engines)
    fleet = fleet_of(world.arms, planned)
    others = runs.latencies(fleet)
    found["planned_vs_best_single"] = ratios(latency_s["single"], others)
    found["planned_vs_scheduled"] = ratios(latency_s["scheduled"], others)
    told = {
        "single": best,
        "scheduled": best_scheduled,
        "routed": engines,
        "planned": sorted(planned),
        "running": running,
    }
    return found, {**told, "latency_s": {name: round(float(np.mean(v)), 3) for name, v in latency_s.items()}}


def _planned(world: World, traffic: SyntheticTraffic, n: int, engines: Sequence[str]) -> list[str]:
    """What the planner would run, of the engines that would be chosen and those without a drafter or with short drafts;
    on other requests than those it is judged by.
    """
    candidates = [*dict.fromkeys([*engines[:5], "plain", "general@1", "general", "suffix@2"])]
    question = PlanQuestion(
        {name: world.arms[name] for name in candidates}, replace(traffic, n=min(traffic.n, 1000)), n,
        predictability=world.skill, seeds=2, evaluation_seeds=2, first_seed=1000,
    )  # fmt: skip
    return [name for name, count in plan(question).replicas.items() for _ in range(count)]


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """By seed."""
    return [a / b for a, b in zip(slower, faster, strict=True)]


def figures(by_load: Mapping[str, Mapping[str, Sequence[float]]], n: int, mix: str) -> dict[str, Interval]:
    """Of each load, and their geometric mean seed by seed."""
    found = {}
    for name in next(iter(by_load.values())):
        each = {load: ours[name] for load, ours in by_load.items()}
        found[f"{name}/{n}/{mix}"] = interval(np.exp(np.mean(np.log(list(each.values())), axis=0)).tolist())
        found |= {f"{name}/{n}/{mix}/{load}": interval(values) for load, values in each.items()}
    return found


def all_of(world: World, bar: Progress) -> tuple[dict[str, Interval], dict[str, object]]:
    """All sizes and mixes of one kind of hardware."""
    found: dict[str, Interval] = {}
    engines: dict[str, object] = {}
    row = bar.add_task(world.name or "cpu", total=len(SIZES) * len(MIXES) * len(LOADS))
    for mix in MIXES:
        for n in SIZES:
            by_load: dict[str, dict[str, list[float]]] = {}
            for load in LOADS:
                by_load[load], told = compare(world, mix, n, load)
                engines[f"{world.name}{n}/{mix}/{load}"] = told
                bar.advance(row)
            found |= {world.name + name: value for name, value in figures(by_load, n, mix).items()}
    return found, engines


def losses(found: Mapping[str, Interval], what: str) -> list[str]:
    """Where routing is certainly slower."""
    return [
        name
        for name, figure in found.items()
        if f"{what}/" in name and name.rsplit("/", 1)[1] in LOADS and figure.high < 1
    ]


def plot(found: Mapping[str, Interval], path: Path) -> None:
    """Ratios by fleet size: a row for each world, a panel for each mix, a line for each load."""
    titles = {"": "CPUs, half of the requests sampled", "greedy/": "CPUs, greedy", "gpu/": "GPU, derived"}
    worlds = {p: title for p, title in titles.items() if any(name.startswith(f"{p}routed_vs") for name in found)}
    figure, panels = plt.subplots(
        len(worlds), len(MIXES), figsize=(11, 3.2 * len(worlds)), sharey="row", layout="constrained", squeeze=False
    )
    for row, (prefix, title) in zip(panels, worlds.items(), strict=True):
        for axes, mix in zip(row, MIXES, strict=True):
            for load, colour in zip(LOADS, ("#8fb8de", "#7a8ca3", "#d9622b"), strict=True):
                for what, style in (("planned", "o-"), ("routed", "s:")):
                    values = [found[f"{prefix}{what}_vs_best_single/{n}/{mix}/{load}"] for n in SIZES]
                    label = f"{load} load, {'planned' if what == 'planned' else 'all different'}"
                    axes.plot(SIZES, [v.value for v in values], style, color=colour, label=label, markersize=4)
                    axes.fill_between(
                        SIZES, [v.low for v in values], [v.high for v in values], color=colour, alpha=0.15
                    )
            axes.axhline(1, color="black", linewidth=0.8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(SIZES, map(str, SIZES))
            axes.set_title(f"{title}: {mix.replace('_', ' ')}", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("speed over replicas\nof the best engine")
    for axes in panels[-1]:
        axes.set_xlabel("replicas")
    panels[0][0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json-file", type=Path, help="also write the figures, and the plot beside them")
    args = parser.parse_args()
    rows = requests()
    longer = replace(
        rows, prompt_tokens=rows.prompt_tokens * _GPU_LONGER, output_tokens=np.round(rows.output_tokens * _GPU_LONGER)
    )
    found: dict[str, Interval] = {}
    engines: dict[str, object] = {}
    greedy = rows.select_rows(np.flatnonzero(~rows.sampled))
    worlds = (world("", on_cpus(), rows), world("greedy/", on_cpus(), greedy), world("gpu/", on_gpu(), longer))
    with progress_bar() as bar:
        for one in worlds:
            ours, told = all_of(one, bar)
            found |= {**ours, f"{one.name}skill": Interval(one.skill, one.skill, one.skill)}
            engines |= told
    lost = {what: losses(found, what) for what in ("routed_vs_best_single", "routed_vs_scheduled")}
    for name, figure in found.items():
        if name.rsplit("/", 1)[-1] in MIXES:
            out.print(f"{name}: {figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]", highlight=False)
    for what, where in lost.items():
        out.print(f"{what}, certainly slower: {', '.join(where) or 'nowhere'}", highlight=False, soft_wrap=True)
    if args.json_file:
        write(args.json_file, _SEEDS, found, loads=dict(LOADS), slower=lost, engines=engines)
        plot(found, args.json_file.with_suffix(".png"))


if __name__ == "__main__":
    main()
