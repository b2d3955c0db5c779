"""Engines of the embedded fleet against their simulation: each runs alone, its steps are measured, then requests come.

The simulation knows the profile, and of each request its moment, its tokens and its acceptance length, as the engine
told it: what is judged is who runs, who waits, and what a step takes meanwhile. Acceptance is judged by
`draftpick drafters replay`.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from draftpick.deploy.config import resolve
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.profile import measured, save, subjects
from draftpick.engines.profile.concurrent_decode import SAMPLING
from draftpick.engines.profile.measure import ProfilePlan
from draftpick.engines.profile.profile import GREEDY, Profile
from draftpick.policy_training.simulator.arrivals import poisson
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.fleet import Fleet
from draftpick.policy_training.simulator.requests import Requests
from draftpick.policy_training.simulator.routing import LeastLoaded
from draftpick.policy_training.simulator.simulate import simulate
from draftpick.policy_training.workloads import SAMPLED_TEMPERATURE, Prompt, generate
from tests.bench.simulator.__main__ import compared
from tests.bench.simulator.live import Live, send

_PLAN = ProfilePlan(batches=(1, 2, 4, 8, 16), contexts=(128,), steps=16, longest_s=2.5)
_N, _USUAL_TOKENS, _USUAL_TAU = 48, 48, 1.8
LOADS: Mapping[str, float] = {"low": 0.3, "high": 0.6}
"""Shares of the requests a second that the engine could serve with eight at once."""


def reals(names: Sequence[str], profiles: Path | None, bar: Progress) -> dict[str, list[dict[str, float]]]:
    """Simulated beside live, for each of these engines at each load; what was measured goes into a folder, too."""
    fleet = resolve("seven")
    prepare_models(fleet)
    found = {}
    for subject in subjects(fleet, names, []):
        name, row = subject.name, bar.add_task(subject.name, total=len(LOADS) * _N)
        told = partial(bar.advance, row)
        with subject.running() as url:
            made = measured(name, url, _PLAN, lambda share: None)
            if profiles is not None:
                save({name: made.profile}, profiles)
            for load, share in LOADS.items():
                rate = share * _most(made.profile, 1.0 if name == fleet.baseline else _USUAL_TAU)
                result = _one(made.profile, name, fleet.target.name, url, rate, told)
                found[f"real/{name}/{load}"] = [{**result, "disagreement": made.disagreement}]
    return found


def _most(profile: Profile, tau: float) -> float:
    """Requests a second, about, with eight at once."""
    prefill_s = profile.prefill_s + 100 * profile.prefill_s_per_token
    return 8 / (8 * prefill_s + _USUAL_TOKENS / tau * profile.step(8, 128, GREEDY))


def _one(
    profile: Profile, name: str, model: str, url: str, rate: float, on_progress: Callable[[], None]
) -> dict[str, float]:
    rng, salt = np.random.default_rng(0), str(time.time_ns())  # no cache knows these prompts
    prompts = generate(_N, seed=900, sampled_share=0.5)
    tokens, at_s = rng.integers(16, 96, _N), poisson(_N, rate, rng)

    def body(i: int) -> dict[str, Any]:
        return _body(model, prompts[i], int(tokens[i]), salt)

    planned = _requests(name, prompts, at_s, tokens.astype(float), np.ones(_N), np.ones(_N))
    fleet = Fleet((Arm.from_profile(name, profile, prefill_tokens=2048),), (1,))
    live = asyncio.run(send(url, planned, body, on_progress, None, fleet))
    made = _told(name, prompts, at_s, live)
    return compared(simulate(fleet, made, LeastLoaded()).latency_s, live.latency_s)


def _body(model: str, prompt: Prompt, tokens: int, salt: str) -> dict[str, Any]:
    return {
        "model": model, "messages": [{"role": "user", "content": prompt.text}], "max_tokens": tokens,
        "ignore_eos": True, "cache_salt": f"{prompt.id} {salt}", **SAMPLING[prompt.temperature > 0],
    }  # fmt: skip


def _told(name: str, prompts: Sequence[Prompt], at_s: np.ndarray, live: Live) -> Requests:
    """What came, with acceptance lengths as the engine told them; 1 where it drafted nothing."""
    return _requests(name, prompts, at_s, live.output_tokens, live.prompt_tokens, np.nan_to_num(live.tau, nan=1.0))


def _requests(
    name: str, prompts: Sequence[Prompt], at_s: np.ndarray, tokens: np.ndarray, prompt: np.ndarray, tau: np.ndarray
) -> Requests:
    return Requests(
        kinds=("all",), columns=(name,), kind=np.zeros(len(prompts), np.intp), prompt_tokens=prompt,
        output_tokens=tokens, sampled=np.asarray([p.temperature == SAMPLED_TEMPERATURE for p in prompts]),
        tau=tau[:, None], arrival_s=at_s,
    )  # fmt: skip
