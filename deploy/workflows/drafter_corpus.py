"""The training data of drafters: prompts, the target's own answers and its outputs; computed once and cached."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from draftpick.engines.cache_dir import cache_dir
from draftpick.engines.config import EMBEDDED
from draftpick.engines.drafters.request_tracking import Tokens
from draftpick.engines.drafters.training.answer_store import AnswerStore
from draftpick.engines.drafters.training.responses import (
    GenerationRequest,
    ResponseGenerator,
    Responses,
    weight_files,
)
from draftpick.engines.models.embedded import TARGET_NAME, prepare_target
from draftpick.policy_training.workloads import Message, Prompt, PromptSource, Selection
from draftpick.policy_training.workloads.sources import OnOverlap, overlapping
from draftpick.policy_training.workloads.splits import Split

ProgressCallback = Callable[[str, float, str], None]
"""Called with (operation, fraction done, status)."""

_ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 2 * 2**30, "max_num_seqs": 128}
_SHARD = 256
"""Prompts whose answers, and whose states, are written together: the most that an interrupt loses."""
_GENERATED_SEED = 10_000
"""First seed of training prompts; tests and benchmarks use smaller ones."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Prompts of sources (`FILE[:kind][@n]`, `generated`): at most `n` per kind and source; no `kinds` means all.

    Answer i of each part is decoded at `temperatures[i % len(temperatures)]`. `split`, `overlap`: see `Selection`.
    """

    prompts: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    n: int = 1000
    max_tokens: int = 192
    temperatures: tuple[float, ...] = (0.0,)
    target: str = EMBEDDED
    seed: int = 0
    split: Split | None = None
    overlap: OnOverlap = "fail"

    def parts(self) -> list[list[Prompt]]:
        """Prompts by kind and source, shuffled by seed. Raises ValueError if there are none."""
        parts: list[list[Prompt]] = []
        seen: set[tuple[tuple[Message, ...], str]] = set()
        options = Selection(self.seed, _GENERATED_SEED + self.seed, self.kinds, split=self.split, overlap=self.overlap)
        sources = [PromptSource.parse(source) for source in self.prompts]
        left_out = overlapping(sources, options)
        for part in (part for source in sources for part in source.parts(self.n, options, left_out)):
            # A duplicate prompt could be both trained on and held out.
            parts.append([])
            for prompt in part:
                if (conversation := (prompt.history, prompt.text)) not in seen:
                    seen.add(conversation)
                    parts[-1].append(prompt)
        parts = [part for part in parts if part]
        if not parts:
            raise ValueError(f"no prompts of kind {', '.join(self.kinds) or 'any'} in {', '.join(self.prompts)}")
        return parts

    def as_json(self) -> dict[str, Any]:
        """Fields for a model card; files by name and checksum."""
        files = [file for source in self.prompts if (file := PromptSource.parse(source).file()) is not None]
        checksums = {file.path.name: file.sha256 for file in files}
        return {**asdict(self), "prompts": [Path(source).name for source in self.prompts], "sha256": checksums}


def target_folder(target: str) -> Path:
    """Folder of the target's checkpoint; creates the embedded one."""
    return prepare_target() if target == EMBEDDED else Path(target)


def answers_of(corpus: Corpus, progress: ProgressCallback = lambda *_: None) -> Responses:
    """The target's answers, in the order of the parts; those that the cache lacks are generated, shard by shard."""
    store, requests = _store(corpus), [request for part in _requests(corpus) for request in part]
    missing = store.missing(requests)
    if missing:
        generator = ResponseGenerator(target_folder(corpus.target), seed=corpus.seed, **_ENGINE)
        total, tokens, started = len(requests), 0, time.monotonic()
        for at in range(0, len(missing), _SHARD):
            shard = missing[at : at + _SHARD]
            answered, answers = generator(shard)
            store.add(shard, answered, answers)
            tokens += len(answers.tokens) - int(answers.answer_at.sum())
            done = total - len(missing) + at + len(shard)
            rate = tokens / (time.monotonic() - started)
            progress("the target's answers", done / total, f"{done} of {total} prompts, {rate:.0f} tokens/s")
    return store.read(requests)


def teacher_of(corpus: Corpus, progress: ProgressCallback, layers: Sequence[int] = ()) -> Any:
    """The `TargetOutputs` of the corpus's existing answers; with hidden states of these target layers."""
    import torch

    from draftpick.engines.drafters.training.target_outputs import TargetOutputs, collect_target_outputs

    target, store = target_folder(corpus.target), _store(corpus)
    shards = [part[at : at + _SHARD] for part in _requests(corpus) for at in range(0, len(part), _SHARD)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teachers = []
    for number, shard in enumerate(shards, start=1):
        folder = cache_dir() / "teachers" / "-".join([store.key(shard), *map(str, layers)])
        if not folder.is_dir():
            on_progress = partial(_report_progress, progress, f"the target's states, {number} of {len(shards)}")
            collect_target_outputs(target, store.read(shard), folder, on_progress, layers, device)
        teachers.append(TargetOutputs.load(folder))
    return TargetOutputs.join(teachers)


def _report_progress(progress: ProgressCallback, what: str, done: int, total: int) -> None:
    progress(what, done / total, "")


def make_table(
    texts: Sequence[Path], sequences: Sequence[Tokens], target: Path, out: Path, num_bigrams: int
) -> dict[str, int]:
    """Write a tri-gram drafter's initial table from text files and token sequences; return its size."""
    from transformers import AutoConfig, AutoTokenizer

    from draftpick.engines.drafters.trigram.table import save_table, table_of

    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenized = [
        np.asarray(tokenizer(path.read_text(), add_special_tokens=False).input_ids, np.int32) for path in texts
    ]
    table = table_of([*tokenized, *sequences], num_bigrams)
    save_table(table, out, AutoConfig.from_pretrained(target).vocab_size)
    return {"tokens": sum(len(s) for s in (*tokenized, *sequences)), "bigrams": int((table.keys >= 0).sum())}


def _requests(corpus: Corpus) -> list[list[GenerationRequest]]:
    """The requests of each part."""
    return [
        [GenerationRequest(p.messages, t, corpus.max_tokens) for p, t in zip(part, cycle(corpus.temperatures))]
        for part in corpus.parts()
    ]


def _store(corpus: Corpus) -> AnswerStore:
    own = [corpus.target, weight_files(target_folder(corpus.target))]
    return AnswerStore(cache_dir() / "answers", TARGET_NAME if corpus.target == EMBEDDED else own, corpus.seed)
