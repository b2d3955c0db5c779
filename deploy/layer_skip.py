"""`draftpick drafters layer-skip`: searches a cut of the target, exports it, heals it, and draws the search."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.corpus import Corpus, Progress, answers_of, target_folder
from deploy.distill import run_distill
from deploy.plots import plot_search


def run_layer_skip(
    corpus: Corpus, out: Path, *, trials: int, heal_minutes: float, progress: Progress
) -> dict[str, Any]:
    """Search, export and heal; returns the best choice, and the drafter's metrics after healing where it was healed."""
    from engines.drafters.distill import DistillOptions
    from engines.drafters.fit import FitOptions
    from engines.drafters.layer_skip import SearchOptions, export, search

    answers, target = answers_of(corpus), target_folder(corpus.target)

    def told(number: int, trial: Any, best: Any) -> None:
        progress("search", number / trials, f"best {best.speedup:.2f}x with {best.layers} layers")

    best, tried = search(target, answers, SearchOptions(trials=trials, seed=corpus.seed), told)
    out.mkdir(parents=True, exist_ok=True)
    cut = out / "cut"
    export(target, best, cut)
    plot_search([trial.speedup for trial in tried], best.attention, best.mlp, out / "search.png")
    result: dict[str, Any] = {"best": {**asdict(best), "layers": best.layers}, "drafter": str(cut)}
    if heal_minutes > 0:
        fit = FitOptions(learning_rate=3e-4, epochs=100, minutes=heal_minutes, seed=corpus.seed)
        options = DistillOptions(loss="kl", start=cut, num_speculative_tokens=best.num_speculative_tokens, fit=fit)
        result |= {"healed": run_distill(corpus, options, out / "healed", progress), "drafter": str(out / "healed")}
    (out / "search.json").write_text(json.dumps({**result, "trials": [asdict(t) for t in tried]}, indent=1) + "\n")
    return result
