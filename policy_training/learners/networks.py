"""Training of small networks in torch, on one thread, repeatable under a seed; what comes out is numpy."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from policy_training.learners.base import Fit, Scaling, Setting, contexts_of
from policy_training.matrix import Matrix

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of logits and rewards, each [batch, arms]."""


@dataclass(frozen=True, slots=True)
class SoftmaxOptions:
    """Sizes and rates of the seed paper's perceptron, which states none: chosen by cross-validation on measurements."""

    hidden: int = 64
    epochs: int = 100
    learning_rate: float = 3e-3
    weight_decay: float = 0.5
    dropout: float = 0.3


def fit_softmax(
    data: Matrix, reward: npt.NDArray[np.float64], bias: npt.NDArray[np.float64], loss: Loss, options: SoftmaxOptions,
    setting: Setting,
) -> Fit:  # fmt: skip
    """An `mlp` policy: a 3-layer perceptron that begins with the logits `bias` [arms] for every context."""
    torch.manual_seed(setting.seed)
    scaling = Scaling.of(contexts_of(data))
    x = torch.from_numpy(scaling(contexts_of(data)))
    target = torch.tensor(reward, dtype=torch.float32)

    def block(size: int) -> list[nn.Module]:
        return [nn.Linear(size, options.hidden), nn.ReLU(), nn.Dropout(options.dropout)]

    last = nn.Linear(options.hidden, len(data.arms))
    model = nn.Sequential(*block(x.shape[1]), *block(options.hidden), last)
    with torch.no_grad():
        last.bias.copy_(torch.tensor(bias, dtype=torch.float32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    for epoch in range(options.epochs):
        optimizer.zero_grad()
        loss(model(x), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        setting.progress(epoch + 1, options.epochs)
    arrays = scaling.arrays
    for i, layer in enumerate((m for m in model if isinstance(m, nn.Linear)), 1):
        arrays[f"w{i}"] = np.ascontiguousarray(layer.weight.detach().numpy().T)
        arrays[f"b{i}"] = layer.bias.detach().numpy().copy()
    return Fit("mlp", {"greedy": True, "floor": 0.0}, arrays)
