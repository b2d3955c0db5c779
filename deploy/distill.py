"""`draftpick drafters distill` and `losses`: prompts, the target's answers and probabilities (cached), training."""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deploy.answers import answers_of, some_prompts, target_folder
from engines.drafters.answers import Answers, cache_key
from engines.embedded import cache_dir

Progress = Callable[[str, float, str], None]
"""Called with (what is being done, share done, how it goes)."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a drafter is trained on: which prompts, how long the target's answers."""

    prompts: Path
    target: str
    kind: str | None
    n: int
    max_tokens: int
    seed: int


def run_distill(corpus: Corpus, options: Any, out: Path, progress: Progress) -> dict[str, Any]:
    """Distil a drafter and write it to `out`, with `training.json` beside the weights; returns what that says."""
    from engines.drafters.distill import distill

    texts, answers = answers_for(corpus, progress)
    teacher = None if options.loss == "ce" else _teacher(corpus, texts, answers, progress)
    result: dict[str, Any] = distill(
        target_folder(corpus.target), answers, teacher, out, options,
        lambda done, loss, tau: progress(f"training with {options.loss}", done, f"loss {loss:.3f}, tau {tau:.2f}"),
    )  # fmt: skip
    told = {**asdict(corpus), "prompts": corpus.prompts.name, "n": len(texts), "python": platform.python_version()}
    result |= {"corpus": told, "options": json.loads(json.dumps(asdict(options), default=lambda path: path.name))}
    (out / "training.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def compare_losses(
    corpus: Corpus, options: Any, out: Path, losses: Sequence[str], progress: Progress
) -> dict[str, dict[str, float]]:
    """One drafter trained with `ce`, then fine-tuned with each loss for as long again; metrics by loss."""
    start = out / "start"
    results = {"start": run_distill(corpus, replace(options, loss="ce"), start, progress)}
    for loss in losses:
        slower = replace(options.fit, learning_rate=options.fit.learning_rate / 4)
        tuned = replace(options, loss=loss, start=start, fit=slower)
        results[loss] = run_distill(corpus, tuned, out / loss, progress)
    return {
        name: {key: r[key] for key in ("agreement", "block_efficiency", "mbsu", "parameters")}
        for name, r in results.items()
    }


def answers_for(corpus: Corpus, progress: Progress) -> tuple[list[str], Answers]:
    """(prompts, the target's answers to them)."""
    texts = some_prompts(corpus.prompts, corpus.kind, corpus.n, corpus.seed)
    progress("the target's answers", 0.0, f"{len(texts)} prompts")
    return texts, answers_of(corpus.target, texts, max_tokens=corpus.max_tokens, seed=corpus.seed)


def _teacher(corpus: Corpus, texts: Sequence[str], answers: Answers, progress: Progress) -> Any:
    import torch

    from engines.drafters.teacher import Teacher, teach

    path = target_folder(corpus.target)
    key = cache_key(path, texts, [0.0], corpus.max_tokens, corpus.seed)
    cached = cache_dir() / "teachers" / f"{key}.npz"
    if not cached.is_file():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        teach(path, answers, lambda done, total: progress("the target's probabilities", done / total, ""), device).save(
            cached
        )
    return Teacher.load(cached)
