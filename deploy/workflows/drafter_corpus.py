"""The training data of drafters: prompts, the target's own answers and its outputs; computed once and cached."""

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
from draftpick.engines.drafters.training.responses import (
    GenerationRequest,
    ResponseGenerator,
    Responses,
    cache_key,
    weight_files,
)
from draftpick.engines.models.embedded import TARGET_NAME, prepare_target
from draftpick.policy_training.workloads import Message, Prompt, PromptSource, Selection
from draftpick.policy_training.workloads.splits import Split

ProgressCallback = Callable[[str, float, str], None]
"""Called with (operation, fraction done, status)."""

_ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 2 * 2**30, "max_num_seqs": 128}
_GENERATED_SEED = 10_000
"""First seed of training prompts; tests and benchmarks use smaller ones."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Prompts of sources (`FILE[:kind][@n]`, `generated`): at most `n` per kind and source; no `kinds` means all.

    Answer i of each part is decoded at `temperatures[i % len(temperatures)]`. `split`: only prompts of this split.
    """

    prompts: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    n: int = 1000
    max_tokens: int = 192
    temperatures: tuple[float, ...] = (0.0,)
    target: str = EMBEDDED
    seed: int = 0
    split: Split | None = None

    def parts(self) -> list[list[Prompt]]:
        """Prompts by kind and source, shuffled by seed. Raises ValueError if there are none."""
        parts: list[list[Prompt]] = []
        seen: set[tuple[tuple[Message, ...], str]] = set()
        options = Selection(self.seed, _GENERATED_SEED + self.seed, self.kinds, split=self.split)
        for part in (part for text in self.prompts for part in PromptSource.parse(text).parts(self.n, options)):
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
        """Fields for a model card; files by name only."""
        return {**asdict(self), "prompts": [Path(source).name for source in self.prompts]}


def target_folder(target: str) -> Path:
    """Folder of the target's checkpoint; creates the embedded one."""
    return prepare_target() if target == EMBEDDED else Path(target)


def answers_of(corpus: Corpus) -> Responses:
    """The target's answers, in the order of the parts; each part is generated once."""
    target, parts = target_folder(corpus.target), corpus.parts()
    files = [cache_dir() / "answers" / f"{key}.npz" for key in _keys(corpus, target, parts)]
    missing = {file: part for file, part in zip(files, parts, strict=True) if not file.is_file()}
    if missing:
        asks = [
            [
                GenerationRequest(p.messages, t, corpus.max_tokens)
                for p, t in zip(part, cycle(corpus.temperatures), strict=False)
            ]
            for part in missing.values()
        ]
        answer = ResponseGenerator(target, seed=corpus.seed, **_ENGINE)
        for file, part in zip(missing, asks, strict=True):
            answer(part)[1].save(file)  # save each part, so that an interrupt loses only one
    return Responses.join([Responses.load(file) for file in files])


def teacher_of(corpus: Corpus, progress: ProgressCallback, layers: Sequence[int] = ()) -> Any:
    """The `TargetOutputs` of the corpus's existing answers; with hidden states of these target layers."""
    import torch

    from draftpick.engines.drafters.training.target_outputs import TargetOutputs, collect_target_outputs

    target, parts = target_folder(corpus.target), corpus.parts()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teachers = []
    for number, key in enumerate(_keys(corpus, target, parts), start=1):
        folder = cache_dir() / "teachers" / "-".join([key, *map(str, layers)])
        if not folder.is_dir():
            answers = Responses.load(cache_dir() / "answers" / f"{key}.npz")
            on_progress = partial(_report_progress, progress, f"the target's states, {number} of {len(parts)}")
            collect_target_outputs(target, answers, folder, on_progress, layers, device)
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


def _keys(corpus: Corpus, target: Path, parts: Sequence[Sequence[Prompt]]) -> list[str]:
    asked: Any = TARGET_NAME if corpus.target == EMBEDDED else [corpus.target, weight_files(target)]
    texts = [[prompt.messages if prompt.history else prompt.text for prompt in part] for part in parts]
    return [cache_key(asked, part, corpus.temperatures, corpus.max_tokens, corpus.seed) for part in texts]
