"""The shipped policy over HTTP, beside every fixed engine, and beside what was predicted of it.

`python -m tests.bench.live --costs DATASET --json-file FILE` starts the embedded fleet, sends held-out prompts to every
engine and under the policy in random order, and then predicts the same from replayed answers and the costs of a live
dataset: the gain over the best fixed engine should agree within 5 points.
"""

import argparse
import asyncio
from pathlib import Path

import numpy as np

from draftpick.deploy.config import resolve, with_router
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.workflows.demo import POLICY, judge_routed, routed_tasks, show
from draftpick.deploy.workflows.featurizers import featurizers
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import write
from draftpick.engines.models.paths import target_path
from draftpick.policy_training.data.collect import measure, pinned_tasks
from draftpick.policy_training.data.dataset import Dataset, load, save
from draftpick.policy_training.data.matrix import matrix
from draftpick.policy_training.data.replay_labels import Labeller
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.evaluate import Interval, evaluate
from draftpick.policy_training.train import policy_probabilities
from draftpick.policy_training.workloads import generate, interleaved
from draftpick.router.policies import SHIPPED, read

SEED = 900
ANSWERS = 4
"""Of the prediction, to a sampled prompt: the measured answers are others, so that only their mean can agree."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--costs", type=Path, required=True, help="live dataset whose costs predict")
    parser.add_argument("-n", type=int, default=84, help="prompts, 17 seconds each")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("runs/live.parquet"))
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    fleet = with_router(resolve("embedded"), policy="embedded")
    prepare_models(fleet)
    arms = list(fleet.arms)
    prompts = interleaved(generate(args.n, seed=SEED, sampled_share=0.5, max_tokens=args.max_tokens))
    with progress_bar() as bar:
        row = bar.add_task("measuring", total=len(prompts) * (len(arms) + 1))
        with running(fleet) as url:
            asyncio.run(measure(url, fleet.target.name, pinned_tasks(prompts[:2], arms, 0)))
            tasks = routed_tasks(prompts, arms, SEED)
            measured = asyncio.run(measure(url, fleet.target.name, tasks, progress=lambda *_: bar.advance(row)))
        save(args.output, measured)
        result, held_out = judge_routed(measured, arms, fleet.router.default_engine, SEED)
        row = bar.add_task("predicting", total=len(prompts))
        policy = read(SHIPPED)
        made = [f for f in featurizers() if f.id == policy.featurizer]
        labeller = Labeller(target_path(fleet.target), fleet.engines, made, seed=SEED, answers=ANSWERS)
        labels, contexts = labeller.label(prompts, lambda n: bar.advance(row, n))
    expected = matrix(
        Dataset(tuple(labels), contexts), arms, featurizer=policy.featurizer, costs=Costs.fit(load(args.costs), arms)
    )
    shares = policy_probabilities(policy, expected)
    predicted = evaluate(expected, (shares * expected.time_s).sum(1), shares, fleet.router.default_engine, seed=SEED)
    show(result, out)
    ours, theirs = result.policy_vs_best_fixed, predicted.policy_vs_best_fixed
    out.print(
        f"against the best fixed engine: predicted {theirs.value:.3f}, measured {ours.value:.3f}", highlight=False
    )
    figures = {
        "predicted_vs_best_fixed": theirs,
        "measured_vs_best_fixed": ours,
        "measured_vs_plain": result.policy_vs_plain,
        "difference_in_points": Interval(*(100 * float(np.abs(ours.value - theirs.value)),) * 3),
    }
    if args.json_file:
        write(
            args.json_file,
            len(held_out),
            figures,
            by_arm=result.time_s,
            policy_s=result.policy_time_s,
            condition=POLICY,
        )


if __name__ == "__main__":
    main()
