"""Learners of the seed paper's policy: a 3-layer perceptron trained on rewards of all arms (arXiv 2408.08470).

`reinforce` samples one arm an example, as the paper does; `exact` takes the same gradient in full, which is possible
since every arm's reward is known: dJ/dlogit_a = pi_a (r_a - sum_b pi_b r_b).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from policy_training.reward import seconds_saved

Arrays = dict[str, npt.NDArray[np.float32]]
Progress = Callable[[int, int, float], None]
"""Called after each epoch with (epoch, epochs, share of the possible reward that validation gets)."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Sizes and rates. The paper states none of them: these were chosen by validation."""

    learner: Literal["exact", "reinforce"] = "exact"
    hidden: int = 64
    epochs: int = 400
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    dropout: float = 0.2
    entropy: float = 0.01
    validation_share: float = 0.2
    seed: int = 0


def train(
    contexts: npt.NDArray[np.float32],
    time_s: npt.NDArray[np.float64],
    default: int,
    options: TrainOptions,
    progress: Progress | None = None,
) -> Arrays:
    """Arrays of an `mlp` policy from contexts [n, d] and times [n, arms]; `default` is the default engine's column.

    Repeatable bit for bit under `options.seed` on one machine. The epoch with the best validation reward is kept.
    """
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    mean, scale = contexts.mean(axis=0), contexts.std(axis=0) + 1e-3
    x = torch.tensor((contexts - mean) / scale, dtype=torch.float32)
    reward = torch.tensor(seconds_saved(time_s, default) / time_s[:, default].mean(), dtype=torch.float32)
    order = torch.tensor(rng.permutation(len(x)))
    held_out = order[: max(1, round(len(x) * options.validation_share))]
    fitted = order[len(held_out) :]
    model = _network(x.shape[1], options, reward.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    best, kept = -np.inf, {k: v.clone() for k, v in model.state_dict().items()}
    for epoch in range(options.epochs):
        model.train()
        logits = model(x[fitted])
        loss = _loss(options, logits, reward[fitted])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        score = _validate(model, x[held_out], reward[held_out])
        if score > best:
            best, kept = score, {k: v.clone() for k, v in model.state_dict().items()}
        if progress is not None:
            progress(epoch + 1, options.epochs, score)
    layers = [k.removesuffix(".weight") for k in kept if k.endswith(".weight")]
    arrays: Arrays = {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32)}
    for i, layer in enumerate(layers, 1):
        arrays[f"w{i}"] = np.ascontiguousarray(kept[f"{layer}.weight"].numpy().T)
        arrays[f"b{i}"] = kept[f"{layer}.bias"].numpy()
    return arrays


def _network(inputs: int, options: TrainOptions, arms: int) -> nn.Sequential:
    def block(size: int) -> list[nn.Module]:
        return [nn.Linear(size, options.hidden), nn.ReLU(), nn.Dropout(options.dropout)]

    return nn.Sequential(*block(inputs), *block(options.hidden), nn.Linear(options.hidden, arms))


def _loss(options: TrainOptions, logits: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    """Negative expected reward, less an entropy bonus; its gradient is exact, or REINFORCE's with a batch baseline."""
    log_pi = logits.log_softmax(1)
    pi = log_pi.exp()
    entropy = -(pi * log_pi).sum(1).mean()
    if options.learner == "exact":
        return -(pi * reward).sum(1).mean() - options.entropy * entropy
    arm = torch.multinomial(pi.detach(), 1)
    gained = reward.gather(1, arm).squeeze(1)
    advantage = gained - gained.mean()
    return -(advantage * log_pi.gather(1, arm).squeeze(1)).mean() - options.entropy * entropy


@torch.no_grad()
def _validate(model: nn.Sequential, x: torch.Tensor, reward: torch.Tensor) -> float:
    """Mean reward of the best arm by the model, as a share of the best possible mean reward."""
    model.eval()
    chosen = model(x).argmax(1, keepdim=True)
    possible = reward.max(1).values.mean()
    return float(reward.gather(1, chosen).mean() / possible) if possible > 0 else 0.0
