"""`draftpick drafters distill`, `losses`, `eagle`: a corpus, training, and the results next to the weights."""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from draftpick.deploy.workflows.drafter_corpus import Corpus, ProgressCallback, answers_of, target_folder, teacher_of
from draftpick.deploy.workflows.model_card import model_card


def run_distill(corpus: Corpus, options: Any, out: Path, progress: ProgressCallback) -> dict[str, Any]:
    """Distil a drafter and write it to `out` with `training.json` and a model card; return the former."""
    from draftpick.engines.drafters.training.distill import distill

    answers = _answers(corpus, progress)
    teacher = None if options.loss == "ce" else teacher_of(corpus, progress)
    on_progress = _progress_callback(f"training {out.name} with {options.loss}", progress)
    result = distill(target_folder(corpus.target), answers, teacher, out, options, on_progress)
    return _write("An independent draft model", corpus, options, result, out)


def run_eagle(corpus: Corpus, options: Any, out: Path, progress: ProgressCallback) -> dict[str, Any]:
    """Train an EAGLE-3 head, with the outputs of `run_distill`."""
    from transformers import AutoConfig

    from draftpick.engines.drafters.training.eagle3 import feature_layers, train

    target, answers = target_folder(corpus.target), _answers(corpus, progress)
    layers = feature_layers(AutoConfig.from_pretrained(target).num_hidden_layers)
    teacher = teacher_of(corpus, progress, layers)
    result = train(target, answers, teacher, out, options, _progress_callback("training", progress))
    return _write("An EAGLE-3 head", corpus, options, result, out)


def compare_losses(
    corpus: Corpus, options: Any, out: Path, losses: Sequence[str], progress: ProgressCallback
) -> dict[str, dict[str, float]]:
    """Train one drafter with `ce`, then fine-tune it with each loss for the same time; return metrics by loss.

    Finished drafters of an interrupted comparison are reused.
    """
    start = out / "start"
    slower = replace(options.fit, learning_rate=options.fit.learning_rate / 4)
    runs = {loss: replace(options, loss=loss, start=start, fit=slower) for loss in losses}
    results = {}
    for name, tuned in {"start": replace(options, loss="ce"), **runs}.items():
        done = _done(corpus, tuned, out / name)
        results[name] = done or run_distill(corpus, tuned, out / name, progress)
    return {
        name: {key: r[key] for key in ("agreement", "block_efficiency", "mbsu", "parameters")}
        for name, r in results.items()
    }


def _answers(corpus: Corpus, progress: ProgressCallback) -> Any:
    what, prompts = "the target's answers", f"{sum(map(len, corpus.parts()))} prompts"
    progress(what, 0.0, prompts)
    answers = answers_of(corpus, progress)
    progress(what, 1.0, prompts)
    return answers


def _progress_callback(what: str, progress: ProgressCallback) -> Callable[[float, float, float], None]:
    return lambda done, loss, tau: progress(what, done, f"loss {loss:.3f}, tau {tau:.2f}")


def _asked(corpus: Corpus, options: Any) -> dict[str, Any]:
    fields = {"corpus": corpus.as_json(), "options": asdict(options)}
    return dict(json.loads(json.dumps(fields, default=lambda path: path.name)))


def _done(corpus: Corpus, options: Any, out: Path) -> dict[str, Any] | None:
    """The result of an earlier run with the same options in `out`, if any."""
    result_file = out / "training.json"
    result = json.loads(result_file.read_text()) if result_file.is_file() else {}
    return result if _asked(corpus, options).items() <= result.items() else None


def _write(what: str, corpus: Corpus, options: Any, result: dict[str, Any], out: Path) -> dict[str, Any]:
    result |= {**_asked(corpus, options), "python": platform.python_version()}
    (out / "training.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / "README.md").write_text(model_card(out.name, what, result))
    return result
