"""Training time of the default policy, and whether it repeats: `python -m tests.bench.training --json-file FILE`.

Synthetic requests of the shape that counts: 10,000 of them, 6 arms, static contexts; one thread.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from draftpick.deploy.workflows.results import write
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.learners import DEFAULT, learner
from draftpick.policy_training.learners.base import LearnerSetting
from draftpick.policy_training.train import fit
from draftpick.router.router import static_featurizer

ARMS = ("plain", "suffix", "hybrid", "math", "code", "chat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=10_000, help="requests")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, costs = requests(args.n)
    assert data.contexts is not None
    fastest = data.time_s.argmin(1)
    homes = {arm: data.contexts[fastest == i][:300] for i, arm in enumerate(ARMS) if arm in ("math", "code", "chat")}
    seconds, arrays = [], []
    for _ in range(args.repeats):
        began = time.perf_counter()
        arrays.append(fit(data, learner(DEFAULT), LearnerSetting("plain", costs, training_domains=homes))[1])
        seconds.append(time.perf_counter() - began)
        print(f"{args.n} requests, {len(ARMS)} arms: {seconds[-1]:.1f} s", flush=True)
    same = all(one[name].tobytes() == arrays[0][name].tobytes() for one in arrays for name in arrays[0])
    print("bit for bit the same" if same else "NOT the same")
    figures = {
        "train_10k_s": Interval(float(np.mean(seconds)), min(seconds), max(seconds)),
        "repeats_bit_for_bit": Interval(float(same), float(same), float(same)),
    }
    if args.json_file:
        write(args.json_file, args.n, figures)


def requests(n: int) -> tuple[Matrix, Costs]:
    """Random contexts whose first directions say what each arm accepts."""
    rng = np.random.default_rng(0)
    dimension = static_featurizer().dimension
    contexts = rng.normal(size=(n, dimension)).astype(np.float32)
    tau = np.exp(np.clip(contexts[:, : len(ARMS)] * 0.3 + rng.normal(0, 0.1, (n, len(ARMS))) + 0.3, 0, 1.5))
    costs = Costs(
        ARMS, np.outer(np.linspace(0.03, 0.04, len(ARMS)), [1, 1.1]), np.full(len(ARMS), 0.1), np.zeros(len(ARMS))
    )
    tokens, prompts, sampled = np.full(n, 64.0), np.full(n, 80.0), rng.random(n) < 0.5
    time_s = costs.time_s(tau, prompts, tokens, sampled)
    ids, kinds = tuple(map(str, range(n))), ("synthetic",) * n
    rate = np.full_like(tau, np.nan)
    temperatures = 0.7 * sampled
    return Matrix(ids, kinds, ARMS, time_s, tau, rate, prompts, tokens, temperatures, {}, "synthetic", contexts), costs


if __name__ == "__main__":
    main()
