"""The training loop of all drafters: batches of similar length, cosine learning rate schedule, resumable."""

import json
import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from draftpick.engines.atomic_write import atomic_write
from draftpick.engines.drafters.training.responses import Responses, weight_files
from draftpick.engines.drafters.training.target_outputs import TOP, TargetOutputs

ProgressCallback = Callable[[float, float, float], None]
"""Called with (fraction done, training loss, block efficiency at the last check)."""
Indices = np.ndarray[Any, Any]

SAVE_EVERY_S = 60.0
_CHECK_EVERY = 50
_WARM_UP_STEPS = 50


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Training length and rate; the run ends at `epochs` or `minutes`, whichever comes first."""

    epochs: int = 6
    batch_tokens: int = 6144
    learning_rate: float = 2e-3
    minutes: float = 60.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences padded at their ends: token ids [b, t]; `is_answer` [b, t - 1] is True before an answer's token.

    `top` and `p` [m, 32] are the target's likeliest tokens and probabilities at these m positions, `features` [b, t, f]
    its hidden states; each is empty if not available.
    """

    ids: torch.Tensor
    is_answer: torch.Tensor
    top: torch.Tensor
    p: torch.Tensor
    features: torch.Tensor

    @property
    def answer_tokens(self) -> torch.Tensor:
        """The answers' tokens [m]."""
        return self.ids[:, 1:][self.is_answer]


class Batches:
    """Answers and the target's outputs for them, as padded batches on a device."""

    def __init__(
        self, answers: Responses, target_outputs: TargetOutputs | None, batch_tokens: int, device: str
    ) -> None:
        self.answers, self.target_outputs = answers, target_outputs
        self._batch_tokens, self._device = batch_tokens, device

    def groups(self, indices: Indices, seed: int) -> list[list[int]]:
        """Group answers of similar length into batches, shuffled by `seed`."""
        lengths = np.diff(self.answers.starts)
        rng = np.random.default_rng(seed)
        groups: list[list[int]] = [[]]
        for i in sorted(indices.tolist(), key=lambda i: (lengths[i] // 16, rng.random())):
            if groups[-1] and lengths[i] * (len(groups[-1]) + 1) > self._batch_tokens:
                groups.append([])
            groups[-1].append(i)
        return [groups[g] for g in rng.permutation(len(groups))]

    def batches(self, indices: Indices, seed: int = 0) -> Iterator[Batch]:
        """Yield all batches of the chosen answers."""
        return (self.batch(group) for group in self.groups(indices, seed))

    def batch(self, group: list[int]) -> Batch:
        """Return these answers as a padded batch."""
        answers = self.answers
        rows = [answers.tokens[answers.starts[i] : answers.starts[i + 1]] for i in group]
        ids = np.zeros((len(rows), max(len(row) for row in rows)), np.int64)
        before = np.zeros((len(rows), ids.shape[1] - 1), bool)
        width = 0 if self.target_outputs is None else self.target_outputs.width
        features = np.zeros((*ids.shape, width), np.uint16)
        for r, (i, row) in enumerate(zip(group, rows, strict=True)):
            ids[r, : len(row)] = row
            before[r, answers.answer_at[i] - 1 : len(row) - 1] = True
            if self.target_outputs is not None:
                features[r, : len(row)] = self.target_outputs.features(i)
        states = torch.from_numpy(features).view(torch.bfloat16)
        arrays = (torch.from_numpy(a) for a in (ids, before, *self._likeliest(group)))
        return Batch(*(tensor.to(self._device) for tensor in (*arrays, states)))

    def _likeliest(self, group: list[int]) -> tuple[Indices, Indices]:
        if self.target_outputs is None:
            return np.zeros((0, TOP), np.int64), np.zeros((0, TOP), np.float32)
        tokens, probabilities = zip(*(self.target_outputs.likeliest(i) for i in group), strict=True)
        return np.concatenate(tokens).astype(np.int64), np.concatenate(probabilities).astype(np.float32)


def split(n: int, seed: int) -> tuple[Indices, Indices]:
    """Return (held-out answers, training answers): one in forty is held out, at least eight.

    Raises ValueError if no training answer remains.
    """
    order = np.random.default_rng(seed).permutation(n)
    few = max(8, n // 40)
    if n <= few:
        raise ValueError(f"{n} answers are too few to train on ({few} are held out): generate more")
    return order[:few], order[few:]


def fit(
    model: torch.nn.Module,
    batches: Batches,
    indices: Indices,
    loss_of: Callable[[Batch], torch.Tensor],
    check: Callable[[], float],
    options: FitOptions,
    checkpoint_dir: Path,
    identity: dict[str, Any],
    progress: ProgressCallback,
) -> None:
    """Minimise `loss_of` over the chosen answers. `check()` is called periodically and its result reported.

    The state is kept in `checkpoint_dir`, which the caller removes after writing the result; a run of the same
    `identity` (from `identity_of`) resumes from there.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.01, betas=(0.9, 0.95))
    resume = _Resume(checkpoint_dir, trained, optimizer, identity)
    first_epoch, first_batch, elapsed_s = resume.load()
    began, saved, checked, steps, last_loss = time.monotonic() - elapsed_s, time.monotonic(), 1.0, 0, 0.0
    for epoch in range(first_epoch, options.epochs):
        groups = batches.groups(indices, options.seed + epoch)
        for i in range(first_batch if epoch == first_epoch else 0, len(groups)):
            by_time = (time.monotonic() - began) / (60 * options.minutes)
            done = max(by_time, (epoch + i / len(groups)) / options.epochs)
            if done >= 1:
                break
            warm = min(1.0, (1 + i + epoch * len(groups)) / _WARM_UP_STEPS)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * warm * _cosine(done)
            loss = loss_of(batches.batch(groups[i]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            steps += 1
            if steps % _CHECK_EVERY == 0:
                checked = check()
            if time.monotonic() - saved > SAVE_EVERY_S:
                resume.save(epoch, i + 1, time.monotonic() - began)
                saved = time.monotonic()
            last_loss = loss.item()
            progress(done, last_loss, checked)
    progress(1.0, last_loss, checked)
    resume.save(options.epochs, 0, time.monotonic() - began)


def identity_of(options: Any, answers: Responses) -> dict[str, Any]:
    """Identity of a run: options (a dataclass with `start`, the initial weights) and answers."""
    start = [] if options.start is None else weight_files(options.start)
    identity = {**asdict(options), "start_weights": start, "answers": zlib.crc32(answers.tokens.tobytes())}
    return dict(json.loads(json.dumps(identity, default=str)))


def _cosine(done: float) -> float:
    return 0.05 + 0.95 * (1 + math.cos(math.pi * min(done, 1.0))) / 2


class _Resume:
    """Weights, moments and position of a run. `place.json` names the matching tensor file and is replaced last."""

    def __init__(
        self,
        folder: Path,
        parameters: list[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        identity: dict[str, Any],
    ) -> None:
        self._folder, self._parameters, self._optimizer, self._identity = folder, parameters, optimizer, identity

    def load(self) -> tuple[int, int, float]:
        """Restore a run of the same identity; return (epoch, batch, elapsed seconds), or the start."""
        place = self._folder / "place.json"
        if not place.is_file():
            return 0, 0, 0.0
        state = json.loads(place.read_text())
        if state["identity"] != self._identity:
            return 0, 0, 0.0
        from safetensors.torch import load_file

        tensors = load_file(self._folder / state["tensors"])
        for i, parameter in enumerate(self._parameters):
            parameter.data.copy_(tensors[f"parameter.{i}"])
            moments = {name: tensors[f"{name}.{i}"].to(parameter.device) for name in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[parameter] = {**moments, "step": tensors[f"step.{i}"]}
        return state["epoch"], state["batch"], state["elapsed_s"]

    def save(self, epoch: int, batch: int, elapsed_s: float) -> None:
        from safetensors.torch import save_file

        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for i, parameter in enumerate(self._parameters):
            tensors[f"parameter.{i}"] = parameter.data.contiguous()
            for name, value in self._optimizer.state[parameter].items():
                tensors[f"{name}.{i}"] = torch.as_tensor(value).contiguous()
        name = f"{epoch}-{batch}.safetensors"
        save_file(tensors, self._folder / name)
        place = {"epoch": epoch, "batch": batch, "elapsed_s": elapsed_s, "tensors": name, "identity": self._identity}
        atomic_write(self._folder / "place.json", json.dumps(place))
        for old in self._folder.glob("*.safetensors"):
            if old.name != name:
                old.unlink()
