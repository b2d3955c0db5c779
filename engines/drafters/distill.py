"""Trains an independent small drafter on the target's own answers (direct alignment, arXiv 2403.00858)."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines.drafters.answers import Answers
from engines.drafters.losses import LOSSES
from engines.drafters.replay import replay_matches
from engines.drafters.small_llama import Size, make_drafter
from engines.drafters.teacher import TOP, Teacher

Progress = Callable[[float, float, float], None]
"""Called with (share done 0 to 1, training loss, block efficiency of the last check)."""
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

_SAVE_EVERY_S = 60.0
_CHECK_EVERY = 50


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """How a drafter is made. `start`: weights to go on from (fine-tuning) instead of fresh ones."""

    size: Size = field(default_factory=Size)
    loss: str = "ce"
    start: Path | None = None
    epochs: int = 6
    batch_tokens: int = 6144
    learning_rate: float = 2e-3
    minutes: float = 60.0
    num_speculative_tokens: int = 3
    seed: int = 0


def distill(
    target: Path, answers: Answers, teacher: Teacher | None, out: Path, options: DistillOptions, progress: Progress
) -> dict[str, float]:
    """Train and write a drafter that vLLM serves as `draft_model`; an interrupted run goes on where it was.

    Every loss but `ce` needs the teacher. Returns, on held-out answers: `agreement`, the share of the target's greedy
    tokens that the drafter ranks first; `block_efficiency`, tau at k; `mbsu`, tau / (r k + 1) with r the ratio of
    parameters.
    """
    if teacher is None and options.loss != "ce":
        raise ValueError(f"loss {options.loss!r} needs the teacher's probabilities")
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _begin(target, options).to(device)
    held_out, fitted = split(len(answers), options.seed)
    data = _Data(answers, teacher, options.batch_tokens, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01, betas=(0.9, 0.95))
    resume = _Resume(out / "resume", options)
    state = resume.load(model, optimizer)
    began, saved, tau = time.monotonic() - state["elapsed_s"], time.monotonic(), 1.0
    for epoch in range(state["epoch"], options.epochs):
        batches = list(data.batches(fitted, options.seed + epoch))
        for i in range(state["batch"] if epoch == state["epoch"] else 0, len(batches)):
            by_time = (time.monotonic() - began) / (60 * options.minutes)
            done = max(by_time, (epoch + i / len(batches)) / options.epochs)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * min(1, (1 + i + epoch * len(batches)) / 50) * _cosine(done)
            loss = _loss(model, data.batch(batches[i]), options.loss)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if i % _CHECK_EVERY == _CHECK_EVERY - 1:
                tau = evaluate(model, data, held_out, options)["block_efficiency"]
            if time.monotonic() - saved > _SAVE_EVERY_S:
                resume.save(model, optimizer, epoch, i + 1, time.monotonic() - began)
                saved = time.monotonic()
            progress(done, loss.item(), tau)
    result = evaluate(model, data, held_out, options)
    parameters = sum(p.numel() for p in model.parameters())
    ratio = parameters / _parameters(target)
    k = options.num_speculative_tokens
    model.to(torch.bfloat16).save_pretrained(out)
    resume.remove()
    return {**result, "mbsu": result["block_efficiency"] / (ratio * k + 1), "parameters": float(parameters)}


def split(n: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(held-out answers, answers to train on): one in forty, at least eight."""
    order = np.random.default_rng(seed).permutation(n)
    few = max(8, n // 40)
    return order[:few], order[few:]


def _begin(target: Path, options: DistillOptions) -> Any:
    if options.start is None:
        return make_drafter(target, options.size)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(options.start, dtype=torch.float32)


def _parameters(target: Path) -> int:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(target)).num_parameters())


def _cosine(done: float) -> float:
    return 0.05 + 0.95 * (1 + math.cos(math.pi * min(done, 1.0))) / 2


class _Data:
    """Batches of sequences of like length, padded."""

    def __init__(self, answers: Answers, teacher: Teacher | None, batch_tokens: int, device: str) -> None:
        self.answers, self.teacher = answers, teacher
        self._batch_tokens, self._device = batch_tokens, device

    def batches(self, chosen: np.ndarray[Any, Any], seed: int) -> Iterator[list[int]]:
        """Groups of answers, in an order of the seed's."""
        lengths = np.diff(self.answers.starts)
        rng = np.random.default_rng(seed)
        groups: list[list[int]] = [[]]
        for i in sorted(chosen.tolist(), key=lambda i: (lengths[i] // 16, rng.random())):
            if groups[-1] and lengths[i] * (len(groups[-1]) + 1) > self._batch_tokens:
                groups.append([])
            groups[-1].append(i)
        yield from (groups[g] for g in rng.permutation(len(groups)))

    def batch(self, group: list[int]) -> Batch:
        """(token ids [b, t], mask of the places before an answer's token [b, t - 1], teacher's tokens, probabilities).

        The teacher's rows [m, t] are those of the mask, in its order.
        """
        answers = self.answers
        rows = [answers.tokens[answers.starts[i] : answers.starts[i + 1]] for i in group]
        ids = np.zeros((len(rows), max(len(row) for row in rows)), np.int64)
        mask = np.zeros((len(rows), ids.shape[1] - 1), bool)
        for r, (i, row) in enumerate(zip(group, rows, strict=True)):
            ids[r, : len(row)] = row
            mask[r, answers.answer_at[i] - 1 : len(row) - 1] = True
        top, p = self._taught(group)
        return tuple(torch.from_numpy(a).to(self._device) for a in (ids, mask, top, p))  # type: ignore[return-value]

    def _taught(self, group: list[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        if self.teacher is None:
            return np.zeros((0, TOP), np.int64), np.zeros((0, TOP), np.float32)
        at = [slice(self.teacher.starts[i], self.teacher.starts[i + 1]) for i in group]
        top = np.concatenate([self.teacher.tokens[s] for s in at]).astype(np.int64)
        return top, np.concatenate([self.teacher.probabilities[s] for s in at]).astype(np.float32)


def _logits(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        logits: torch.Tensor = model.lm_head(hidden[mask])
        return logits


def _loss(model: Any, batch: Batch, name: str) -> torch.Tensor:
    ids, mask, top, p = batch
    return LOSSES[name](_logits(model, ids, mask), ids[:, 1:][mask], top, p)


@torch.no_grad()
def evaluate(model: Any, data: _Data, chosen: np.ndarray[Any, Any], options: DistillOptions) -> dict[str, float]:
    """`agreement` and `block_efficiency` of greedy drafts on the chosen answers."""
    right, taus = [], []
    for group in data.batches(chosen, 0):
        ids, mask, *_ = data.batch(group)
        matches = (_logits(model, ids, mask).argmax(-1) == ids[:, 1:][mask]).cpu().numpy()
        for answer in np.split(matches, np.cumsum(mask.sum(1).cpu().numpy())[:-1]):
            right.append(answer)
            taus.append(replay_matches(answer, options.num_speculative_tokens).acceptance_length)
    return {"agreement": float(np.concatenate(right).mean()), "block_efficiency": float(np.mean(taus))}


class _Resume:
    """Weights, optimizer and place of a run, so that it can be interrupted. Another run's place is not taken over."""

    def __init__(self, folder: Path, options: DistillOptions) -> None:
        self._folder = folder
        self._options = json.loads(json.dumps(asdict(options), default=str))

    def load(self, model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put the saved state into model and optimizer; says epoch, batch and seconds so far."""
        place = self._folder / "place.json"
        fresh = {"epoch": 0, "batch": 0, "elapsed_s": 0.0}
        if not place.is_file():
            return fresh
        state: dict[str, Any] = json.loads(place.read_text())
        if state.pop("options") != self._options:
            return fresh
        from safetensors.torch import load_file

        tensors = load_file(self._folder / state.pop("tensors"))
        parameters = list(model.parameters())
        for i, parameter in enumerate(parameters):
            parameter.data.copy_(tensors[f"parameter.{i}"])
            moments = {name: tensors[f"{name}.{i}"] for name in ("exp_avg", "exp_avg_sq", "step")}
            optimizer.state[parameter] = {
                name: t.to(parameter.device if name != "step" else "cpu") for name, t in moments.items()
            }
        return state

    def save(self, model: Any, optimizer: torch.optim.Optimizer, epoch: int, batch: int, elapsed_s: float) -> None:
        """Write the state; `place.json` names the tensors that belong to it and is replaced last."""
        from safetensors.torch import save_file

        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for i, parameter in enumerate(model.parameters()):
            tensors[f"parameter.{i}"] = parameter.data.contiguous()
            for name, value in optimizer.state[parameter].items():
                tensors[f"{name}.{i}"] = torch.as_tensor(value).contiguous()
        name = f"{epoch}-{batch}.safetensors"
        save_file(tensors, self._folder / name)
        place = {"epoch": epoch, "batch": batch, "elapsed_s": elapsed_s, "tensors": name, "options": self._options}
        scratch = self._folder / "place.json.new"
        scratch.write_text(json.dumps(place))
        scratch.replace(self._folder / "place.json")
        for old in self._folder.glob("*.safetensors"):
            if old.name != name:
                old.unlink()

    def remove(self) -> None:
        """The run is done."""
        shutil.rmtree(self._folder, ignore_errors=True)
