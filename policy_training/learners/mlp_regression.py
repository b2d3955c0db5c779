"""Several small perceptrons on log tau: their mean predicts, and where they disagree they are not sure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from policy_training.learners.base import Fit, Learner, Setting, deviations, prepared, regression
from policy_training.matrix import Matrix


@dataclass(frozen=True, slots=True)
class MLPRegression(Learner):
    """Each member sees its own bootstrap of the requests; what it has not seen tells how far it errs."""

    members: int = 5
    hidden: int = 48
    epochs: int = 100
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.2

    def fit(self, data: Matrix, setting: Setting) -> Fit:
        scaling, z, y, half = prepared(data)
        x = torch.from_numpy(np.concatenate([z, half[:, None]], axis=1).astype(np.float32))
        centre, spread = y.mean(0), y.std(0) + 1e-6
        target = torch.tensor((y - centre) / spread, dtype=torch.float32)
        generator = np.random.default_rng(setting.seed)
        torch.manual_seed(setting.seed)
        parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in ("w1", "b1", "w2", "b2")}
        missed, votes = np.zeros_like(y), np.zeros(len(data))
        for member in range(self.members):
            drawn = generator.integers(0, len(data), len(data))
            model = self._train(x[drawn], target[drawn], member, setting)
            unseen = np.setdiff1d(np.arange(len(data)), drawn)
            with torch.inference_mode():
                predicted = model(x[unseen]).numpy() * spread + centre
            missed[unseen] += y[unseen] - predicted
            votes[unseen] += 1
            (w1, b1), (w2, b2) = (
                (m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in model if isinstance(m, nn.Linear)
            )
            for name, array in (("w1", w1), ("b1", b1), ("w2", w2 * spread), ("b2", b2 * spread + centre)):
                parts[name].append(np.array(array, np.float32, order="C"))
        seen = votes > 0
        sigma = deviations(missed[seen] / votes[seen, None], half[seen])
        arrays = {name: np.stack(members) for name, members in parts.items()}
        return regression("perceptrons", arrays, scaling, sigma, data, setting)

    def _train(self, x: torch.Tensor, target: torch.Tensor, member: int, setting: Setting) -> nn.Sequential:
        model = nn.Sequential(
            nn.Linear(x.shape[1], self.hidden),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, target.shape[1]),
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        steps = self.epochs * max(1, len(x) // self.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        for step in range(steps):
            rows = torch.randint(0, len(x), (min(self.batch, len(x)),))
            loss = nn.functional.huber_loss(model(x[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            setting.progress(member * steps + step + 1, self.members * steps)
        return model.eval()
