"""The model card of trained weights: content, training data, and results."""

from pathlib import Path
from typing import Any

from draftpick.deploy.workflows.results import command_line
from draftpick.engines.config import EMBEDDED
from draftpick.engines.models.embedded import TARGET_NAME

_OF_TRAINING = ("corpus", "options", "parameters", "python")


def model_card(name: str, what: str, result: dict[str, Any], command: str = "") -> str:
    """Return the card as Markdown from the content of `training.json`."""
    corpus, options = result["corpus"], result["options"]
    temperatures = " and ".join(f"{t:g}" for t in corpus["temperatures"])
    prompts = ", ".join(f"`{source}`" for source in corpus["prompts"])
    kinds = f" of kind {', '.join(corpus['kinds'])}" if corpus["kinds"] else ""
    checksums = corpus.get("sha256", {})
    held_out = {key: value for key, value in result.items() if key not in _OF_TRAINING}
    rows = {
        "parameters": f"{result['parameters'] / 1e6:.2f} M, bfloat16",
        "trained on": f"the target's own answers (at most {corpus['max_tokens']} tokens, temperature {temperatures}) "
        f"to prompts of {prompts}{kinds}; of a source without a number at most {corpus['n']} of a kind",
        **({"sha256": ", ".join(f"{name} {value}" for name, value in checksums.items())} if checksums else {}),
        "training": ", ".join(f"{key} {value}" for key, value in _flat(options)),
        "on held-out answers": ", ".join(f"{key} {value:.3f}" for key, value in held_out.items()),
        "command": f"`{command or command_line()}`",
    }
    target = TARGET_NAME if corpus["target"] == EMBEDDED else Path(corpus["target"]).name
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"# Drafter `{name}`\n\n{what} for {target}.\n\n| | |\n|---|---|\n{table}\n"


def _flat(options: dict[str, Any]) -> list[tuple[str, Any]]:
    """Flatten nested options to one row, without unset ones."""
    rows: list[tuple[str, Any]] = []
    for key, value in options.items():
        if isinstance(value, dict):
            rows += _flat(value)
        elif value is not None and value is not False:
            rows.append((key, value))
    return [(key.replace("_", " "), value) for key, value in rows]
