"""Data types of the request path: context, decision, outcome, record. All are frozen."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from draftpick.engines.arms import NONE, engine_of, pool_arm
from draftpick.engines.pool.forecast import Forecast as DrafterForecast
from draftpick.engines.pool.report import DrafterReport

Vector = npt.NDArray[np.float32]
DEFAULT_MAX_TOKENS = 256.0
"""`max_tokens` of a request without a limit."""
Status = Literal["ok", "client_error", "engine_error", "timeout", "broken", "cancelled", "router_error"]
"""How an attempt ended.

ok: a status below 400. client_error: 4xx. engine_error: no answer, or 5xx, before the first byte. timeout: no first
byte in time. broken: the answer stopped after its first byte. cancelled: the client disconnected. router_error: this
process lacked descriptors, ports or memory, or could not ask for the rest of a stream.
"""
Fault = Literal["client", "engine", "network", "router"]
"""Whose fault it is that an attempt was not answered: see `draftpick.router.request.verdict`."""
_FAILED: frozenset[Status] = frozenset({"engine_error", "timeout", "broken"})
Placement = Literal["new", "kept", "moved", "fresh"]
"""What a turn of a session finds at its replica: see `Turn`."""
Reason = Literal["policy", "resumed", "shadow", "pinned", "fallback"]
"""Reason of a decision: see `Decision`."""


@dataclass(frozen=True, slots=True)
class Context:
    """The feature vector of a decision, shape `[dimension]`, and the id of the featurizer that made it.

    The other fields come from the request: whether its answer is `sampled`, and `truncated` by top_p or top_k (known in
    live requests and in records), which add up to its mode, one of `draftpick.engines.profile.profile.MODES`; the
    approximate number of tokens of its prompt, and the limit of its output tokens.
    """

    vector: Vector
    featurizer: str
    sampled: bool = False
    prompt_tokens: float = 0.0
    max_tokens: float = DEFAULT_MAX_TOKENS
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class LoadTerms:
    """Effects of the engines' load by arm, in the order of a policy's arms (`router.load`).

    `slowdown`: duration of a step in the current batch, relative to a request alone. `objective_weight`: weight of a
    step in the choice, in the same unit. `wait_s`: queueing time before it runs. `cached_prefix_tokens`: prompt tokens
    that the replica has cached. `prefill_weight`: weight of a second of prefilling the rest.
    """

    slowdown: Sequence[float]
    objective_weight: Sequence[float]
    wait_s: Sequence[float]
    cached_prefix_tokens: Sequence[int]
    prefill_weight: Sequence[float]


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen arm, and the probability of every arm.

    `reason`: `resumed` is a choice for the rest of a stream that broke on another arm; `shadow`, one without a waiting
    client; like the last two, they are not draws of the policy for a whole request. The decision was made with
    `exploration_rate`, with `residual`, the corrections of log TPOT by arm, and with `load`. `level_deviations`:
    standard deviations of the arms' log levels, if exploration was wide. `predicted_tpot_s`: the policy's prediction
    for every arm under that load, before corrections. All lists are in the order of `probabilities`. `unloaded_arm`:
    the arm with the shortest time if no engine had any load. `cluster`: the request's cluster under the deciding
    policy; None until the answer's end unless the decision depended on it. `policy_share`: the probability that this
    policy was drawn to decide, if two were in service; `other_policy_probabilities`: probabilities of all arms under
    the other one, by its id. `predicted_tau`: the policy's predictions of acceptance lengths, before corrections, if
    any engine is a pool; `forecast`: what a pool is sent.
    """

    arm: str
    propensity: float
    probabilities: dict[str, float]
    policy: str
    reason: Reason = "policy"
    exploration_rate: float = 0.0
    level_deviations: Sequence[float] | None = None
    predicted_tpot_s: Sequence[float] | None = None
    residual: Sequence[float] | None = None
    load: LoadTerms | None = None
    unloaded_arm: str | None = None
    cluster: int | None = None
    policy_share: float = 1.0
    other_policy_probabilities: dict[str, dict[str, float]] | None = None
    predicted_tau: Sequence[float] | None = None
    forecast: DrafterForecast | None = None

    @property
    def slowdown(self) -> float:
        """Slowdown of a step on the chosen arm, as assumed by the decision."""
        return 1.0 if self.load is None else self.load.slowdown[list(self.probabilities).index(self.arm)]


class Accepted(NamedTuple):
    """What a drafter had accepted in the last turns of a session: mean log acceptance length, worth `weight` drafts."""

    log_tau: float
    weight: float


@dataclass(frozen=True, slots=True)
class Turn:
    """A request of a session. `session`: our id of it; `number`: of the turn, from 1.

    `placement`: `kept` at the replica of the last turn, or `moved` to another one; `fresh` if that replica was gone,
    and its cached prefix with it; `new`: the first turn. `tool_results`: in its messages; `after_tool`: the last
    message is one.
    """

    session: str
    number: int
    placement: Placement
    tool_results: int = 0
    after_tool: bool = False


@dataclass(frozen=True, slots=True)
class PredictionTokens:
    """Tokens of a prediction: those that are in the answer in the same order, and the others."""

    accepted: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Measurements of one attempt. Durations in seconds of a monotonic clock; None if undefined.

    All count from the last byte of the request to bytes that come from the engine: how fast a client sends and reads is
    not in them. ttft_s: to the first content token (without streaming: as reported by the engine). tpot_s: of one
    answer's tokens after the first, by the engine's own clock if it reports it. output_tokens: of all answers.
    acceptance_length: tokens per step including the bonus token. queue_s: queueing time at the engine, as reported by
    the engine; part of ttft_s. drafters: of a pool, what each of its drafters did, and would have done. fault: None if
    it was answered, and in records of versions that did not decide it. prediction: what came of the request's
    prediction; None without one, or if its engine does not say.
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
    drafters: Mapping[str, DrafterReport] | None = None
    fault: Fault | None = None
    prediction: PredictionTokens | None = None

    @property
    def failed(self) -> bool:
        """True if the engine, or the network to it, is at fault."""
        return self.status in _FAILED if self.fault is None else self.fault in ("engine", "network")


_REPORTING = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Paths whose answers carry vLLM's metrics."""


def acceptance_by_arm(arm: str, outcome: Outcome) -> Iterator[tuple[str, float | None, int | None]]:
    """Yield each arm whose acceptance an answer of `arm` shows, its acceptance length, and on how many tokens.

    That of the answer; of a pool, what each of its drafters, scored on the answer's text, would have had.
    """
    if outcome.drafters is None:
        yield arm, outcome.acceptance_length, outcome.output_tokens
        return
    engine = engine_of(arm)
    for name, report in outcome.drafters.items():
        if report.tau is not None and name != NONE:
            yield pool_arm(engine, name), report.tau, report.scored


def ignores_forecast(of: "Attempt | Record") -> bool:
    """True if an engine that was sent a forecast answered without a word on its drafters, where a pool reports them:
    it does not run our plugin."""
    outcome, answers = of.outcome, of.sampling.get("n", 1)
    told = outcome.status == "ok" and (outcome.output_tokens or 0) > 1 and answers <= 1 and of.path in _REPORTING
    return told and of.decision.forecast is not None and outcome.drafters is None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One finished attempt, as passed to observers.

    `in_flight`: this router's requests by arm at its start. `running`: concurrent requests at its replica, including
    itself; None if it got no replica or failed. `sampling`: the numeric sampling fields of the request; its `n` is the
    number of answers to all prompts. `id`, `request_id`, `key`: see `ClientRequest`. `cluster`: of an answered request,
    under the policy of this id; observers get that of the active one. `time`: of its end, in seconds since the epoch.
    `turn`: None without a session. `adapter`: see `Record`.
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
    time: float = field(default_factory=time.time)
    id: str = ""
    key: str = ""
    turn: Turn | None = None
    adapter: str = ""


class AttemptObserver(Protocol):
    """What keeps or learns something of attempts."""

    def on_attempt_end(self, attempt: Attempt) -> None:
        """Called once with every finished attempt."""


@dataclass(frozen=True, slots=True)
class Record:
    """One recorded attempt. `time`: seconds since the epoch, for ordering only; `in_flight`: see `Attempt`.

    `request_id`: the router's own, one for each request and its shadows; `client_request_id`: the client's, if it sent
    one. `key`: a digest that is the same for all requests of an API key; empty if all requests have one key. `turn`:
    None without a session. `adapter`: the model, if it is an adapter of the target that an engine lists; else empty.
    """

    request_id: str
    attempt: int
    time: float
    path: str
    stream: bool
    sampling: dict[str, float]
    in_flight: dict[str, int]
    context: Context | None
    decision: Decision
    outcome: Outcome
    client_request_id: str | None = None
    key: str = ""
    turn: Turn | None = None
    adapter: str = ""
    schema: int = field(default=2)
