"""The data card: coverage of a dataset by arm, task and source, its dropped rows, and the files of its prompts."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from draftpick.engines.atomic_write import atomic_path
from draftpick.policy_training.data.dataset import Dataset, Measurement

_CARDS = "prompts.json"


def card(data: Dataset) -> dict[str, Any]:
    """Return counts and means that describe coverage."""
    arms = sorted({m.label for m in data.measurements})
    kinds = sorted({m.task for m in data.measurements})
    return {
        "requests": len({m.prompt_id for m in data.measurements}),
        "featurizers": data.featurizers,
        "arms": {arm: _row([m for m in data.measurements if m.label == arm]) for arm in arms},
        "kinds": {kind: _row([m for m in data.measurements if m.task == kind]) for kind in kinds},
        "sources": dict(Counter(source for source in _sources(data).values() if source).most_common()),
        "dropped": dict(sorted(data.dropped.items())),
    }


def save_prompt_cards(folder: Path, cards: Sequence[dict[str, Any]]) -> None:
    """Keep the cards of the files that the prompts of a dataset folder are from, next to those of earlier runs."""
    known = {card["sha256"]: card for card in (*load_prompt_cards(folder), *cards)}
    if known:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / _CARDS) as scratch:
            scratch.write_text(json.dumps(list(known.values()), indent=1) + "\n")


def load_prompt_cards(*paths: Path) -> list[dict[str, Any]]:
    """The cards of the files of prompts of these datasets; a Parquet file has none."""
    files = (path / _CARDS for path in paths)
    return [card for file in files if file.is_file() for card in json.loads(file.read_text())]


def _sources(data: Dataset) -> dict[str, str]:
    return {m.prompt_id: m.prompt_source for m in data.measurements}


def _row(some: list[Measurement]) -> dict[str, Any]:
    sources = Counter(m.source for m in some)
    good = [m for m in some if m.outcome.status == "ok"]
    tau = [m.outcome.acceptance_length or 1.0 for m in good]
    return {
        **{source: sources[source] for source in ("live", "replay", "record")},
        "failed": len(some) - len(good),
        "greedy": sum(m.temperature == 0 for m in some),
        "sampled": sum(m.temperature > 0 for m in some),
        "mean_tau": float(np.mean(tau)) if tau else 0.0,
        "mean_tokens": float(np.mean([m.outcome.output_tokens or 0 for m in good])) if good else 0.0,
    }
