"""An ensemble of small perceptrons on log tau: the mean is the prediction, the disagreement its uncertainty."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import Fit, Learner, LearnerSetting, deviations, prepared, regression
from draftpick.policy_training.learners.ray_train import WorkerShard, fit_on


@dataclass(frozen=True, slots=True)
class MLPRegression(Learner):
    """Each member fits a bootstrap of the requests; its out-of-bag requests give the residual deviations."""

    members: int = 5
    hidden: int = 48
    epochs: int = 100
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.2

    on_workers = True

    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        scaling, z, y, half = prepared(data)
        x = np.concatenate([z, half[:, None]], axis=1).astype(np.float32)
        centre, spread = y.mean(0), y.std(0) + 1e-6
        target = ((y - centre) / spread).astype(np.float32)
        network = Members(self, x.shape[1], target.shape[1], setting.seed)
        if setting.workers is not None:
            numbers = np.arange(len(data), dtype=np.float32)[:, None]
            fitted = network.fitted(fit_on(setting.workers, network, np.concatenate([x, target, numbers], axis=1)))
        else:
            fitted = network.fit_locally(torch.from_numpy(x), torch.from_numpy(target), setting)
        parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in ("w1", "b1", "w2", "b2")}
        missed, votes = np.zeros_like(y), np.zeros(len(data))
        for model, unseen in fitted:
            with torch.inference_mode():
                predicted = model(torch.from_numpy(x[unseen])).numpy() * spread + centre
            missed[unseen] += y[unseen] - predicted
            votes[unseen] += 1
            (w1, b1), (w2, b2) = (
                (m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in model if isinstance(m, nn.Linear)
            )
            for name, array in (("w1", w1), ("b1", b1), ("w2", w2 * spread), ("b2", b2 * spread + centre)):
                parts[name].append(np.array(array, np.float32, order="C"))
        out_of_bag = votes > 0
        sigma = deviations(missed[out_of_bag] / votes[out_of_bag, None], half[out_of_bag])
        arrays = {name: np.stack(members) for name, members in parts.items()}
        return regression("perceptrons", arrays, scaling, sigma, data, setting)


Fitted = list[tuple[nn.Sequential, npt.NDArray[np.int64]]]
"""The members, and the out-of-bag requests of each."""


@dataclass(frozen=True, slots=True)
class Members:
    """The perceptrons of a learner, from `inputs` to `outputs` numbers."""

    options: MLPRegression
    inputs: int
    outputs: int
    seed: int

    def model(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(self.inputs, self.options.hidden),
            nn.ReLU(),
            nn.Dropout(self.options.dropout),
            nn.Linear(self.options.hidden, self.outputs),
        )

    def fit_locally(self, x: torch.Tensor, target: torch.Tensor, setting: LearnerSetting) -> Fitted:
        """Fit all members in this process."""
        generator, members, made = np.random.default_rng(self.seed), self.options.members, Fitted()
        torch.manual_seed(self.seed)
        for member in range(members):
            drawn = generator.integers(0, len(x), len(x))
            model = self.model()

            def report_progress(step: int, steps: int, before: int = member) -> None:
                setting.progress(before * steps + step, members * steps)

            self.train(model, x[drawn], target[drawn], report_progress)
            made.append((model.eval(), np.setdiff1d(np.arange(len(x)), drawn)))
        return made

    def train(
        self,
        model: nn.Module,
        x: torch.Tensor,
        target: torch.Tensor,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Train one member on its bootstrap."""
        options = self.options
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        steps = options.epochs * max(1, len(x) // options.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=steps)
        for step in range(steps):
            rows = torch.randint(0, len(x), (min(options.batch, len(x)),))
            loss = nn.functional.huber_loss(model(x[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if on_progress is not None:
                on_progress(step + 1, steps)

    def work(self, rows: torch.Tensor, part: WorkerShard) -> None:
        """Run on one of several workers (`draftpick.policy_training.learners.ray_train`), each with its own batches."""
        x, target, numbers = rows[:, : self.inputs], rows[:, self.inputs : -1], rows[:, -1]
        kept: dict[str, Any] = part.last_state() or {"models": [], "unseen": []}
        for member in range(len(kept["models"]), self.options.members):
            part.seed(self.seed, member)
            drawn = torch.randint(0, len(rows), (len(rows),))
            model = self.model()
            self.train(part.shared(model), x[drawn], target[drawn])
            unseen = torch.ones(len(rows), dtype=torch.bool)
            unseen[drawn] = False
            kept["models"].append(model.state_dict())
            kept["unseen"].append(part.gather(numbers[unseen]).long())
            part.save_state(kept, member + 1, self.options.members)

    def fitted(self, state: dict[str, Any]) -> Fitted:
        """Return the members saved by the workers."""
        made = Fitted()
        for learned, unseen in zip(state["models"], state["unseen"], strict=True):
            model = self.model()
            model.load_state_dict(learned)
            made.append((model.eval(), unseen.numpy()))
        return made
