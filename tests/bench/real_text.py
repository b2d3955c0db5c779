"""The embedded fleet as it ships, on prompts that people wrote: routed beside every fixed engine.

`python -m tests.bench.real_text --prompts FILE --split dev --name dev --json-file FILE` takes as many prompts of each
kind of a split, and sends each to every engine and to the router, in random order and one at a time. Half are sampled
at temperature 0.7 and top_p 0.9. A request carries a `cache_salt` of its own, so that no engine reads a prompt from its
prefix cache. Figures are named `NAME/...`; those of other names in the file stay. Brackets are 95 % block bootstraps by
source; a bar is met by its lower bound. With `--cold` the engines find no profile of an earlier start, and the one
figure is that of the router's first requests, `NAME/cold_vs_plain`. A pool is one engine, which chooses its drafters;
`NAME/routed_vs_best_single` leaves pools out of the engines that the best is taken of.
"""

import argparse
import asyncio
import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np

from draftpick.deploy.config import resolve
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.workflows.demo import POLICY, judge_routed, routed_tasks, show
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import merge_into, write
from draftpick.engines.cache_dir import cache_dir
from draftpick.engines.profile import cache as profile_cache
from draftpick.policy_training.data.collect import measure, pinned_tasks
from draftpick.policy_training.data.dataset import Dataset, Measurement, load, save
from draftpick.policy_training.data.matrix import matrix
from draftpick.policy_training.evaluation.evaluate import Evaluation, Interval
from draftpick.policy_training.workloads import SAMPLED_TEMPERATURE, Prompt, interleaved, read_file
from draftpick.policy_training.workloads.splits import Split
from draftpick.router.config.router_config import DraftpickConfig
from draftpick.router.policies import SHIPPED, artifact

SEED = 11
TOP_P = 0.9
BRACKET = "95 % block bootstrap by source"
FEW = 4
"""Prompts below which a kind is not a slice of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="a file of prompts with kinds and sources")
    parser.add_argument("--split", required=True, choices=("dev", "transfer"), help="split of the file to take")
    parser.add_argument("--name", required=True, help="prefix of the figures")
    parser.add_argument("--kinds", type=int, default=50, help="number of kinds")
    parser.add_argument("-n", type=int, default=4, help="prompts of each kind")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("runs/real_text.parquet"))
    parser.add_argument("--cold", action="store_true", help="start without the profiles that earlier starts left")
    parser.add_argument("--report-only", action="store_true", help="measure nothing, report what --output holds")
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    prompts = select(args.prompts, args.split, args.kinds, args.n, args.max_tokens)
    fleet = resolve("embedded")
    arms = [engine.name for engine in fleet.engines]
    if args.report_only:
        measured = list(load(args.output).measurements)
    else:
        with no_profiles() if args.cold else nullcontext():
            measured = measure_all(fleet, prompts)
        save(args.output, measured)
    result, _ = judge_routed(measured, arms, fleet.router.default_engine, SEED)
    show(result, out)
    if args.json_file:
        figures = figures_of(result, args.name, fleet.router.default_engine)
        singles = [engine.name for engine in fleet.engines if not engine.drafters]
        against, _ = judge_routed(measured, singles, fleet.router.default_engine, SEED)
        figures[f"{args.name}/routed_vs_best_single"] = against.policy_vs_best_fixed
        figures[f"{args.name}/worst_kind_by_chance"] = worst_by_chance(measured, result.best_fixed)
        if args.cold:
            merge_into(args.json_file, {f"{args.name}/cold_vs_plain": result.policy_vs_plain})
            return
        source = {
            "sha256": hashlib.sha256(args.prompts.read_bytes()).hexdigest(),
            "file": args.prompts.name,
            "n": result.n,
            "of_each": args.n,
            "best_fixed": result.best_fixed,
            "max_tokens": args.max_tokens,
            "named": ", ".join(sorted({prompt.source for prompt in prompts})),
            "shares": result.shares["all"],
        }
        source = {f"{args.name}/{key}": value for key, value in source.items()}
        policy = {"requests": artifact.read(SHIPPED)[0]["provenance"]["requests"]}
        if args.json_file.exists():
            merge_into(args.json_file, figures, sets=source, policy=policy)
        else:
            write(args.json_file, result.n, figures, bracket=BRACKET, sets=source, policy=policy)


@contextmanager
def no_profiles() -> Iterator[None]:
    """A cache folder with all of the user's but the profiles of engines."""
    with TemporaryDirectory() as folder:
        for entry in cache_dir().iterdir():
            if entry != profile_cache.folder():
                Path(folder, entry.name).symlink_to(entry)
        with patch.dict(os.environ, {"DRAFTPICK_CACHE": folder}):
            yield


def measure_all(fleet: DraftpickConfig, prompts: Sequence[Prompt]) -> list[Measurement]:
    """Start the fleet, and measure each prompt on every engine and as the router routes it."""
    prepare_models(fleet)
    arms, model = [engine.name for engine in fleet.engines], fleet.target.name
    with progress_bar() as bar, running(fleet) as url:
        row = bar.add_task("measuring", total=len(prompts) * (len(arms) + 1))
        asyncio.run(measure(url, model, pinned_tasks(prompts[:2], arms, 0)))
        tasks = routed_tasks(prompts, arms, SEED)
        return asyncio.run(measure(url, model, tasks, progress=lambda *_: bar.advance(row)))


def select(path: Path, split: Split, kinds: int, of_each: int, max_tokens: int) -> list[Prompt]:
    """Up to `of_each` prompts of each of the kinds with the most, drawn by a fixed seed; every other one sampled."""
    by_kind = defaultdict(list)
    for prompt in read_file(path, max_tokens=max_tokens).of_split(split):
        by_kind[prompt.kind].append(prompt)
    largest = sorted(by_kind.values(), key=lambda found: (-len(found), found[0].kind))[:kinds]
    drawn = [
        replace(prompt, temperature=SAMPLED_TEMPERATURE, top_p=TOP_P) if (kind + number) % 2 else prompt
        for kind, found in enumerate(largest)
        for number, prompt in enumerate(Random(SEED).sample(found, min(of_each, len(found))))
    ]
    return interleaved(drawn)


def figures_of(result: Evaluation, name: str, plain: str) -> dict[str, Interval]:
    """The figures of a set, those of its worst slices included."""
    slices = {kind: one for kind, one in result.slices.items() if one.n >= FEW}
    figures = {
        "routed_vs_best_fixed": result.policy_vs_best_fixed,
        "routed_vs_plain": result.policy_vs_plain,
        "oracle_vs_best_fixed": result.oracle_vs_best_fixed,
    }
    if slices:
        figures["worst_kind_vs_best_fixed"] = lowest([one.policy_vs_best_fixed for one in slices.values()])
        figures["worst_kind_vs_plain"] = lowest([one.policy_vs_plain for one in slices.values()])
    for arm, total_s in result.time_s.items():
        ratio = result.time_s[plain] / total_s
        figures[f"{arm}_vs_plain"] = Interval(ratio, ratio, ratio)
    for kind, one in slices.items():
        figures[f"{kind}/routed_vs_best_fixed"] = one.policy_vs_best_fixed
        figures[f"{kind}/routed_vs_plain"] = one.policy_vs_plain
    return {f"{name}/{key}": figure for key, figure in figures.items()}


def worst_by_chance(measured: Sequence[Measurement], best: str, draws: int = 2000) -> Interval:
    """`worst_kind_vs_best_fixed`, were all kinds alike: median, 5 to 95 %, kinds shuffled over requests."""
    times = matrix(Dataset(tuple(measured)), [best, POLICY])
    kinds, numbers = np.unique(times.kinds, return_inverse=True)
    enough, rng = np.bincount(numbers) >= FEW, np.random.default_rng(SEED)
    if not enough.any():
        return Interval(math.nan, math.nan, math.nan)
    lowest_ratios = []
    for _ in range(draws):
        shuffled = rng.permutation(numbers)
        best_s, routed_s = (np.bincount(shuffled, seconds, len(kinds))[enough] for seconds in times.time_s.T)
        lowest_ratios.append((best_s / routed_s).min())
    low, middle, high = np.quantile(lowest_ratios, (0.05, 0.5, 0.95))
    return Interval(float(middle), float(low), float(high))


def lowest(found: Sequence[Interval]) -> Interval:
    """The interval with the lowest value."""
    return min(found, key=lambda one: one.value)


if __name__ == "__main__":
    main()
