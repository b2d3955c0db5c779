"""What the router passes from step to step: context, decision, outcome, record. All are frozen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
DEFAULT_MAX_TOKENS = 256.0
"""Of a request that does not say how long its answer may be."""
Status = Literal["ok", "client_error", "engine_error", "timeout", "broken", "cancelled"]
"""How an attempt ended.

ok: answered below 400. client_error: 4xx, the engine blames the request. engine_error: no answer, or 5xx, before the
first byte. timeout: no first byte in time. broken: stopped after its first byte. cancelled: the client went away.
"""
Reason = Literal["policy", "resumed", "shadow", "pinned", "fallback"]
"""Why an arm was taken: see `Decision`."""


@dataclass(frozen=True, slots=True)
class Context:
    """The feature vector of a decision, shape `[dimension]`, and the id of the featurizer that made it.

    Beside it, what the request says outright: whether its answer is `sampled`, about how many tokens its prompt has,
    and how many its answer may have.
    """

    vector: Vector
    featurizer: str
    sampled: bool = False
    prompt_tokens: float = 0.0
    max_tokens: float = DEFAULT_MAX_TOKENS


@dataclass(frozen=True, slots=True)
class LoadTerms:
    """What the load of the engines adds, each by arm, in the order of a policy's arms (`router.load`).

    `slowdown`: seconds of a step, this request among the others, over those of a request alone. `objective_weight`:
    what a step counts as in the choice, in the same unit. `wait_s`: until it begins to run. `cached_prefix_tokens`: of
    its prompt, that the replica has read before. `prefill_weight`: what a second of reading the rest of it counts as.
    """

    slowdown: Sequence[float]
    objective_weight: Sequence[float]
    wait_s: Sequence[float]
    cached_prefix_tokens: Sequence[int]
    prefill_weight: Sequence[float]


@dataclass(frozen=True, slots=True)
class Decision:
    """The arm that was chosen, and with which probability every arm could have been.

    `reason`: `resumed` is a choice for the rest of a stream that broke on another arm; `shadow`, one that no client
    waited for; like the last two, they are no draw of the policy for a whole request. `exploration_rate` and
    `residual` are what it was made with: the share that might go to other arms, and the corrections of log TPOT by arm;
    `load`, too. `predicted_tpot_s`: what the policy expects of every arm under that load, before any correction. All
    lists are in the order of `probabilities`. `unloaded_arm`: the arm of the least time if no engine had any load.
    `cluster`: of the request, as the policy that decided tells them apart. `policy_share`: the probability that the
    policy was drawn to decide, where two were in service; `other_policy_probabilities`: probabilities of all arms under
    the other one, by its id.
    """

    arm: str
    propensity: float
    probabilities: dict[str, float]
    policy: str
    reason: Reason = "policy"
    exploration_rate: float = 0.0
    predicted_tpot_s: Sequence[float] | None = None
    residual: Sequence[float] | None = None
    load: LoadTerms | None = None
    unloaded_arm: str | None = None
    cluster: int | None = None
    policy_share: float = 1.0
    other_policy_probabilities: dict[str, dict[str, float]] | None = None

    @property
    def slowdown(self) -> float:
        """By how much load made a step on the chosen arm longer, as the decision had it."""
        return 1.0 if self.load is None else self.load.slowdown[list(self.probabilities).index(self.arm)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured of one attempt. Durations in seconds of a monotonic clock; None where undefined.

    ttft_s: accepted to first content token forwarded (of a whole answer: as the engine reports it).
    tpot_s: (e2e - ttft) / (output tokens - 1). acceptance_length: tokens per step including the bonus token.
    queue_s: how long it waited at the engine until it ran, as the engine reports it; part of ttft_s.
    """

    status: Status
    http_status: int | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    acceptance_length: float | None = None
    acceptance_rate: float | None = None
    overhead_s: float | None = None
    queue_s: float | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that has ended, as it is handed to those who count, record and learn.

    `in_flight`: this router's requests by arm when it began. `running`: requests at its replica meanwhile, itself among
    them; None where it got no replica or failed. `sampling`: the numeric sampling fields of the request.
    """

    request_id: str
    number: int
    path: str
    stream: bool
    sampling: Mapping[str, float]
    context: Context | None
    decision: Decision
    outcome: Outcome
    in_flight: dict[str, int]
    running: float | None = None
    cluster: tuple[str, int] | None = None


AttemptObserver = Callable[[Attempt], None]
"""Called once with every attempt that has ended. It must not raise."""


@dataclass(frozen=True, slots=True)
class Record:
    """One attempt as it is logged. `time` is seconds since the epoch, for ordering only; `in_flight`: see `Attempt`."""

    request_id: str
    attempt: int
    time: float
    path: str
    stream: bool
    sampling: dict[str, Any]
    in_flight: dict[str, int]
    context: Context | None
    decision: Decision
    outcome: Outcome
    schema: int = field(default=2)
