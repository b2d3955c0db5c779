"""Headroom at a request rate, with equal numbers of engines: the fleet against replicas of the best single engine.

Requests are simulated on profiles of the engines (`draftpick.policy_training.simulator`). The router knows the
evaluated policies' prediction for each request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from draftpick.engines.profile.profile import GREEDY, SAMPLED, Profile, ProfileError
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.headroom.estimate import Floats, Verdict
from draftpick.policy_training.simulator.capacity_plan import WARM_UP
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.fleet import Fleet
from draftpick.policy_training.simulator.requests import Requests
from draftpick.policy_training.simulator.routing import strategy
from draftpick.policy_training.simulator.simulate import interval, simulate
from draftpick.policy_training.simulator.traffic import SyntheticTraffic

SEEDS = 4
_REQUESTS = 2000
_TIME = "latency_s/mean"


@dataclass(frozen=True, slots=True)
class Loaded:
    """At `rate` requests per second: mean seconds of a request with one engine of every arm behind the router, and with
    as many engines of the best single arm, `single`; `gain`: the share saved by routing, with its 95 % interval."""

    rate: float
    engines: int
    single: str
    routed_s: Interval
    single_s: Interval
    gain: Interval

    def verdict(self, worth: float) -> Verdict:
        if self.gain.low > worth:
            return "worth it"
        return "not worth it" if self.gain.high < worth else "cannot tell"


def unloaded_costs(profiles: Mapping[str, Profile]) -> Costs:
    """Step costs of a request alone on its engine."""
    step_s = np.asarray([[p.step(1, 0.0, half) for half in (GREEDY, SAMPLED)] for p in profiles.values()])
    start_s = np.asarray([p.prefill_s for p in profiles.values()])
    return Costs(tuple(profiles), step_s, start_s, np.asarray([p.prefill_s_per_token for p in profiles.values()]))


def read_profiles(folder: Path) -> dict[str, Profile]:
    """Read the profiles `<engine>.json` of a folder. Raises `ProfileError`."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found[file.stem] = Profile.from_json(file.read_bytes())
        except ProfileError as error:
            raise ProfileError(f"{file}: {error}") from error
    if not found:
        raise ProfileError(f"{folder} contains no <engine>.json: create them with `draftpick profile`")
    return found


def under_load(
    data: Matrix, predicted_tau: Floats, profiles: Mapping[str, Profile], rate: float, seed: int = 0
) -> Loaded:
    """Simulate requests like those of `data`, with predicted acceptance lengths `predicted_tau` [n, arms].

    `profiles`: of all arms of `data`. Raises `DatasetError`.
    """
    arms = {name: Arm.from_profile(name, profiles[name]) for name in data.arms}
    n, rows = len(arms), Requests.from_matrix(data)
    # Predictions are further columns, so that every drawn request keeps its own.
    both = np.concatenate([rows.tau, np.maximum(predicted_tau, 1.0)], axis=1)
    rows = replace(rows, columns=(*rows.columns, *(f"{name}?" for name in rows.columns)), tau=both)
    fleet, source = Fleet.from_counts(arms, dict.fromkeys(arms, 1)), SyntheticTraffic(rows, _REQUESTS, rate)
    alone = {name: Fleet.from_counts(arms, {name: n}) for name in arms}
    routed: list[float] = []
    single: dict[str, list[float]] = {name: [] for name in arms}
    for one in range(seed, seed + SEEDS):
        made = source(one)
        expected = np.concatenate([made.tau[:, n:]] * 2, axis=1)
        routed.append(_seconds(fleet, made, "throughput", expected))
        for name, some in alone.items():
            single[name].append(_seconds(some, made, "least_loaded", made.tau))
    best = min(single, key=lambda name: float(np.mean(single[name])))
    gains = [1 - ours / theirs for ours, theirs in zip(routed, single[best], strict=True)]
    return Loaded(rate, n, best, interval(routed), interval(single[best]), interval(gains))


def _seconds(fleet: Fleet, made: Requests, name: str, tau: Floats) -> float:
    return simulate(fleet, made, strategy(name, fleet, made, tau)).figures(WARM_UP)[_TIME]
