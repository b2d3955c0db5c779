"""`draftpick drafters layer-skip`: searches the sub-layers to drop, exports the drafter, distils it, and plots the
search."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from draftpick.deploy.plots.demo import plot_search
from draftpick.deploy.workflows.drafter_corpus import Corpus, ProgressCallback, answers_of, target_folder
from draftpick.deploy.workflows.drafter_training import run_distill


def run_layer_skip(
    corpus: Corpus, out: Path, *, trials: int, heal_minutes: float, progress: ProgressCallback
) -> dict[str, Any]:
    """Search, export and distil; return the best choice, and the drafter's metrics after distillation, if any.

    A finished search with an interrupted distillation is not repeated.
    """
    from draftpick.engines.drafters.training.distill import DistillOptions
    from draftpick.engines.drafters.training.trainer import FitOptions

    search_file, cut = out / "search.json", out / "cut"
    asked = {"corpus": json.loads(json.dumps(corpus.as_json())), "trials": trials}
    found = json.loads(search_file.read_text()) if search_file.is_file() else {}
    if found.get("asked") != asked:
        found = {"asked": asked, **_search(corpus, trials, out, cut, progress)}
        out.mkdir(parents=True, exist_ok=True)
        search_file.write_text(json.dumps(found, indent=1) + "\n")
    best = found["best"]
    result: dict[str, Any] = {"best": best, "drafter": str(cut)}
    if heal_minutes > 0:
        k = best["num_speculative_tokens"]
        fit = FitOptions(learning_rate=3e-4, epochs=100, minutes=heal_minutes, seed=corpus.seed)
        options = DistillOptions(loss="kl", start=cut, num_speculative_tokens=k, fit=fit)
        result |= {"healed": run_distill(corpus, options, out / "healed", progress), "drafter": str(out / "healed")}
    return result


def _search(corpus: Corpus, trials: int, out: Path, cut: Path, progress: ProgressCallback) -> dict[str, Any]:
    """Search, write the best drafter and the plot; return the best choice and all trials."""
    from draftpick.engines.drafters.training.layer_skip import SearchOptions, export, search

    def tell(number: int, trial: Any, best: Any) -> None:
        progress("search", number / trials, f"best {best.speedup:.2f}x with {best.layers} layers")

    answers, target = answers_of(corpus), target_folder(corpus.target)
    best, tried = search(target, answers, SearchOptions(trials=trials, seed=corpus.seed), tell)
    cut.mkdir(parents=True, exist_ok=True)
    export(target, best, cut)
    plot_search([trial.speedup for trial in tried], best.attention, best.mlp, out / "search.png")
    return {"best": {**asdict(best), "layers": best.layers}, "trials": [asdict(trial) for trial in tried]}
