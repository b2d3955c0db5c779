"""Replay beside a running fleet: which engines are asked, and what is made of their answers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftpick.deploy.workflows import replay_check as replay
from draftpick.deploy.workflows.replay_check import LiveAnswer, compare, replay_fleet
from draftpick.engines.config import Drafter
from draftpick.policy_training.workloads import Prompt
from draftpick.router.config.router_config import DraftpickConfig

SUFFIX = {"method": "suffix", "num_speculative_tokens": 8, "suffix_decoding_max_cached_requests": 0}
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
PROMPTS = [Prompt("chat-0", "chat", "one"), Prompt("edit-0", "edit", "two")]


def live(kind: str, acceptance_length: float) -> LiveAnswer:
    """An answer that says its prompt again: all of it is copied once the first two tokens are there."""
    text = np.arange(10, 20, dtype=np.int32)
    return LiveAnswer(kind, text, text, acceptance_length)


def test_engines_that_run_and_can_be_replayed_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def arms_of(url: str) -> list[str]:
        return ["plain", "suffix", "medusa", "pool/none", "pool/copy"]

    def ask(
        url: str, model: str, arm: str, prompts: Sequence[Prompt], on_progress: Callable[[], None]
    ) -> list[LiveAnswer]:
        for _ in prompts:
            on_progress()
        return [live(p.kind, 4.0) for p in prompts]

    monkeypatch.setattr(replay, "arms_of", arms_of)
    monkeypatch.setattr(replay, "model_of", lambda url: "m")
    monkeypatch.setattr(replay, "ask", ask)
    engines = [
        {"name": "plain"},
        {"name": "suffix", "drafter": SUFFIX},
        {"name": "ngram", "drafter": NGRAM},
        {"name": "medusa", "drafter": {"method": "medusa", "model": "a/b"}},
        {"name": "pool", "drafters": [{"name": "copy", **SUFFIX}, {"name": "stopped", **NGRAM}]},
    ]
    fleet = DraftpickConfig.model_validate(
        {"target": {"name": "m", "source": "a/b"}, "engines": engines, "router": {"default_engine": "plain"}}
    )
    told: list[tuple[str, float]] = []
    results = replay_fleet(fleet, "http://127.0.0.1:1", PROMPTS, lambda what, done, how: told.append((what, done)))
    assert list(results) == ["suffix", "pool/copy"]
    assert results["pool/copy"] == results["suffix"]
    assert told == [(arm, done / 4) for arm in results for done in range(1, 5)]


def test_a_drafter_of_a_pool_is_judged_by_what_full_drafts_would_have_had() -> None:
    speculation = {"mean_acceptance_length": 1.5, "drafters": {"copy": {"scored": 9, "tau": 2.5}, "other": {}}}
    answer = {"metrics": {"speculative_decoding": speculation}}
    lengths = [replay._acceptance_length(arm, answer) for arm in ("suffix", "pool/copy", "pool/other", "pool/gone")]
    assert lengths == [1.5, 2.5, None, None]


def test_replayed_and_live_acceptance(tmp_path: Path) -> None:
    drafter = Drafter.model_validate(SUFFIX)
    replayed = compare(drafter, "a/b", [live("chat", 4.0)], lambda: None)["replayed"]
    result: dict[str, Any] = compare(drafter, "a/b", [live("chat", replayed), live("edit", 2 * replayed)], lambda: None)
    assert result["mean_error"].value == pytest.approx(0.25)
    assert result["by_kind"] == {"chat": replayed, "edit": replayed}
    assert result["by_length"][8] == replayed > result["by_length"][1] > 1


def test_a_suffix_cache_over_requests_cannot_be_replayed() -> None:
    drafter = Drafter.model_validate({"method": "suffix"})
    with pytest.raises(ValueError, match="max_cached_requests to 0"):
        compare(drafter, "a/b", [live("chat", 4.0)], lambda: None)
