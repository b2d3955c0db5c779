"""The command line of sizing a fleet: `draftpick simulate | plan`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from draftpick.deploy.console import Json, Seed, fail, out, progress_bar
from draftpick.deploy.extras import require
from draftpick.engines.config import EMBEDDED

plan_app = typer.Typer()

_SHOWN = {
    "latency, s": "latency_s/mean", "P95": "latency_s/p95", "P99": "latency_s/p99", "TTFT P95": "ttft_s/p95",
    "TPOT": "tpot_s/mean", "tokens/s": "tokens_per_s",
}  # fmt: skip
Profiles = Annotated[
    list[Path], typer.Option("--profiles", help="Folder of profiles, <engine>.json each, or one such file; repeatable.")
]
Spec = Annotated[
    str | None, typer.Option("--traffic", help="A YAML file of kinds of requests, or one that ships: six_kinds.")
]
Data = Annotated[list[Path], typer.Option("--data", help="Dataset whose requests come, measured or replayed.")]
Records = Annotated[Path | None, typer.Option("--records", help="The router's records, replayed as they came.")]
Prior = Annotated[
    str | None, typer.Option("--policy", help="With --records: a policy that knows engines which no record has.")
]
Rate = Annotated[
    float | None, typer.Option("--rate", min=0.001, help="Requests a second; default: the file's, or as recorded.")
]
Count = Annotated[int, typer.Option("--requests", "-n", min=10, help="Requests of one simulation.")]
Needs = Annotated[
    list[str], typer.Option("--needs", help="ENGINE=N: accelerators of a replica (tensor_parallel_size), else 1.")
]
Skill = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of the variance of log tau that the policy foresees: 0 none, 1 an oracle."),
]


@plan_app.command()
def simulate(
    fleet: Annotated[str, typer.Option("--fleet", help="Replicas of each engine: general=4,suffix=2.")],
    profiles: Profiles,
    traffic: Spec = None,
    data: Data = [],
    records: Records = None,
    policy: Prior = None,
    rate: Rate = None,
    requests: Count = 4000,
    needs: Needs = [],
    skill: Skill = 0.6,
    strategies: Annotated[
        str, typer.Option(help="throughput, latency, cost, text, least_loaded, round_robin, oracle.")
    ] = "throughput,text,least_loaded,oracle",
    seeds: Annotated[int, typer.Option(min=1, help="Repeats with other requests.")] = 3,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the latencies to this file.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Simulate a fleet under load: latency, TTFT, TPOT and tokens/s by routing strategy, beside single engines.

    What a step takes at which batch size comes from profiles (`draftpick profile`), what is accepted from --traffic,
    --data or --records. Every engine also gets all accelerators of the fleet alone: rows in brackets. Strategies:
    `throughput`, `latency` and `cost` are the router's objectives (`router.load.objective`); `text` sees no load;
    `oracle` knows every answer beforehand.

    Example: draftpick simulate --profiles profiles --traffic six_kinds --rate 4 --fleet general=2,suffix=2
    """
    require("train")
    from draftpick.policy_training.simulator.capacity_plan import WARM_UP
    from draftpick.policy_training.simulator.fleet import Fleet
    from draftpick.policy_training.simulator.routing import strategy
    from draftpick.policy_training.simulator.simulate import Run, intervals
    from draftpick.policy_training.simulator.simulate import simulate as run
    from draftpick.policy_training.simulator.traffic import predicted_tau

    arms = _arms(profiles, needs)
    counts = {name: _whole(count, "--fleet") for name, count in _pairs(fleet.split(","), "--fleet").items()}
    chosen = Fleet.from_counts(arms, counts)
    source = _traffic(arms, traffic, data, records, policy, rate, requests)
    fleets = {name: (chosen, name) for name in strategies.split(",")}
    for name, arm in arms.items():
        if alone := chosen.accelerators // arm.accelerators:
            fleets[f"[{name}]"] = (Fleet((arm,), (alone,)), "least_loaded")
    runs: dict[str, list[Run]] = {name: [] for name in fleets}
    with progress_bar() as bar:
        row = bar.add_task("simulating", total=seeds * len(fleets))
        for one in range(seed, seed + seeds):
            made = source(one)
            tau = predicted_tau(made.tau, skill, one)
            for label, (some, name) in fleets.items():
                runs[label].append(run(some, made, strategy(name, some, made, tau)))
                bar.advance(row)
    found = {name: intervals([one.figures(WARM_UP) for one in several]) for name, several in runs.items()}
    if plot is not None:
        from draftpick.deploy.plots.plan import plot_latencies

        plot_latencies({name: several[0].latency_s for name, several in runs.items()}, plot)
    if as_json:
        shown = {name: {k: asdict(v) for k, v in figures.items()} for name, figures in found.items()}
        print(json.dumps({"fleet": counts, "accelerators": chosen.accelerators, "runs": shown}))
    else:
        _show(found)


@plan_app.command()
def plan(
    accelerators: Annotated[int, typer.Option("--accelerators", "-a", min=1, help="How many there are.")],
    profiles: Profiles,
    traffic: Spec = None,
    data: Data = [],
    records: Records = None,
    policy: Prior = None,
    rate: Rate = None,
    requests: Count = 4000,
    needs: Needs = [],
    objective: Annotated[
        str, typer.Option(help="Seconds to make few: latency_s, tpot_s or ttft_s, /mean, /p95 or /p99.")
    ] = "latency_s/mean",
    limit: Annotated[float | None, typer.Option(help="Say whether the objective stays below so many seconds.")] = None,
    strategy: Annotated[
        str, typer.Option(help="How the router chooses; see `draftpick simulate --help`.")
    ] = "throughput",
    skill: Skill = 0.6,
    seeds: Annotated[int, typer.Option(min=2, help="Unseen traffics that the plan is judged on.")] = 8,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the plan to this file.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say how many replicas of which engine some accelerators should run, or that one engine alone is better.

    Searches allocations in the simulator, from the best single engine on, and judges the best one on traffic that the
    search has not seen, against all accelerators for the best single engine. Unless the interval of that ratio lies
    above 1, one engine is the better choice, and the plan says so.

    Examples:

      draftpick plan -a 8 --profiles profiles --records records
      draftpick plan -a 16 --profiles profiles --traffic six_kinds --rate 20 --needs big=2
    """
    require("train")
    from draftpick.policy_training.simulator.capacity_plan import PlanQuestion
    from draftpick.policy_training.simulator.capacity_plan import plan as search

    arms = _arms(profiles, needs)
    source = _traffic(arms, traffic, data, records, policy, rate, requests)
    question = PlanQuestion(
        arms, source, accelerators, objective, strategy, skill, evaluation_seeds=seeds, first_seed=seed
    )
    with progress_bar() as bar:
        row = bar.add_task("searching", total=None)
        found = search(
            question, lambda tried, best: bar.update(row, description=f"searching, best {best:.3g} s", completed=tried)
        )
    if plot is not None:
        from draftpick.deploy.plots.plan import plot_plan

        plot_plan(found, plot)
    within = None if limit is None else (found.value if found.better else found.single_value).high <= limit
    if as_json:
        print(json.dumps({**asdict(found), "chosen": found.chosen, "within_limit": within}))
        return
    ratio = f"{found.speed.value:.3f} [{found.speed.low:.3f}, {found.speed.high:.3f}]"
    _show({f"[{_named(found.single)}]": found.single_figures, _named(found.replicas): found.figures})
    if found.better:
        out.print(f"run [bold]{_named(found.replicas)}[/bold]: {ratio} times as fast ({objective})", highlight=False)
    else:
        out.print(
            f"run [bold]{_named(found.single)}[/bold] alone: {_named(found.replicas)} would be {ratio} times as fast, "
            "which is no certain gain" if found.replicas != found.single else
            f"run [bold]{_named(found.single)}[/bold] alone: no mixture that was tried is faster",
            highlight=False,
        )  # fmt: skip
    if within is not None:
        out.print(f"{objective} {'stays' if within else 'does not stay'} below {limit:g} s", highlight=False)


def _arms(paths: Sequence[Path], needs: Sequence[str]) -> dict[str, Any]:
    from draftpick.engines.profile.profile import Profile, ProfileError
    from draftpick.policy_training.simulator.engine import Arm

    wanted = _pairs(needs, "--needs")
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    arms = {}
    for file in files:
        try:
            profile = Profile.from_json(file.read_bytes())
        except ProfileError as error:
            raise ProfileError(f"{file}: {error}") from error
        needed = _whole(wanted.pop(file.stem, "1"), "--needs")
        arms[file.stem] = Arm.from_profile(file.stem, profile, accelerators=needed, price=float(needed))
    if not arms:
        fail("--profiles: no <engine>.json there (`draftpick profile` makes them)", 2)
    if wanted:
        fail(f"--needs: no profile of {', '.join(wanted)} (there are: {', '.join(arms)})", 2)
    return arms


def _traffic(
    arms: Mapping[str, Any],
    spec: str | None,
    data: Sequence[Path],
    records: Path | None,
    policy: str | None,
    rate: float | None,
    n: int,
) -> Any:
    """The traffic that was asked for, of these engines."""
    from draftpick.policy_training.data.dataset import load
    from draftpick.policy_training.data.from_records import from_records
    from draftpick.policy_training.simulator.traffic import (
        RecordedTraffic,
        SyntheticTraffic,
        dataset_traffic,
        read_spec,
        records_traffic,
    )
    from draftpick.router.policies import SHIPPED, read

    if sum([spec is not None, bool(data), records is not None]) != 1:
        fail("give one of --traffic, --data and --records", 2)
    profiles = {name: arm.modes[0].profile for name, arm in arms.items()}
    if spec is not None:
        said = read_spec(spec)
        crowds = said.crowds.bursts() if said.crowds else None
        return SyntheticTraffic(said.rows(list(arms)), n, rate or said.rate, crowds)
    if data:
        return SyntheticTraffic(dataset_traffic(load(*data), profiles), n, rate or 1.0)
    assert records is not None
    prior = None if policy is None else read(SHIPPED if policy == EMBEDDED else Path(policy))
    return RecordedTraffic(records_traffic(from_records(records), profiles, prior), rate, n)


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """What `NAME=VALUE` texts say."""
    pairs = [text.strip().partition("=") for text in texts if text.strip()]
    if wrong := [name for name, sign, value in pairs if not (name and sign and value)]:
        fail(f"{option}: {wrong[0]!r} is not ENGINE=NUMBER", 2)
    return {name: value for name, _, value in pairs}


def _whole(text: str, option: str) -> int:
    if not text.isdigit() or int(text) < 1:
        fail(f"{option}: {text!r} is no number of 1 or more", 2)
    return int(text)


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
