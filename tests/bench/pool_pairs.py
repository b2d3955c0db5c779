"""Pools at equal resources: `python -m tests.bench.pool_pairs --prompts FILE --split dev --name dev --json-file FILE`.

Two replicas of one core each, on a machine of two cores, behind the router and over HTTP: two pools, two engines with
suffix decoding, two without a drafter, and one with suffix decoding beside one with a head. A pair answers the same
prompts, so many at once, a new one as soon as one ends; half of them sampled at temperature 0.7 and top_p 0.9. The
router chooses the replica, and sends pools its forecast. Pairs take turns in random order. Speeds are output tokens a
second of the clock, so nothing else may run. Figures, ratios of speeds, brackets the range of the repeats:

- `equal_resources/NAME/N`: two pools to the best of the other pairs with N requests at once; `.../NAME/mean`: the
  geometric mean of these;
- `equal_resources/NAME/N/PAIR_vs_plain`: each pair to that without a drafter.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from draftpick.deploy.console import progress_bar
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import merge_into
from draftpick.engines.errors import DraftpickError
from draftpick.policy_training.data.collect import Task, measure
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import Prompt
from draftpick.router.config.router_config import DraftpickConfig, load_config
from tests.bench.figures import show, spread
from tests.bench.pool import HEAD, SUFFIX, prompt_options
from tests.bench.real_text import select

PAIRS = {"plain": ("plain",), "suffix": ("suffix",), "suffix_and_general": ("suffix", "general"), "pool": ("pool",)}
"""Engines that share a pair's requests: two replicas of one, or one of each."""
LEAST = 16
"""Prompts of a measurement, if there are fewer than two for each request at once."""


def main() -> None:
    parser = prompt_options(__doc__)
    parser.set_defaults(kinds=32, n=2, max_tokens=64)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json-file", type=Path, help="a result of tests.bench.pool, to which the figures are added")
    args = parser.parse_args()
    config = fleet()
    prepare_models(config)
    prompts = select(args.prompts, args.split, args.kinds, args.n, args.max_tokens)
    with running(config) as url:
        speeds = asyncio.run(measure_all(url, config.target.name, prompts, args.at_once, args.repeats))
    figures = {f"equal_resources/{args.name}/{name}": one for name, one in figures_of(speeds).items()}
    show(figures)
    if args.json_file:
        facts = {"n": len(prompts), "max_tokens": args.max_tokens, "repeats": args.repeats}
        source = {f"{args.name}/equal_resources/{key}": value for key, value in facts.items()}
        merge_into(args.json_file, figures, sets=source)


def fleet() -> DraftpickConfig:
    """Every engine of a pair, with one thread each."""
    two = {"num_replicas": 2}
    head = {**HEAD, "num_speculative_tokens": 3, "use_local_argmax_reduction": True}
    drafters = [{"name": "suffix", **SUFFIX}, {"name": "general", **head}]
    return load_config(
        {
            "engines": [
                {"name": "plain", "deployment": two},
                {"name": "suffix", "drafter": SUFFIX, "deployment": two},
                {"name": "general", "drafter": {**head, "draft_exit": True}},
                {"name": "pool", "drafters": drafters, "deployment": two},
            ],
            "engine_kwargs": {
                "enforce_eager": True,
                "max_model_len": 2048,
                "max_num_batched_tokens": 2048,
                "max_num_seqs": 16,
                "kv_cache_memory_bytes": 2**20 * 384,
            },
            "router": {"policy": "embedded", "default_engine": "plain"},
        }
    )


Speeds = dict[int, dict[str, list[float]]]
"""Output tokens a second by number of requests at once and pair, of each repeat."""


async def measure_all(url: str, model: str, prompts: Sequence[Prompt], counts: Sequence[int], repeats: int) -> Speeds:
    """Return what each pair did."""
    found: Speeds = {count: defaultdict(list) for count in counts}
    order = Random(0)
    for engines in PAIRS.values():  # both replicas have answered before the clock runs
        await speed(url, model, prompts[:8], engines, 4)
    with progress_bar() as bar:
        row = bar.add_task("pairs", total=len(counts) * repeats * len(PAIRS))
        for _ in range(repeats):
            for count in counts:
                ours = prompts[: max(LEAST, 2 * count)]
                for pair in order.sample(list(PAIRS), len(PAIRS)):
                    found[count][pair].append(await speed(url, model, ours, PAIRS[pair], count))
                    bar.advance(row)
    return found


async def speed(url: str, model: str, prompts: Sequence[Prompt], engines: Sequence[str], at_once: int) -> float:
    """Return output tokens a second of engines that take turns, if one has no second replica."""
    tasks = [Task(prompt, engines[i % len(engines)], "pair") for i, prompt in enumerate(prompts)]
    began = time.perf_counter()
    answers = await measure(url, model, tasks, concurrency=at_once)
    seconds = time.perf_counter() - began
    failed = [answer.outcome.status for answer in answers if answer.outcome.status != "ok"]
    if failed:
        raise DraftpickError(f"{len(failed)} of {len(answers)} requests to {' and '.join(engines)} failed: {failed[0]}")
    return sum(answer.outcome.output_tokens or 0 for answer in answers) / seconds


def figures_of(speeds: Speeds) -> dict[str, Interval]:
    """Return the figures without their prefix."""
    figures, ratios = {}, []
    for count, by_pair in speeds.items():
        rivals = {pair: np.asarray(values) for pair, values in by_pair.items() if pair != "pool"}
        best = max(rivals.values(), key=lambda values: float(np.median(values)))
        ratios.append(np.asarray(by_pair["pool"]) / best)
        figures[str(count)] = spread(list(ratios[-1]))
        for pair, values in by_pair.items():
            if pair != "plain":
                figures[f"{count}/{pair}_vs_plain"] = spread(list(np.asarray(values) / rivals["plain"]))
    return {**figures, "mean": spread(list(np.exp(np.log(ratios).mean(axis=0))))}


if __name__ == "__main__":
    main()
