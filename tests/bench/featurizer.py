"""Time of a context, and the gain it brings: `python -m tests.bench.featurizer --data DATASET --json-file FILE`.

Time of the static featurizer and of the sentence encoder for texts of 200 words on one core, and the routing gain of
the default learner with the contexts of each, on the same splits of a dataset that holds both.
"""

import argparse
import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from draftpick.deploy.workflows.featurizers import read_training_domains
from draftpick.deploy.workflows.results import write
from draftpick.deploy.workflows.train import matrix_of
from draftpick.policy_training.benchmark import splits as ladder
from draftpick.policy_training.benchmark.experiments import interval
from draftpick.policy_training.data.dataset import load
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.learners import DEFAULT
from draftpick.policy_training.learners.base import LearnerSetting
from draftpick.policy_training.workloads import generate
from draftpick.router.features.featurizer import Featurizer
from draftpick.router.openai_request import Request
from draftpick.router.router import sentence_featurizer, static_featurizer

WORDS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, action="append", required=True, help="dataset; may be repeated")
    parser.add_argument(
        "--training-domain",
        dest="domains",
        action="append",
        default=[],
        help="ENGINE=PROMPTS, as for `draftpick train`",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    static, sentence = static_featurizer(), sentence_featurizer()
    figures: dict[str, Interval] = {}
    for name, featurizer, repeats in (("static", static, 20), ("sentence", sentence, 1)):
        taken = asyncio.run(milliseconds(featurizer, repeats))
        figures[f"{name}_p50_ms"] = Interval(*(float(q) for q in np.quantile(taken, [0.5, 0.05, 0.95])))
        print(f"{name}: {np.median(taken):.3f} ms, p99 {np.quantile(taken, 0.99):.3f} ms", flush=True)
    data = load(*args.data)
    gains: dict[str, list[float]] = {}
    for name, featurizer in (("static", static), ("sentence", sentence)):
        matrix, costs = matrix_of(data, featurizer.id, data.arms)
        setting = LearnerSetting("plain", costs, training_domains=read_training_domains(args.domains, featurizer.id))
        scores = [
            ladder.evaluate_learner(DEFAULT, ladder.iid(matrix, s), replace(setting, seed=s)) for s in range(args.seeds)
        ]
        gains[name] = [score.vs_best_fixed - 1 for score in scores]
        figures[f"{name}_vs_best_fixed"] = interval([1 + gain for gain in gains[name]])
        print(f"{name}: {1 + np.mean(gains[name]):.4f} against the best fixed engine", flush=True)
    lost = 1 - np.mean(gains["static"]) / np.mean(gains["sentence"])
    figures["static_gain_loss"] = Interval(float(lost), float(lost), float(lost))
    print(f"the static featurizer loses {lost:.1%} of the sentence encoder's gain")
    if args.json_file:
        write(args.json_file, len(matrix), figures)


async def milliseconds(featurizer: Featurizer, repeats: int) -> list[float]:
    """Of each of 60 texts, `repeats` times; every text is new to a cache."""
    taken = []
    for repeat in range(repeats):
        for prompt in generate(60, seed=3):
            text = " ".join(f"{prompt.text} {repeat} ".split() * WORDS)
            request = Request(
                "/v1/chat/completions", b"", " ".join(text.split()[:WORDS]), sampling={"temperature": 0.7}
            )
            began = time.perf_counter()
            await featurizer(request)
            taken.append(1000 * (time.perf_counter() - began))
    return taken[60:] or taken


if __name__ == "__main__":
    main()
