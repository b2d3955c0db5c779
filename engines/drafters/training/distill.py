"""Trains an independent small drafter on the target's own answers (direct alignment, arXiv 2403.00858)."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from draftpick.engines.drafters.replay import replay_matches
from draftpick.engines.drafters.training.losses import LOSSES
from draftpick.engines.drafters.training.responses import Responses
from draftpick.engines.drafters.training.small_llama import Size, make_drafter
from draftpick.engines.drafters.training.target_outputs import TargetOutputs
from draftpick.engines.drafters.training.trainer import (
    Batch,
    Batches,
    FitOptions,
    Indices,
    ProgressCallback,
    fit,
    identity_of,
    split,
)


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """Training options. `start`: initial weights (fine-tuning) instead of random ones."""

    size: Size = field(default_factory=Size)
    loss: str = "ce"
    start: Path | None = None
    num_speculative_tokens: int = 3
    fit: FitOptions = field(default_factory=FitOptions)


def distill(
    target: Path,
    answers: Responses,
    target_outputs: TargetOutputs | None,
    out: Path,
    options: DistillOptions,
    progress: ProgressCallback,
) -> dict[str, float]:
    """Train and write a drafter that vLLM serves as `draft_model`; resumes an interrupted run.

    Every loss except `ce` needs `target_outputs`. Returns, on held-out answers: `agreement`, the share of the target's
    greedy tokens that the drafter ranks first; `block_efficiency`, tau at k; `mbsu`, tau / (r k + 1) with r the ratio
    of parameters.
    """
    if target_outputs is None and options.loss != "ce":
        raise ValueError(f"loss {options.loss!r} needs the target's probabilities: pass `target_outputs`")
    torch.manual_seed(options.fit.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _begin(target, options).to(device)
    held_out, fitted = split(len(answers), options.fit.seed)
    batches = Batches(answers, target_outputs, options.fit.batch_tokens, device)
    k = options.num_speculative_tokens

    def loss_of(batch: Batch) -> torch.Tensor:
        return LOSSES[options.loss](_logits(model, batch), batch.answer_tokens, batch.top, batch.p)

    def check() -> float:
        return evaluate(model, batches, held_out, k)["block_efficiency"]

    resume = out / "resume"
    fit(model, batches, fitted, loss_of, check, options.fit, resume, identity_of(options, answers), progress)
    result = evaluate(model, batches, held_out, k)
    parameters = sum(p.numel() for p in model.parameters())
    ratio = parameters / _parameters(target)
    model.to(torch.bfloat16).save_pretrained(out)
    shutil.rmtree(resume)
    return {**result, "mbsu": result["block_efficiency"] / (ratio * k + 1), "parameters": float(parameters)}


@torch.no_grad()
def evaluate(model: Any, batches: Batches, indices: Indices, k: int) -> dict[str, float]:
    """Return `agreement` and `block_efficiency` of greedy drafts of length k on the chosen answers."""
    right, taus = [], []
    for batch in batches.batches(indices):
        matches = (_logits(model, batch).argmax(-1) == batch.answer_tokens).cpu().numpy()
        for answer in np.split(matches, np.cumsum(batch.is_answer.sum(1).cpu().numpy())[:-1]):
            right.append(answer)
            taus.append(replay_matches(answer, k).acceptance_length)
    return {"agreement": float(np.concatenate(right).mean()), "block_efficiency": float(np.mean(taus))}


def _begin(target: Path, options: DistillOptions) -> Any:
    if options.start is None:
        return make_drafter(target, options.size)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(options.start, dtype=torch.float32)


def _parameters(target: Path) -> int:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(target)).num_parameters())


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits [m, vocabulary] at the positions before the answers' tokens."""
    with torch.autocast(batch.ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=batch.ids).last_hidden_state[:, :-1]
        logits: torch.Tensor = model.lm_head(hidden[batch.is_answer])
        return logits
