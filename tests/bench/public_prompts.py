"""The embedded fleet as it ships, on prompts that people wrote: routed beside every fixed engine.

`python -m tests.bench.public_prompts --prompts FILE --json-file FILE` reads a file of prompts in any format that
has kinds, takes as many of each kind, and sends each prompt to every engine and to the router, in random order and one
at a time. Half are sampled at temperature 0.7 and top_p 0.9. A request carries a `cache_salt` of its own, so that no
engine reads a prompt from its prefix cache. Brackets are 95 % bootstrap intervals over prompts.
"""

import argparse
import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from draftpick.deploy.config import resolve, with_router
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.workflows.demo import POLICY, judge_routed, routed_tasks, show
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.data.collect import measure, pinned_tasks
from draftpick.policy_training.data.dataset import Dataset, save
from draftpick.policy_training.data.matrix import matrix
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import SAMPLED_TEMPERATURE, Prompt, interleaved, read_file

SEED = 11
TOP_P = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="a file of prompts with kinds")
    parser.add_argument("--kinds", nargs="+", required=True, help="kinds to take")
    parser.add_argument("-n", type=int, default=8, help="prompts of each kind, 17 seconds each")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("runs/public_prompts.parquet"))
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    prompts = select(args.prompts, args.kinds, args.n, args.max_tokens)
    fleet = with_router(resolve("embedded"), policy="embedded")
    prepare_models(fleet)
    arms = list(fleet.arms)
    with progress_bar() as bar, running(fleet) as url:
        row = bar.add_task("measuring", total=len(prompts) * (len(arms) + 1))
        asyncio.run(measure(url, fleet.target.name, pinned_tasks(prompts[:2], arms, 0)))
        tasks = routed_tasks(prompts, arms, SEED)
        measured = asyncio.run(measure(url, fleet.target.name, tasks, progress=lambda *_: bar.advance(row)))
    save(args.output, measured)
    result, held_out = judge_routed(measured, arms, fleet.router.default_engine, SEED)
    show(result, out)
    routed_s = matrix(Dataset(tuple(measured)), [*arms, POLICY]).time_s[:, -1]
    figures = {"routed_vs_best_fixed": result.policy_vs_best_fixed, "routed_vs_plain": result.policy_vs_plain}
    figures["oracle_vs_best_fixed"] = result.oracle_vs_best_fixed
    plain, best = (held_out.arms.index(arm) for arm in (fleet.router.default_engine, result.best_fixed))
    for kind in (*args.kinds, "all"):
        rows = np.asarray([kind in ("all", k) for k in held_out.kinds])
        time_s = held_out.time_s[rows]
        figures[f"{kind}/routed_vs_plain"] = ratio(time_s[:, plain], routed_s[rows])
        figures[f"{kind}/routed_vs_best_fixed"] = ratio(time_s[:, best], routed_s[rows])
        for index, arm in enumerate(held_out.arms):
            figures[f"{kind}/{arm}_vs_plain"] = ratio(time_s[:, plain], time_s[:, index])
    if args.json_file:
        digest = hashlib.sha256(args.prompts.read_bytes()).hexdigest()
        source = {"sha256": digest, "kinds": args.kinds, "of_each": args.n, "max_tokens": args.max_tokens}
        write(args.json_file, result.n, figures, best_fixed=result.best_fixed, prompts=source, shares=result.shares)


def select(path: Path, kinds: Sequence[str], of_each: int, max_tokens: int) -> list[Prompt]:
    """`of_each` prompts of every kind, drawn by a fixed seed, in rounds of all kinds; every second one is sampled."""
    every, drawn = read_file(path, max_tokens=max_tokens).prompts, list[Prompt]()
    for kind in kinds:
        found = [prompt for prompt in every if prompt.kind == kind]
        if len(found) < of_each:
            raise SystemExit(f"{path} has {len(found)} prompts of kind {kind!r}, {of_each} are asked for")
        drawn += [
            replace(prompt, temperature=SAMPLED_TEMPERATURE, top_p=TOP_P) if number % 2 else prompt
            for number, prompt in enumerate(Random(SEED).sample(found, of_each))
        ]
    return interleaved(drawn)


def ratio(baseline_s: np.ndarray, ours_s: np.ndarray, resamples: int = 2000) -> Interval:
    """Total time of the baseline over ours, with a 95 % bootstrap interval over prompts."""
    draws = Bootstrap.of_places(len(ours_s), resamples, np.random.default_rng(SEED))
    low, high = bounds(draws.ratios(baseline_s, ours_s))
    return Interval(float(baseline_s.sum() / ours_s.sum()), float(low), float(high))


if __name__ == "__main__":
    main()
