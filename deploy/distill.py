"""`draftpick drafters distill`: prompts, the target's answers (cached), training, model card."""

import json
import platform
import random
from pathlib import Path
from typing import Any

from engines.config import EMBEDDED
from engines.drafters.answers import Answers, cache_key, generate
from engines.embedded import cache_dir, prepare_target
from policy_training.workloads import read_jsonl

_ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 2 * 2**30, "max_num_seqs": 128}


def run_distill(
    prompts: Path,
    out: Path,
    *,
    target: str,
    kind: str | None,
    n: int,
    max_tokens: int,
    minutes: float,
    seed: int,
    progress: Any,
) -> dict[str, Any]:
    """Distil a drafter for `target` and write it to `out`; returns its size and its agreement with the target."""
    from engines.drafters.distill import DistillOptions, distill

    path = prepare_target() if target == EMBEDDED else Path(target)
    texts = _texts(prompts, kind, n, seed)
    cached = cache_dir() / "answers" / f"{cache_key(path, texts, [0.0], max_tokens, seed)}.npz"
    if not cached.is_file():
        generate(path, texts, [0.0], max_tokens=max_tokens, seed=seed, **_ENGINE).save(cached)
    options = DistillOptions(minutes=minutes, seed=seed)
    result: dict[str, Any] = distill(path, Answers.load(cached), out, options, progress)
    result |= {"prompts": len(texts), "kind": kind, "seed": seed, "max_tokens": max_tokens, "source": prompts.name}
    (out / "training.json").write_text(json.dumps({**result, "python": platform.python_version()}, indent=2) + "\n")
    return result


def _texts(prompts: Path, kind: str | None, n: int, seed: int) -> list[str]:
    texts = [p.text for p in read_jsonl(prompts) if kind is None or p.kind == kind]
    if not texts:
        raise ValueError(f"{prompts} holds no prompt" + (f" of kind {kind!r}" if kind else ""))
    random.Random(seed).shuffle(texts)
    return texts[:n]
