"""`draftpick drafters distill`: prompts, the target's answers (cached), training, model card."""

import json
import platform
from pathlib import Path
from typing import Any

from deploy.answers import answers_of, some_prompts, target_folder


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

    texts = some_prompts(prompts, kind, n, seed)
    answers = answers_of(target, texts, max_tokens=max_tokens, seed=seed)
    options = DistillOptions(minutes=minutes, seed=seed)
    result: dict[str, Any] = distill(target_folder(target), answers, out, options, progress)
    result |= {"prompts": len(texts), "kind": kind, "seed": seed, "max_tokens": max_tokens, "source": prompts.name}
    (out / "training.json").write_text(json.dumps({**result, "python": platform.python_version()}, indent=2) + "\n")
    return result
