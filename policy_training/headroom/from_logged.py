"""Headroom from records with one arm per request: doubly robust estimates of the times of other arms.

    time(pi) = sum over requests of ttft(pi) + (tokens - 1) tpot(pi)        each DR: sum_a pi q + w (measured - q)

The number of tokens does not depend on the arm, since every arm returns the target's output.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.from_records import contexts_of
from draftpick.policy_training.data.logged_feedback import LoggedFeedback
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.evaluation.ope import (
    MIN_EFFECTIVE,
    doubly_robust,
    effective_sample_size,
    reward_model,
    weights,
)
from draftpick.policy_training.headroom.estimate import (
    BootstrapHeadroom,
    CrossFittedChoice,
    Headroom,
    Ids,
    Mask,
    build_headroom,
    time_columns,
)
from draftpick.policy_training.headroom.from_records import Traffic

Floats = npt.NDArray[np.float64]
SUPPORTED = 0.95
"""Minimum share of requests where the logging policy could have taken the evaluated choice."""
_POSSIBLE = 1e-3


def evaluate_logged(
    traffic: Traffic,
    data: Matrix,
    choice: CrossFittedChoice,
    groups: Ids,
    slices: Mapping[str, Mask],
    *,
    worth: float,
    seed: int,
) -> Headroom:
    """Evaluate a choice by single answers. `data`: their requests, in the order of `traffic.single_answers()`.

    The verdict is `cannot tell` if the effective sample size of the evaluated policy, or of the best single arm, is
    below 200, or if the logging policy had too little support for the choice.
    """
    log = _LoggedTimes(traffic, len(data.arms))
    arms = np.stack([log.times(one) for one in _each(len(data), len(data.arms))], axis=1)
    single = [np.eye(len(data.arms))[one] for one in choice.single]
    routed = [log.times(one) for one in choice.shares]
    no_oracle = np.ones(len(data))
    columns = time_columns(
        arms[None], [log.times(one)[None] for one in single], [one[None] for one in routed], no_oracle[None]
    )
    found = build_headroom(data, choice, BootstrapHeadroom(columns, groups, seed), slices, worth=worth, wins=None)
    evaluated = (choice.shares.mean(0), np.mean(single, axis=0))
    effective = min(effective_sample_size(log.weights(pi)) for pi in evaluated)
    supported = min(float((pi * (log.offered >= _POSSIBLE)).sum(1).mean()) for pi in evaluated)
    found = replace(found, effective=effective, supported=supported)
    if not is_rejected(found):
        return found
    more = math.ceil(len(data) * (MIN_EFFECTIVE / max(effective, 1.0) - 1)) if supported >= SUPPORTED else None
    return replace(found, verdict="cannot tell", needs=more)


def is_rejected(found: Headroom) -> bool:
    """True if single answers are too few, or lack support, for a verdict."""
    few = found.effective is not None and found.effective < MIN_EFFECTIVE
    return few or (found.supported is not None and found.supported < SUPPORTED)


def _each(n: int, arms: int) -> list[Floats]:
    """Every arm as a policy [n, arms]."""
    return [np.tile(np.eye(arms)[arm], (n, 1)) for arm in range(arms)]


class _LoggedTimes:
    """Single answers, and models of their times under other arms."""

    def __init__(self, traffic: Traffic, n_arms: int) -> None:
        single, arms = traffic.single_answers(), list(traffic.arms)
        rows = single.measurements
        contexts = contexts_of(single, traffic.featurizer)
        taken = np.asarray([arms.index(m.arm) for m in rows], np.int64)
        propensity = np.asarray([m.propensity for m in rows], np.float64)
        self._tokens = np.asarray([(m.outcome.output_tokens or 1) - 1 for m in rows], np.float64)
        self._parts = [
            (made, reward_model(contexts, made, n_arms))
            for made in (
                LoggedFeedback(taken, np.asarray([m.outcome.tpot_s for m in rows], np.float64), propensity),
                LoggedFeedback(taken, np.asarray([m.outcome.ttft_s for m in rows], np.float64), propensity),
            )
        ]
        self.offered = np.asarray([[traffic.offered[m.prompt_id].get(arm, 0.0) for arm in arms] for m in rows])

    def weights(self, pi: Floats) -> Floats:
        """Importance weights [n] of a policy [n, arms]."""
        return weights(self._parts[0][0], pi)

    def times(self, pi: Floats) -> Floats:
        """Terms [n]; their sum is the doubly robust estimate of a policy's total time in seconds."""
        w = self.weights(pi)
        tpot, ttft = (doubly_robust(pi, q, w, made.arm, made.reward) for made, q in self._parts)
        return np.asarray(ttft + self._tokens * tpot)
