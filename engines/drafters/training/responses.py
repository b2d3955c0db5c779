"""The target's own answers, generated in batch with vLLM and cached: what a drafter is trained on."""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.engines.atomic_write import atomic_path


@dataclass(frozen=True, slots=True)
class Responses:
    """Token ids of prompts and answers. `tokens` is flat; sequence i is `tokens[starts[i]:starts[i + 1]]`.

    `answer_at[i]` is where the answer begins inside sequence i (tokens before it are the chat-templated prompt).
    """

    tokens: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    answer_at: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.answer_at)

    def answer_tokens(self) -> list[npt.NDArray[np.int32]]:
        """Token ids of the answers alone."""
        return [
            self.tokens[start + at : end]
            for start, at, end in zip(self.starts[:-1], self.answer_at, self.starts[1:], strict=True)
        ]

    def prompt_tokens(self) -> list[npt.NDArray[np.int32]]:
        """Token ids of the prompts alone."""
        return [self.tokens[start : start + at] for start, at in zip(self.starts[:-1], self.answer_at, strict=True)]

    @classmethod
    def join(cls, parts: "Sequence[Responses]") -> "Responses":
        """All of them, in order."""
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([part.answer_at for part in parts]),
        )

    def save(self, path: Path) -> None:
        """Write all arrays to one `.npz`, which is there whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as scratch, scratch.open("wb") as file:
            np.savez_compressed(file, tokens=self.tokens, starts=self.starts, answer_at=self.answer_at)

    @classmethod
    def load(cls, path: Path) -> "Responses":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            return cls(data["tokens"], data["starts"], data["answer_at"])


def weight_files(folder: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of a checkpoint's weights: other weights at the same place are another model."""
    states = ((path.name, path.stat()) for path in sorted(folder.glob("*.safetensors")))
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def cache_key(target: Any, prompts: Sequence[str], temperatures: Sequence[float], max_tokens: int, seed: int) -> str:
    """A name for one generation: the same question gives the same name. `target` is anything that says which model."""
    text = json.dumps([target, list(prompts), list(temperatures), max_tokens, seed])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One single-turn chat to answer."""

    text: str
    temperature: float
    max_tokens: int


class ResponseGenerator:
    """The target in vLLM, in this process, ready to answer in batches."""

    def __init__(self, target: Path, *, seed: int, **engine: Any) -> None:
        # In this process: an engine process of its own would spin on one core while the worker computes on the others.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # vLLM logs to stdout, which is the caller's.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        import torch
        from vllm import LLM

        set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
        engine = {"max_model_len": 2048, "max_num_seqs": 128, **engine}
        self._longest: int = engine["max_model_len"]
        self._llm = LLM(model=str(target), seed=seed, **engine)
        # vLLM leaves one thread, and puts a function that does nothing in this one's place.
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)

    def __call__(self, requests: Sequence[GenerationRequest]) -> tuple[list[int], Responses]:
        """Places of the prompts that were answered, and the answers; the others are too long, which a warning says."""
        from vllm import SamplingParams

        template = self._llm.get_tokenizer().apply_chat_template
        prompts = [
            template([{"role": "user", "content": ask.text}], add_generation_prompt=True).input_ids for ask in requests
        ]
        fitting = [i for i, p in enumerate(prompts) if len(p) + requests[i].max_tokens <= self._longest]
        if len(fitting) < len(prompts):
            warnings.warn(f"{len(prompts) - len(fitting)} prompts are too long and left out", stacklevel=2)
        asked: Any = [{"prompt_token_ids": prompts[i]} for i in fitting]
        params = [
            SamplingParams(temperature=requests[i].temperature, max_tokens=requests[i].max_tokens) for i in fitting
        ]
        return fitting, _responses(self._llm.generate(asked, params, use_tqdm=sys.stderr.isatty()))


def _responses(outputs: Sequence[Any]) -> Responses:
    """Of vLLM's outputs."""
    sequences = [(list(o.prompt_token_ids or ()), list(o.outputs[0].token_ids)) for o in outputs]
    flat = np.asarray([t for prompt, answer in sequences for t in prompt + answer], np.int32)
    lengths = [len(prompt) + len(answer) for prompt, answer in sequences]
    return Responses(
        flat, np.concatenate([[0], np.cumsum(lengths)]), np.asarray([len(p) for p, _ in sequences], np.int32)
    )
