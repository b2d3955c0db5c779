"""Capacity planning: `draftpick simulate | plan`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from draftpick.deploy.cli.options import DEFAULT_SEED, Data, Json, Plot, RecordsDir, Seed
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.extras import require

if TYPE_CHECKING:
    from draftpick.policy_training.evaluation.evaluate import Interval
    from draftpick.policy_training.simulator.capacity_plan import Plan

plan_app = typer.Typer()

_SHOWN = {
    "latency, s": "latency_s/mean", "P95": "latency_s/p95", "P99": "latency_s/p99", "TTFT P95": "ttft_s/p95",
    "TPOT": "tpot_s/mean", "tokens/s": "tokens_per_s",
}  # fmt: skip
Profiles = Annotated[
    list[Path], typer.Option("--profiles", help="Folder of profiles, <engine>.json each, or one such file; repeatable.")
]
Spec = Annotated[
    str | None, typer.Option("--traffic", help="Traffic spec: a YAML file, or one that ships (six_kinds).")
]
Prior = Annotated[
    str | None, typer.Option("--policy", help="With --records: policy that predicts engines without records.")
]
Rate = Annotated[
    float | None, typer.Option("--rate", min=0.001, help="Requests per second; default: the spec's, or as recorded.")
]
Requests = Annotated[int, typer.Option("--requests", "-n", min=10, help="Requests per simulation run.")]
ReplicaAccelerators = Annotated[
    list[str],
    typer.Option(
        "--replica-accelerators",
        help="ENGINE=N accelerators per replica (tensor_parallel_size); default 1; repeatable.",
    ),
]
PoolOption = Annotated[
    list[str],
    typer.Option(
        "--pool",
        help="NAME=ENGINE+ENGINE: also consider a pool of these engines' drafters, the first of which has none; "
        "repeatable.",
    ),
]
Predictability = Annotated[
    float,
    typer.Option(
        "--predictability",
        min=0,
        max=1,
        help="Share of the variance of log tau that the policy predicts; 1: an oracle.",
    ),
]


@plan_app.command()
def simulate(
    fleet: Annotated[str, typer.Option("--fleet", help="Replicas of each engine: general=4,suffix=2.")],
    profiles: Profiles,
    traffic: Spec = None,
    data: Data = [],
    records: RecordsDir = None,
    policy: Prior = None,
    rate: Rate = None,
    requests: Requests = 4000,
    replica_accelerators: ReplicaAccelerators = [],
    pool: PoolOption = [],
    predictability: Predictability = 0.6,
    strategies: Annotated[
        str,
        typer.Option(
            "--strategies",
            help="Comma-separated: throughput, latency, cost, text, least_loaded, round_robin, oracle.",
        ),
    ] = "throughput,text,least_loaded,oracle",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of runs with different requests.")] = 3,
    plot: Plot = None,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Simulate a fleet under load: latency, TTFT, TPOT and tokens/s by routing strategy and for single engines.

    Step times come from profiles (`draftpick profile`), acceptance from --traffic, --data or --records. Rows in
    brackets are one engine on all accelerators. Strategies: `throughput`, `latency` and `cost` are the router's
    objectives (`router.load.objective`); `text` ignores load; `oracle` knows every acceptance length in advance.

    Example: draftpick simulate --profiles profiles --traffic six_kinds --rate 4 --fleet general=2,suffix=2
    """
    require("train")
    from draftpick.deploy.workflows import fleet_size
    from draftpick.policy_training.simulator.fleet import Fleet

    arms = fleet_size.read_arms(profiles, replica_accelerators, pool)
    counts = fleet_size.counts(fleet.split(","), "--fleet")
    chosen = Fleet.from_counts(arms, counts)
    source = fleet_size.TrafficOptions(traffic, data, records, policy, rate, requests).read(arms)
    options = fleet_size.SimulationOptions(strategies.split(","), predictability, range(seed, seed + seeds))
    fleets = fleet_size.fleets_to_compare(chosen, arms, options.strategies)
    with progress_bar() as bar:
        row = bar.add_task("simulating", total=seeds * len(fleets))
        runs = fleet_size.simulate_fleets(fleets, source, options, lambda: bar.advance(row))
    if plot is not None:
        from draftpick.deploy.plots.plan import plot_latencies

        plot_latencies({name: several[0].latency_s for name, several in runs.items()}, plot)
    found = fleet_size.figures(runs)
    if as_json:
        shown = {name: {k: asdict(v) for k, v in figures.items()} for name, figures in found.items()}
        print(json.dumps({"fleet": counts, "accelerators": chosen.accelerators, "runs": shown}))
    else:
        _show(found)


@plan_app.command()
def plan(
    accelerators: Annotated[
        int, typer.Option("--accelerators", "-a", min=1, help="Number of accelerators of the fleet.")
    ],
    profiles: Profiles,
    traffic: Spec = None,
    data: Data = [],
    records: RecordsDir = None,
    policy: Prior = None,
    rate: Rate = None,
    requests: Requests = 4000,
    replica_accelerators: ReplicaAccelerators = [],
    pool: PoolOption = [],
    objective: Annotated[
        str, typer.Option("--objective", help="Figure to minimise: latency_s, tpot_s or ttft_s, /mean, /p95 or /p99.")
    ] = "latency_s/mean",
    limit: Annotated[
        float | None, typer.Option("--limit", help="Also say whether the objective stays below this, in seconds.")
    ] = None,
    strategy: Annotated[
        str, typer.Option("--strategy", help="Routing strategy; see `draftpick simulate --help`.")
    ] = "throughput",
    predictability: Predictability = 0.6,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="Number of runs that evaluate the plan.")] = 8,
    plot: Plot = None,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Choose how many replicas of which engine to run on a number of accelerators.

    Searches allocations in the simulator, and evaluates the best one on unseen traffic against the best single engine
    on all accelerators. Recommends the single engine unless the whole confidence interval of the speed-up is above 1.
    Of a pool (--pool, or the profile of one) it says whether it wins over that engine here.

    Examples:

      draftpick plan -a 8 --profiles profiles --records records
      draftpick plan -a 16 --profiles profiles --traffic six_kinds --rate 20 --pool all=plain+suffix+general
    """
    require("train")
    from draftpick.deploy.workflows.fleet_size import TrafficOptions, read_arms
    from draftpick.policy_training.simulator.capacity_plan import PlanQuestion

    arms = read_arms(profiles, replica_accelerators, pool)
    source = TrafficOptions(traffic, data, records, policy, rate, requests).read(arms)
    question = PlanQuestion(
        arms, source, accelerators, objective, strategy, predictability, evaluation_seeds=seeds, first_seed=seed
    )
    found = _search(question)
    if plot is not None:
        from draftpick.deploy.plots.plan import plot_plan

        plot_plan(found, plot)
    within = None if limit is None else (found.value if found.better else found.single_value).high <= limit
    if as_json:
        print(json.dumps({**asdict(found), "chosen": found.chosen, "within_limit": within}))
        return
    _recommend(found, objective)
    if within is not None:
        out.print(f"{objective} {'stays' if within else 'does not stay'} below {limit:g} s", highlight=False)


def _search(question: Any) -> "Plan":
    """The best allocation, with a progress bar."""
    from draftpick.policy_training.simulator.capacity_plan import plan as search

    with progress_bar() as bar:
        row = bar.add_task("searching", total=None)
        return search(
            question, lambda tried, best: bar.update(row, description=f"searching, best {best:.3g} s", completed=tried)
        )


def _recommend(found: "Plan", objective: str) -> None:
    single, mixed = _named(found.single), _named(found.replicas)
    ratio = f"{found.speed.value:.3f} [{found.speed.low:.3f}, {found.speed.high:.3f}]"
    _show({f"[{single}]": found.single_figures, mixed: found.figures})
    if found.better:
        text = f"run [bold]{mixed}[/bold]: {ratio} times as fast ({objective})"
    elif found.replicas != found.single:
        text = f"run [bold]{single}[/bold] alone: {mixed} would be {ratio} times as fast, which is not significant"
    else:
        text = f"run [bold]{single}[/bold] alone: no other allocation was faster in the search"
    out.print(text, highlight=False)
    if found.pool is not None and found.pool_speed is not None:
        out.print(pool_verdict(_named(found.pool), single, found.pool_speed), highlight=False)


def pool_verdict(pool: str, single: str, speed: "Interval") -> str:
    """Who wins at equal resources: pools, or the best engine with one drafter or none."""
    ratio = f"{speed.value:.3f} [{speed.low:.3f}, {speed.high:.3f}]"
    if speed.low > 1.0:
        return f"a pool wins here: {pool} is {ratio} times as fast as {single}"
    if speed.high < 1.0:
        return f"a single engine wins here: {pool} is {ratio} times as fast as {single}"
    return f"neither a pool nor a single engine wins: {pool} is {ratio} times as fast as {single}"


def _named(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _show(found: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table(Column("", no_wrap=True), *_SHOWN, "where")
    for name, figures in found.items():
        cells = [f"{figures[key].value:.3g}" if key in figures else "-" for key in _SHOWN.values()]
        shares = [(k.removeprefix("share/"), v.value) for k, v in figures.items() if k.startswith("share/")]
        where = ", ".join(f"{arm} {share:.0%}" for arm, share in shares) if len(shares) > 1 else ""
        table.add_row(name.replace("[", r"\["), *cells, where)
    out.print(table)
