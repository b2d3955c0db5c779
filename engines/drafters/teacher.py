"""The target's own distribution over its answers: computed once, kept as its likeliest tokens at each place."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.drafters.answers import Answers

TOP = 32
"""Tokens kept at each place; beyond the 32 likeliest a small target has a few per cent of its mass."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """For every answer token, in order: `tokens` [n, t] and `probabilities` [n, t], likeliest first.

    Answer i takes the rows `starts[i]:starts[i + 1]`.
    """

    tokens: npt.NDArray[np.int32]
    probabilities: npt.NDArray[np.float16]
    starts: npt.NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write all arrays to one `.npz`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, tokens=self.tokens, probabilities=self.probabilities, starts=self.starts)

    @classmethod
    def load(cls, path: Path) -> "Teacher":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            return cls(data["tokens"], data["probabilities"], data["starts"])


def teach(target: Path, answers: Answers, told: Callable[[int, int], None], device: str = "cpu") -> Teacher:
    """Run the target over its answers, one at a time; `told(done, total)` after each."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).to(device).eval()
    tokens, probabilities = [], []
    for i, (start, end, at) in enumerate(
        zip(answers.starts[:-1], answers.starts[1:], answers.answer_at, strict=True), start=1
    ):
        ids = torch.from_numpy(answers.tokens[start:end].astype(np.int64))[None].to(device)
        with torch.inference_mode():
            hidden = model.model(input_ids=ids).last_hidden_state[0, at - 1 : -1]
            top = model.lm_head(hidden).float().softmax(-1).topk(TOP)
        tokens.append(top.indices.cpu().numpy().astype(np.int32))
        probabilities.append(top.values.cpu().numpy().astype(np.float16))
        told(i, len(answers))
    lengths = [len(rows) for rows in tokens]
    return Teacher(np.concatenate(tokens), np.concatenate(probabilities), np.concatenate([[0], np.cumsum(lengths)]))
