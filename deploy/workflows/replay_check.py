"""`draftpick drafters replay`: replays a fleet's own answers and compares with the acceptance of its engines.

Each drafter of a pool is pinned in turn, and compared by the acceptance length that the pool reports for drafts of full
length, since it drafts fewer tokens where they do not pay.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np

from draftpick.engines.arms import drafter_of
from draftpick.engines.config import Drafter
from draftpick.engines.drafters.acceptance import DrafterReplay
from draftpick.engines.drafters.replay import LENGTHS, replayer
from draftpick.engines.drafters.request_tracking import Tokens
from draftpick.engines.models.paths import target_path
from draftpick.engines.pool import report
from draftpick.policy_training.data.collect import arms_of, authorization, model_of
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import Prompt
from draftpick.router import headers
from draftpick.router.config.router_config import DraftpickConfig
from draftpick.router.request.meter import acceptance


@dataclass(frozen=True, slots=True)
class LiveAnswer:
    """One answer of a running engine: token ids, and tokens per decoding step as counted by the engine."""

    kind: str
    prompt: Tokens
    answer: Tokens
    acceptance_length: float


def replay_fleet(
    fleet: DraftpickConfig, url: str, prompts: Sequence[Prompt], progress: Callable[[str, float, str], None]
) -> dict[str, dict[str, Any]]:
    """Results of `compare` by replayable arm of the running fleet."""
    there, model = asyncio.run(arms_of(url)), model_of(url)
    results = {}
    drafters = [pair for engine in fleet.engines if engine.can_replay for pair in engine.drafter_of_arm().items()]
    for arm, drafter in drafters:
        if arm not in there or drafter is None:
            continue
        done = 0

        def advance(name: str = arm) -> None:
            nonlocal done
            done += 1
            progress(name, done / (2 * len(prompts)), "")

        answers = ask(url, model, arm, prompts, advance)
        results[arm] = compare(drafter, target_path(fleet.target), answers, advance)
    return results


def ask(url: str, model: str, arm: str, prompts: Sequence[Prompt], on_progress: Callable[[], None]) -> list[LiveAnswer]:
    """Greedy answers of one arm, one at a time. Raises ValueError for an engine that reports no acceptance."""
    answers = []
    with httpx.Client(base_url=url, timeout=600, headers={headers.ARM: arm, **authorization()}) as client:
        for prompt in prompts:
            body = {
                "model": model,
                **replace(prompt, temperature=0, top_p=1).request_fields,
                "return_token_ids": True,
            }
            reply = client.post("/v1/chat/completions", json=body)
            reply.raise_for_status()
            fields = reply.json()
            length = _acceptance_length(arm, fields)
            if length is None:
                raise ValueError(f"engine {arm!r} reports no acceptance length: set `per_request_spec_decode_metrics`")
            ids = [np.asarray(i, np.int32) for i in (fields["prompt_token_ids"], fields["choices"][0]["token_ids"])]
            answers.append(LiveAnswer(prompt.kind, ids[0], ids[1], length))
            on_progress()
    return answers


def _acceptance_length(arm: str, answer: dict[str, Any]) -> float | None:
    """Tokens per step that an engine counted; of a pool's drafter, as it was scored. None if not reported."""
    length, _ = acceptance(answer)
    if length is None or (drafter := drafter_of(arm)) is None:
        return length
    found = report.parse(answer["metrics"]["speculative_decoding"].get(report.FIELD)).get(drafter)
    return None if found is None else found.tau


def compare(
    drafter: Drafter, target: str, answers: Sequence[LiveAnswer], on_progress: Callable[[], None]
) -> dict[str, Any]:
    """Replayed against live acceptance length of one drafter, and the replayed length by draft length."""
    k = drafter.num_speculative_tokens
    run = replayer(drafter, sorted({k, *LENGTHS}), target)
    replays: dict[int, list[DrafterReplay]] = {}
    for live in answers:
        for length, replay in run(live.prompt, live.answer).items():
            replays.setdefault(length, []).append(replay)
        on_progress()
    ours = np.asarray([r.acceptance_length for r in replays[k]])
    measured = np.asarray([a.acceptance_length for a in answers])
    kinds = np.asarray([a.kind for a in answers])
    errors = np.abs(ours / measured - 1)
    return {
        "mean_error": Interval(float(errors.mean()), *(float(q) for q in np.quantile(errors, [0.05, 0.95]))),
        "live": float(measured.mean()),
        "replayed": float(ours.mean()),
        "by_length": {n: float(np.mean([r.acceptance_length for r in rs])) for n, rs in replays.items()},
        "by_kind": {kind: float(ours[kinds == kind].mean()) for kind in sorted(set(kinds))},
    }
