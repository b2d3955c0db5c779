"""`draftpick drafters benchmark`: every engine on every task, live, with ranges, and the headroom of routing."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from draftpick.deploy.config import with_router, without_shared_text
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.plots.demo import heat_map
from draftpick.deploy.workflows.results import write
from draftpick.engines.arms import default_arm
from draftpick.engines.config import Engine
from draftpick.policy_training.data.collect import measure, pinned_tasks
from draftpick.policy_training.data.dataset import Dataset, Measurement, load, save
from draftpick.policy_training.data.matrix import Matrix, matrix
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import Prompt
from draftpick.router.config.router_config import DraftpickConfig

ALL = "all"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SampledSlice:
    """A subset of prompts: all, greedy, sampled, or those whose answers do not loop."""

    name: str
    mask: npt.NDArray[np.bool_]


def run_table(
    config: DraftpickConfig,
    prompts: Sequence[Prompt],
    *,
    repeats: int,
    folder: Path,
    json_file: Path | None,
    port: int,
    seed: int,
    console: Console,
    bars: Callable[[], Any],
) -> dict[str, Interval]:
    """Measure all prompts on all engines `repeats` times; print and write the results.

    Drafters keep no text between requests, regardless of the configuration: otherwise the second repeat would benefit
    from the first.
    """
    fleet = without_shared_text(with_router(config, policy="uniform", featurizer="none"))
    arms = list(fleet.arms)
    for old in folder.glob("table-*.parquet"):
        old.unlink()
    measured: list[list[Measurement]] = []
    with bars() as bar:
        row = bar.add_task("starting engines", total=len(arms) + 1)

        def ready(states: dict[str, str]) -> None:
            bar.update(row, completed=sum(state == "ready" for state in states.values()))

        with running(fleet, port=port, progress=ready) as url:
            row = bar.add_task("measuring", total=repeats * len(prompts) * len(arms) + 2 * len(arms))

            def send(some: Sequence[Prompt], order: int) -> list[Measurement]:
                tasks = pinned_tasks(some, arms, order)
                return asyncio.run(measure(url, fleet.target.name, tasks, progress=lambda *_: bar.advance(row)))

            send(prompts[:2], seed)
            for repeat in range(repeats):
                measured.append(send(prompts, seed + repeat))
                save(folder / f"table-{repeat}.parquet", measured[-1])
    return report(measured, fleet.engines, fleet.router.default_engine, folder, json_file, console)


def read_table(folder: Path) -> list[list[Measurement]]:
    """Read the repeats written by `run_table`. Raises ValueError if there are none."""
    found = [list(load(path).measurements) for path in sorted(folder.glob("table-*.parquet"))]
    if not found:
        raise ValueError(f"{folder} contains no table-*.parquet: measure without --report-only first")
    return found


def report(
    measured: Sequence[Sequence[Measurement]],
    engines: Sequence[Engine],
    default: str,
    folder: Path,
    json_file: Path | None,
    console: Console,
) -> dict[str, Interval]:
    """Print, plot and write the figures of the repeats, by engine, and by drafter of a pool."""
    arms = [arm for engine in engines for arm in engine.arms]
    default = default_arm(default, arms)
    runs = _common(measured, arms)
    left_out = len({m.prompt_id for repeat in measured for m in repeat}) - len(runs[0])
    if left_out:
        console.print(f"{left_out} prompts left out: every repeat needs an answer of every engine", highlight=False)
    drafters = [pair for engine in engines for pair in engine.drafter_of_arm().items()]
    trained = {arm for arm, drafter in drafters if drafter is not None and not drafter.spec.model_free}
    looping = _loops(measured, runs[0].prompt_ids)
    greedy = runs[0].temperatures == 0
    halves = [
        SampledSlice("", np.ones(len(greedy), bool)),
        SampledSlice("greedy/", greedy),
        SampledSlice("sampled/", ~greedy),
    ]
    halves.append(SampledSlice("without_loops/", ~looping))
    figures: dict[str, Interval] = {}
    for one in halves:
        if one.mask.any():
            figures |= _figures(runs, one, arms, default, trained)
    figures["looping_share"] = _exact(float(looping.mean()))
    figures |= {
        f"step_cost/{arm}": cost for arm, cost in _step_costs(measured, runs[0].prompt_ids, arms, default).items()
    }
    _show(figures, runs[0], arms, console)
    kinds = [*sorted(set(runs[0].kinds)), ALL]
    for half in ("", "greedy/", "sampled/"):
        if f"{half}speedup/{arms[0]}/{ALL}" in figures:
            values = [[_value(figures, f"{half}speedup/{arm}/{kind}") for kind in kinds] for arm in arms]
            heat_map(values, arms, kinds, folder / f"{half.rstrip('/') or ALL}.png", f"tokens/s against {default}")
    for path in filter(None, (folder / "summary.json", json_file)):
        write(path, len(runs[0]), figures, repeats=len(runs), left_out=left_out)
    return figures


def _step_costs(
    measured: Sequence[Sequence[Measurement]], prompt_ids: Sequence[str], arms: list[str], default: str
) -> dict[str, Interval]:
    """Relative duration of a decoding step, drafting and verifying, over one without a drafter: medians of TPOT times
    tau."""
    shared = set(prompt_ids)

    def step_s(repeat: Sequence[Measurement], arm: str) -> float:
        timed = [m.outcome for m in repeat if m.arm == arm and m.prompt_id in shared]
        return float(np.median([(o.tpot_s or 0.0) * (o.acceptance_length or 1.0) for o in timed]))

    plain = [step_s(repeat, default) for repeat in measured]
    return {arm: _over([step_s(r, arm) / p for r, p in zip(measured, plain, strict=True)]) for arm in arms}


def _common(measured: Sequence[Sequence[Measurement]], arms: list[str]) -> list[Matrix]:
    """The repeats as matrices of the prompts that all of them measured completely."""
    every = [matrix(Dataset(tuple(repeat)), arms) for repeat in measured]
    shared = set.intersection(*(set(one.prompt_ids) for one in every))
    return [one.select_rows(np.asarray([i in shared for i in one.prompt_ids])) for one in every]


def _figures(
    runs: Sequence[Matrix], half: SampledSlice, arms: list[str], default: str, trained: set[str]
) -> dict[str, Interval]:
    kinds = np.asarray(runs[0].kinds)
    masks = {kind: half.mask & (kinds == kind) for kind in sorted(set(kinds[half.mask]))} | {ALL: half.mask}
    plain = arms.index(default)
    speedup = {
        (arm, kind): _over([run.time_s[mask, plain].sum() / run.time_s[mask, a].sum() for run in runs])
        for a, arm in enumerate(arms)
        for kind, mask in masks.items()
    }
    figures = {f"speedup/{arm}/{kind}": value for (arm, kind), value in speedup.items()}
    for a, arm in enumerate(arms):
        for kind, mask in masks.items():
            figures[f"acceptance_length/{arm}/{kind}"] = _over([run.acceptance_length[mask, a].mean() for run in runs])
            rates = [rate for run in runs if (rate := _mean(run.acceptance_rate[mask, a])) is not None]
            if rates:
                figures[f"acceptance_rate/{arm}/{kind}"] = _over(rates)
    best = {kind: max(arms, key=lambda arm: speedup[arm, kind].value) for kind in masks if kind != ALL}
    homes = [speedup[arm, kind].value for kind, arm in best.items() if arm in trained]
    figures["trained_fastest_arms"] = _exact(float(len({arm for arm in best.values() if arm in trained})))
    if homes:
        figures["best_home_speedup"] = _exact(max(homes))
    figures["oracle_domain_vs_best_fixed"] = _over([_domain_oracle(runs, i, masks) for i in range(len(runs))])
    figures["oracle_request_vs_best_fixed"] = _over([_request_oracle(runs, i, half.mask) for i in range(len(runs))])
    return {half.name + name: value for name, value in figures.items()}


def _others(runs: Sequence[Matrix], held: int) -> Floats:
    """Mean times of the other repeats, for an oracle's choice: choosing by the same repeat would be biased by noise."""
    times = [run.time_s for i, run in enumerate(runs) if i != held] or [runs[held].time_s]
    return np.asarray(np.mean(times, axis=0))


def _domain_oracle(runs: Sequence[Matrix], held: int, masks: dict[str, Any]) -> float:
    """Total time of the best fixed arm over that of the best arm of each domain, both chosen by the other repeats."""
    seen, now = _others(runs, held), runs[held].time_s
    fixed = now[masks[ALL], seen[masks[ALL]].sum(0).argmin()].sum()
    domains = sum(now[mask, seen[mask].sum(0).argmin()].sum() for kind, mask in masks.items() if kind != ALL)
    return float(fixed / domains)


def _request_oracle(runs: Sequence[Matrix], held: int, mask: Any) -> float:
    """The same for the best arm of each request."""
    seen, now = _others(runs, held)[mask], runs[held].time_s[mask]
    return float(now[:, seen.sum(0).argmin()].sum() / np.take_along_axis(now, seen.argmin(1)[:, None], 1).sum())


def _loops(measured: Sequence[Sequence[Measurement]], prompt_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Whether any answer to a prompt repeats eight words."""
    looping = {m.prompt_id for repeat in measured for m in repeat if m.degenerate_repetition}
    return np.asarray([i in looping for i in prompt_ids], bool)


def _mean(values: Floats) -> float | None:
    """Mean without NaN; None if all are NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _over(values: Sequence[float]) -> Interval:
    """Mean and range of the repeats."""
    return Interval(float(np.mean(values)), float(min(values)), float(max(values)))


def _exact(value: float) -> Interval:
    return Interval(value, value, value)


def _value(figures: dict[str, Interval], name: str) -> float:
    return figures[name].value if name in figures else math.nan


def _show(figures: dict[str, Interval], run: Matrix, arms: list[str], console: Console) -> None:
    kinds = [*sorted(set(run.kinds)), ALL]
    for half in ("greedy/", "sampled/", ""):
        if f"{half}speedup/{arms[0]}/{ALL}" not in figures:
            continue
        table = Table(
            "engine",
            *kinds,
            title=f"{half.rstrip('/') or 'all'}: tokens/s against plain; tau and acceptance rate below",
        )
        for arm in arms:
            table.add_row(arm, *(_cell(figures, half, f"{arm}/{kind}") for kind in kinds))
        console.print(table)
    costs = ", ".join(f"{arm} {figures[f'step_cost/{arm}'].value:.2f}" for arm in arms)
    console.print(f"a decoding step over one without a drafter: {costs}", highlight=False)
    for name in ("oracle_domain_vs_best_fixed", "oracle_request_vs_best_fixed"):
        halves = [half for half in ("", "greedy/", "sampled/", "without_loops/") if half + name in figures]
        shown = [f"{half.rstrip('/') or ALL} {figures[half + name].value:.3f}" for half in halves]
        console.print(f"{name}: {', '.join(shown)}", highlight=False)


def _cell(figures: dict[str, Interval], half: str, name: str) -> str:
    speed = figures.get(f"{half}speedup/{name}")
    if speed is None:
        return ""
    tau = figures[f"{half}acceptance_length/{name}"].value
    rate = figures.get(f"{half}acceptance_rate/{name}")
    accepted = f" {rate.value:.0%}" if rate else ""
    return f"{speed.value:.2f} ±{(speed.high - speed.low) / 2:.2f}\n{tau:.2f}{accepted}"
