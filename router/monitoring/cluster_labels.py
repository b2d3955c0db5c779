"""Names of a policy's clusters of requests, from their characteristic features; uses no text."""

from itertools import count

import numpy as np

from draftpick.router.features.lexical import FEATURES
from draftpick.router.policies.clusters import Clusters

_MIN_DEVIATION = 0.5
"""Minimum deviations from the mean cluster for a label."""
_SMALLEST = 0.1
_USUAL_WORDS = 3
_WORDS: dict[str, tuple[str, str]] = {
    "temperature": ("greedy", "sampled"),
    "log_max_tokens": ("short answers", "long answers"),
    "log_chars": ("short prompt", "long prompt"),
    "log_turns": ("", "many turns"),
    "code_share": ("", "code"),
    "digit_share": ("", "numbers"),
    "non_ascii_share": ("", "other scripts"),
    "repetition": ("", "repetitive"),
    "asks_edit": ("", "edit"),
    "asks_whole": ("", "whole text"),
    "asks_new": ("", "new text"),
    "asks_json": ("", "JSON or table"),
}
"""What a low and a high value of a feature of `draftpick.router.features.lexical` means; empty: a low one means
nothing."""


def cluster_names(clusters: Clusters | None) -> list[str]:
    """One name per bin of `Clusters.assign`, all different: the clusters, followed by the outliers of each."""
    if clusters is None:
        return ["all requests"]
    values = clusters.centres[:, -len(FEATURES) :]
    spread = np.maximum(values.std(0), _SMALLEST)
    names: list[str] = []
    for deviations in ((values - values.mean(0)) / spread).tolist():
        names.append(_name(deviations, names))
    return [*names, *(f"unusual; nearest to: {name}" for name in names)]


def _name(deviations: list[float], used_names: list[str]) -> str:
    """The labels of the largest deviations, as many as distinguish it from the used names."""
    words = _words(deviations)
    for n in range(min(_USUAL_WORDS, len(words)), len(words) + 1):
        if (name := ", ".join(words[:n]) or "ordinary") not in used_names:
            return name
    return next(made for i in count(2) if (made := f"{name} ({i})") not in used_names)


def _words(deviations: list[float]) -> list[str]:
    far = sorted(zip(deviations, FEATURES, strict=True), key=lambda pair: -abs(pair[0]))
    said = (_WORDS[name][value > 0] for value, name in far if abs(value) >= _MIN_DEVIATION)
    return [word for word in said if word]
