"""The target's own answers, generated in batches with vLLM and cached: the training data of drafters."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Responses:
    """Token ids of prompts and answers. `tokens` is flat; sequence i is `tokens[starts[i]:starts[i + 1]]`.

    `answer_at[i]` is the start of the answer in sequence i (the tokens before it are the chat-templated prompt).
    """

    tokens: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    answer_at: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.answer_at)

    def answer_tokens(self) -> list[npt.NDArray[np.int32]]:
        """Token ids of the answers."""
        return [
            self.tokens[start + at : end]
            for start, at, end in zip(self.starts[:-1], self.answer_at, self.starts[1:], strict=True)
        ]

    def prompt_tokens(self) -> list[npt.NDArray[np.int32]]:
        """Token ids of the prompts."""
        return [self.tokens[start : start + at] for start, at in zip(self.starts[:-1], self.answer_at, strict=True)]

    @classmethod
    def join(cls, parts: "Sequence[Responses]") -> "Responses":
        """Concatenate in order."""
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([part.answer_at for part in parts]),
        )


def weight_files(folder: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and modification time of a checkpoint's weight files, which identify the model at a path."""
    states = ((path.name, path.stat()) for path in sorted(folder.glob("*.safetensors")))
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One chat: its messages (`role`, `content`), the last from the user, and how to answer it."""

    messages: Sequence[Mapping[str, str]]
    temperature: float
    max_tokens: int
    top_p: float = 1.0


class ResponseGenerator:
    """The target in vLLM, in this process, for batch generation."""

    def __init__(self, target: Path, *, seed: int, **engine: Any) -> None:
        # In this process: a separate engine process would spin on one core while the worker computes on the others.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # vLLM logs to stdout, which belongs to the caller.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        import torch
        from vllm import LLM

        set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
        engine = {"max_model_len": 2048, "max_num_seqs": 128, **engine}
        self._longest: int = engine["max_model_len"]
        self._llm = LLM(model=str(target), seed=seed, **engine)
        # vLLM sets one thread and replaces this function by a no-op.
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)

    def __call__(self, requests: Sequence[GenerationRequest]) -> tuple[list[int], Responses]:
        """Return (indices of the answered prompts, answers); overlong prompts are skipped with a warning."""
        from vllm import SamplingParams

        template = self._llm.get_tokenizer().apply_chat_template
        prompts = [template([dict(m) for m in ask.messages], add_generation_prompt=True).input_ids for ask in requests]
        fitting = [i for i, p in enumerate(prompts) if len(p) + requests[i].max_tokens <= self._longest]
        if len(fitting) < len(prompts):
            warnings.warn(f"{len(prompts) - len(fitting)} prompts exceed max_model_len and are skipped", stacklevel=2)
        asked: Any = [{"prompt_token_ids": prompts[i]} for i in fitting]
        params = [
            SamplingParams(temperature=ask.temperature, top_p=ask.top_p, max_tokens=ask.max_tokens)
            for ask in (requests[i] for i in fitting)
        ]
        return fitting, _responses(self._llm.generate(asked, params, use_tqdm=False))


def _responses(outputs: Sequence[Any]) -> Responses:
    sequences = [(list(o.prompt_token_ids or ()), list(o.outputs[0].token_ids)) for o in outputs]
    flat = np.asarray([t for prompt, answer in sequences for t in prompt + answer], np.int32)
    lengths = [len(prompt) + len(answer) for prompt, answer in sequences]
    return Responses(
        flat, np.concatenate([[0], np.cumsum(lengths)]), np.asarray([len(p) for p, _ in sequences], np.int32)
    )
