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
from router.features import SAMPLING_FEATURES

Arrays = dict[str, npt.NDArray[np.float32]]
Progress = Callable[[int, int, float], None]
"""Called after each epoch with (epoch, epochs, loss)."""

_CONSTANT = 1e-3


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Sizes and rates. The paper states none of them: these were chosen by cross-validation on the embedded fleet."""

    learner: Literal["exact", "reinforce"] = "exact"
    hidden: int = 64
    epochs: int = 100
    learning_rate: float = 3e-3
    weight_decay: float = 0.5
    dropout: float = 0.3
    entropy: float = 0.3
    seed: int = 0


def train(
    contexts: npt.NDArray[np.float32],
    time_s: npt.NDArray[np.float64],
    default: int,
    options: TrainOptions,
    progress: Progress | None = None,
) -> Arrays:
    """Arrays of an `mlp` policy from contexts [n, d] and times [n, arms]; `default` is the default engine's column.

    Repeatable bit for bit under `options.seed` on one machine. It starts from the arms' mean rewards, so that it leaves
    the best fixed arm only where the data says so.
    """
    torch.manual_seed(options.seed)
    mean, scale = contexts.mean(axis=0), feature_scale(contexts)
    x = torch.tensor((contexts - mean) / scale, dtype=torch.float32)
    reward = torch.tensor(seconds_saved(time_s, default) / time_s[:, default].mean(), dtype=torch.float32)
    model = _network(x.shape[1], options, reward.shape[1])
    last = model[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        # The optimum of the regularised objective for a policy that sees no context.
        last.bias.copy_(reward.mean(0) / options.entropy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    for epoch in range(options.epochs):
        loss = _loss(options, model(x), reward)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if progress is not None:
            progress(epoch + 1, options.epochs, float(loss.detach()))
    arrays: Arrays = {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32)}
    for i, layer in enumerate((m for m in model if isinstance(m, nn.Linear)), 1):
        arrays[f"w{i}"] = np.ascontiguousarray(layer.weight.detach().numpy().T)
        arrays[f"b{i}"] = layer.bias.detach().numpy().copy()
    return arrays


def feature_scale(contexts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Divisors [d] that give each sampling feature variance 1, and the whole embedding together variance 1.

    A feature that is constant in the data keeps its own unit: it must not decide alone when it changes in service.
    """
    deviation = contexts.std(axis=0)
    scale = np.where(deviation < _CONSTANT, 1.0, deviation)
    embedded = max(contexts.shape[1] - len(SAMPLING_FEATURES), 1)
    scale[:embedded] *= np.sqrt(embedded)
    return np.asarray(scale, np.float32)


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
