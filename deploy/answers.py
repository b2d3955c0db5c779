"""The target's own answers to prompts, made once with vLLM and kept in the cache folder."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engines.config import EMBEDDED
from engines.drafters.answers import Answers, cache_key, generate
from engines.drafters.rows import Tokens
from engines.embedded import cache_dir, prepare_target

_ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 2 * 2**30, "max_num_seqs": 128}


def target_folder(target: str) -> Path:
    """Where the target's checkpoint lies; prepares the embedded one."""
    return prepare_target() if target == EMBEDDED else Path(target)


def answers_of(target: str, prompts: Sequence[str], *, max_tokens: int, seed: int) -> Answers:
    """Greedy answers; the same question is answered once."""
    path = target_folder(target)
    cached = cache_dir() / "answers" / f"{cache_key(path, prompts, [0.0], max_tokens, seed)}.npz"
    if not cached.is_file():
        generate(path, prompts, [0.0], max_tokens=max_tokens, seed=seed, **_ENGINE).save(cached)
    return Answers.load(cached)


def some_prompts(path: Path, kind: str | None, n: int, seed: int) -> list[str]:
    """At most `n` prompts of a JSONL file, of one kind alone where it is given, in an order shuffled by `seed`."""
    from policy_training.workloads import read_jsonl

    texts = [p.text for p in read_jsonl(path) if kind is None or p.kind == kind]
    if not texts:
        raise ValueError(f"{path} holds no prompt" + (f" of kind {kind!r}" if kind else ""))
    random.Random(seed).shuffle(texts)
    return texts[:n]


def make_corpus(
    texts: Sequence[Path], sequences: Sequence[Tokens], target: Path, out: Path, num_bigrams: int
) -> dict[str, int]:
    """Write the starting table of text files and token sequences; returns its size."""
    from transformers import AutoConfig, AutoTokenizer

    from engines.drafters.trigram_table import save_table, table_of

    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenized = [
        np.asarray(tokenizer(path.read_text(), add_special_tokens=False).input_ids, np.int32) for path in texts
    ]
    table = table_of([*tokenized, *sequences], num_bigrams)
    save_table(table, out, AutoConfig.from_pretrained(target).vocab_size)
    return {"tokens": sum(len(s) for s in (*tokenized, *sequences)), "bigrams": int((table.keys >= 0).sum())}
