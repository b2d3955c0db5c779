"""Training of small networks in torch, on one thread, reproducible by seed, or on workers; returns numpy arrays."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import FeatureScaling, Fit, LearnerSetting, contexts_of
from draftpick.policy_training.learners.ray_train import WorkerShard, fit_on

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits, rewards), each [batch, arms] -> loss."""


@dataclass(frozen=True, slots=True)
class SoftmaxOptions:
    """Sizes and rates of the seed paper's perceptron, which are not published: chosen by cross-validation."""

    hidden: int = 64
    epochs: int = 100
    learning_rate: float = 3e-3
    weight_decay: float = 0.5
    dropout: float = 0.3


@dataclass(frozen=True, slots=True)
class Softmax:
    """A 3-layer perceptron from contexts of `size` to logits, initialised to `bias` [arms] for every context."""

    size: int
    bias: npt.NDArray[np.float64]
    loss: Loss
    options: SoftmaxOptions
    seed: int

    def model(self) -> nn.Sequential:
        def block(size: int) -> list[nn.Module]:
            return [nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(self.options.dropout)]

        torch.manual_seed(self.seed)
        hidden = self.options.hidden
        last = nn.Linear(hidden, len(self.bias))
        made = nn.Sequential(*block(self.size), *block(hidden), last)
        with torch.no_grad():
            last.bias.copy_(torch.tensor(self.bias, dtype=torch.float32))
        return made

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        rate, decay = self.options.learning_rate, self.options.weight_decay
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)

    def epochs(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rows: torch.Tensor,
        first: int = 0,
        weight: float = 1.0,
    ) -> Iterator[int]:
        """Train on rows [n, size + arms], contexts and rewards; yield the number of finished epochs after each."""
        x, target = rows[:, : self.size], rows[:, self.size :]
        for epoch in range(first, self.options.epochs):
            optimizer.zero_grad()
            (weight * self.loss(model(x), target)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield epoch + 1

    def work(self, rows: torch.Tensor, part: WorkerShard) -> None:
        """Run on one of several workers (`draftpick.policy_training.learners.ray_train`)."""
        own = self.model()
        model, optimizer, first = part.shared(own), self.optimizer(own), 0
        if kept := part.last_state():
            own.load_state_dict(kept["model"])
            optimizer.load_state_dict(kept["optimizer"])
            first = kept["done"]
        part.seed(self.seed, first)
        for done in self.epochs(model, optimizer, rows, first, part.weight(len(rows))):
            state = {"model": own.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
            part.save_state(state, done, self.options.epochs)
            part.seed(self.seed, done)  # so that a resumed run equals an uninterrupted one


def fit_softmax(
    data: Matrix, reward: npt.NDArray[np.float64], bias: npt.NDArray[np.float64], loss: Loss, options: SoftmaxOptions,
    setting: LearnerSetting,
) -> Fit:  # fmt: skip
    """Train a `Softmax` on rewards [n, arms] and return it as an `mlp` policy."""
    scaling = FeatureScaling.from_contexts(contexts_of(data))
    x = scaling(contexts_of(data))
    network = Softmax(x.shape[1], bias, loss, options, setting.seed)
    rows, model = np.concatenate([x, reward.astype(np.float32)], axis=1), network.model()
    if setting.workers is not None:
        model.load_state_dict(fit_on(setting.workers, network, rows)["model"])
    else:
        for done in network.epochs(model, network.optimizer(model), torch.from_numpy(rows)):
            setting.progress(done, options.epochs)
    arrays = scaling.arrays
    for i, layer in enumerate((m for m in model if isinstance(m, nn.Linear)), 1):
        arrays[f"w{i}"] = np.ascontiguousarray(layer.weight.detach().numpy().T)
        arrays[f"b{i}"] = layer.bias.detach().numpy().copy()
    return Fit("mlp", {"greedy": True, "floor": 0.0}, arrays)
