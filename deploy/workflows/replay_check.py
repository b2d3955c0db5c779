"""`draftpick drafters replay`: replays a fleet's own answers and compares with the acceptance of its engines."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np

from draftpick.engines.config import Engine
from draftpick.engines.drafters.acceptance import DrafterReplay
from draftpick.engines.drafters.replay import LENGTHS, replayer
from draftpick.engines.drafters.request_tracking import Tokens
from draftpick.engines.models.paths import target_path
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
    """Results of `compare` by replayable engine of the running fleet."""
    there, model = asyncio.run(arms_of(url)), model_of(url)
    results = {}
    for engine in fleet.engines:
        if engine.name not in there or engine.drafter is None or not engine.can_replay:
            continue
        done = 0

        def advance(name: str = engine.name) -> None:
            nonlocal done
            done += 1
            progress(name, done / (2 * len(prompts)), "")

        answers = ask(url, model, engine.name, prompts, advance)
        results[engine.name] = compare(engine, target_path(fleet.target), answers, advance)
    return results


def ask(
    url: str, model: str, engine: str, prompts: Sequence[Prompt], on_progress: Callable[[], None]
) -> list[LiveAnswer]:
    """Greedy answers of one engine, one at a time. Raises ValueError for an engine that reports no acceptance."""
    answers = []
    with httpx.Client(base_url=url, timeout=600, headers={headers.ARM: engine, **authorization()}) as client:
        for prompt in prompts:
            body = {
                "model": model,
                **replace(prompt, temperature=0, top_p=1).request_fields,
                "return_token_ids": True,
            }
            reply = client.post("/v1/chat/completions", json=body)
            reply.raise_for_status()
            fields = reply.json()
            length, _ = acceptance(fields)
            if length is None:
                raise ValueError(
                    f"engine {engine!r} reports no acceptance length: set `per_request_spec_decode_metrics`"
                )
            ids = [np.asarray(i, np.int32) for i in (fields["prompt_token_ids"], fields["choices"][0]["token_ids"])]
            answers.append(LiveAnswer(prompt.kind, ids[0], ids[1], length))
            on_progress()
    return answers


def compare(
    engine: Engine, target: str, answers: Sequence[LiveAnswer], on_progress: Callable[[], None]
) -> dict[str, Any]:
    """Replayed against live acceptance length of one engine, and the replayed length by draft length."""
    assert engine.drafter is not None
    k = engine.drafter.num_speculative_tokens
    run = replayer(engine.drafter, sorted({k, *LENGTHS}), target)
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
