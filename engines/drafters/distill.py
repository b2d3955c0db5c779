"""Trains an independent small drafter on the target's own answers (arXiv 2403.00858, its first stage: cross-entropy).

The drafter is a Llama with the target's tokenizer and key-value shape; its tied embedding starts as the target's,
projected on its leading principal directions.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from engines.drafters.answers import Answers

Progress = Callable[[float, float, float], None]
"""Called with (share done 0 to 1, training loss, validation agreement of the last check)."""


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """Size of the drafter and how it is trained."""

    hidden: int = 168
    layers: int = 2
    intermediate: int = 672
    epochs: int = 6
    batch_tokens: int = 6144
    learning_rate: float = 2e-3
    minutes: float = 60.0
    seed: int = 0


def distill(target: Path, answers: Answers, out: Path, options: DistillOptions, progress: Progress) -> dict[str, float]:
    """Train and write a drafter that vLLM serves as `draft_model`; returns its agreement with the target by position.

    `agreement`: share of the target's greedy tokens that the drafter predicts, on held-out answers.
    """
    torch.manual_seed(options.seed)
    model = make_drafter(target, options)
    order = np.random.default_rng(options.seed).permutation(len(answers))
    held_out, fitted = order[: max(8, len(order) // 40)], order[max(8, len(order) // 40) :]
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01, betas=(0.9, 0.95))
    started, agreement = time.monotonic(), 0.0
    for epoch in range(options.epochs):
        batches = list(_batches(answers, fitted, options.batch_tokens, options.seed + epoch))
        for i, batch in enumerate(batches):
            by_time = (time.monotonic() - started) / (60 * options.minutes)
            done = max(by_time, (epoch + i / len(batches)) / options.epochs)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * min(1, (1 + i + epoch * len(batches)) / 50) * _cosine(done)
            loss = _loss(model, *batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if i % 50 == 49:
                agreement = evaluate(model, answers, held_out, options)
            progress(done, loss.item(), agreement)
    agreement = evaluate(model, answers, held_out, options)
    model.to(torch.bfloat16).save_pretrained(out)
    return {"agreement": agreement, "parameters": float(sum(p.numel() for p in model.parameters()))}


def make_drafter(target: Path, options: DistillOptions) -> Any:
    """An untrained drafter with the target's vocabulary, rope and key-value heads."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    base = AutoConfig.from_pretrained(target)
    config = LlamaConfig(
        vocab_size=base.vocab_size,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=base.num_key_value_heads,
        num_key_value_heads=base.num_key_value_heads,
        head_dim=base.head_dim,
        max_position_embeddings=base.max_position_embeddings,
        rms_norm_eps=1e-5,
        rope_parameters=base.rope_parameters,
        tie_word_embeddings=True,
        bos_token_id=base.bos_token_id,
        eos_token_id=base.eos_token_id,
        pad_token_id=base.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    rows = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).get_input_embeddings().weight.detach()
    centred = rows - rows.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -options.hidden :]
    projected = centred @ directions
    model.get_input_embeddings().weight.data.copy_(projected * (0.05 / projected.std()))
    return model


def _cosine(done: float) -> float:
    return 0.05 + 0.95 * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def _batches(
    answers: Answers, chosen: np.ndarray[Any, Any], batch_tokens: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(token ids [b, t], labels [b, t] with -100 where not an answer's token) of sequences of like length."""
    lengths = np.diff(answers.starts)
    rng = np.random.default_rng(seed)
    by_length = sorted(chosen.tolist(), key=lambda i: (lengths[i] // 16, rng.random()))
    groups: list[list[int]] = [[]]
    for i in by_length:
        if groups[-1] and lengths[i] * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
        groups[-1].append(i)
    for g in rng.permutation(len(groups)):
        yield _padded(answers, groups[g])


def _padded(answers: Answers, group: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [answers.tokens[answers.starts[i] : answers.starts[i + 1]] for i in group]
    longest = max(len(row) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), -100, dtype=torch.long)
    for r, (i, row) in enumerate(zip(group, rows, strict=True)):
        ids[r, : len(row)] = torch.from_numpy(row.astype(np.int64))
        labels[r, answers.answer_at[i] : len(row)] = ids[r, answers.answer_at[i] : len(row)]
    return ids, labels


def _logits(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [m, vocabulary] and labels [m] of the positions before an answer's tokens."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        mask = wanted != -100
        return model.lm_head(hidden[mask]), wanted[mask]


def _loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits, wanted = _logits(model, ids, labels)
    return cross_entropy(logits.float(), wanted)


@torch.no_grad()
def evaluate(model: Any, answers: Answers, chosen: np.ndarray[Any, Any], options: DistillOptions) -> float:
    """Share of the target's tokens in held-out answers that the drafter ranks first."""
    right = total = 0
    for ids, labels in _batches(answers, chosen, options.batch_tokens, 0):
        logits, wanted = _logits(model, ids, labels)
        right += int((logits.argmax(-1) == wanted).sum())
        total += len(wanted)
    return right / max(total, 1)
