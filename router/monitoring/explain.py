"""Explains a decision: predictions for every engine, and the deciding cause in one sentence."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from draftpick.engines.arms import drafter_of, engine_of
from draftpick.router.config.sections import Objective
from draftpick.router.load.health_signal import HealthSignal, ineligible_reasons, signals_of
from draftpick.router.load.staleness import StaleReports
from draftpick.router.monitoring.cluster_labels import cluster_names
from draftpick.router.online.safe_mode import PREFIX as SAFE_MODE
from draftpick.router.openai_request import Request
from draftpick.router.parts import Parts
from draftpick.router.policies.base import Terms
from draftpick.router.policies.costs import cost_sources
from draftpick.router.registry.active_policy import PolicyInService
from draftpick.router.types import Context, Decision

_NOTHING: Mapping[str, str] = {}
_TIE_SHARE = 0.005
"""Times within this relative difference are reported as equal."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Current state of an engine. `total_in_flight`: requests of all clients; `ineligible_reason`: a key of
    `ineligible_reasons`, or None.

    `breakers`: number of replicas by breaker state; `quarantine_state`: `ok`, `quarantined` or `probed`; `stale`: its
    load reports have stopped; `costs`: where the active policy has its step times from; `unable`: why it cannot take
    the request in question.
    """

    replicas: int
    in_flight: int
    total_in_flight: int
    ineligible_reason: str | None = None
    breakers: Mapping[str, int] = field(default_factory=dict)
    quarantine_state: str = "ok"
    stale: bool = False
    costs: str | None = None
    unable: str | None = None


async def explain(
    parts: Parts, request: Request, objective: Objective | None = None, explore: bool = True, key: str = ""
) -> dict[str, object]:
    """Explain which engine a request of an API key would get, with probabilities and the reason. Nothing is sent."""
    parts.attempts.drain()
    context = await parts.dispatcher.featurize(request)
    read = parts.prefixes.lookup(parts.prefixes.hashes(request.body), key)
    unable, adapter = parts.abilities.unable(request), parts.abilities.adapter(request)
    session = None if request.session is None else parts.dispatcher.sessions.known(request.session, key)
    accepted = {} if session is None else session.accepted
    decision = parts.decide(
        context, explore=explore, cached_prefix=read if session is None else session.cached_prefix(request, read),
        objective=objective, unable=unable, accepted=accepted, adapter=adapter,
    )  # fmt: skip
    able = [arm for arm in parts.replicas.eligible() if engine_of(arm) not in unable]
    candidates, _ = parts.decide.healthy(able, adapter)
    served, wanted = parts.active_policies.by_id(decision.policy), objective or parts.config.load.objective
    terms = explain_terms(decision, served, context)
    reasons = ineligible_reasons(parts.health_signals)
    return DecisionExplanation(
        decision, served, context, candidates, engine_statuses(parts, unable, adapter), wanted, parts.baseline, terms,
        reasons, explain_doubt(served, context), adapter,
    ).as_json()  # fmt: skip


def engine_statuses(parts: Parts, unable: Mapping[str, str] = _NOTHING, adapter: str = "") -> dict[str, EngineStatus]:
    """The state of every engine, by arm. `unable`: reasons by engine that cannot take the request in question;
    `adapter`: that it asks for."""
    in_flight, quarantine_states, found = parts.replicas.in_flight(), parts.acceptance_monitor.of(adapter).state(), {}
    signals = signals_of(parts.health_signals, adapter)
    costs = cost_sources(parts.active_policies.policy)
    for arm, there in parts.replicas.by_arm.items():
        found[arm] = EngineStatus(
            len(there),
            in_flight[arm],
            sum(replica.total_in_flight for replica in there),
            parts.replicas.unavailable_reason(arm)
            or _suspicion(signals, arm, in_flight[arm])
            or ("unable" if engine_of(arm) in unable else None),
            dict(Counter(replica.breaker.state for replica in there)),
            quarantine_states[arm],
            arm in parts.load.staleness.suspects,
            costs.get(arm),
            unable.get(engine_of(arm)),
        )
    return found


def _suspicion(signals: Sequence[HealthSignal], arm: str, in_flight: int) -> str | None:
    """The reason of the first signal that objects to an arm."""
    return next((one.reason for one in signals if arm in one.suspects and not one.admits(arm, in_flight)), None)


@dataclass(frozen=True, slots=True)
class Doubt:
    """What a policy knows of its own predictions for a request: effective number of `neighbours` among its training
    requests, whether it is `far` from all of them, and the `intervals` of decoding times relative to the forecast, by
    arm."""

    neighbours: float | None = None
    far: bool = False
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DecisionExplanation:
    """A decision and its inputs.

    `in_service`: the policy that decided, or that fell back. `candidates`: the eligible arms; `baseline`: the engine
    for comparisons. `terms`: of `explain_terms`. `adapter`: of the target, that the request asks for.
    """

    decision: Decision
    in_service: PolicyInService
    context: Context | None
    candidates: Sequence[str]
    standings: Mapping[str, EngineStatus]
    objective: Objective
    baseline: str
    terms: Mapping[str, Terms]
    ineligible_reasons: Mapping[str, str]
    doubt: Doubt = Doubt()
    adapter: str = ""

    def as_json(self) -> dict[str, object]:
        """All fields; null for what a policy does not predict."""
        decision, known = self.decision, self.in_service.accepts(self.context)
        cluster = self.in_service.policy.cluster(self.context) if known else None
        kinds = cluster_names(self.in_service.policy.clusters)
        tokens = next((terms.tokens + 1 for terms in self.terms.values()), None)
        return {
            "arm": decision.arm,
            "propensity": decision.propensity,
            "probabilities": decision.probabilities,
            "policy": decision.policy,
            "reason": decision.reason,
            "tipped": self.deciding_reason(),
            "objective": self.objective,
            "output_tokens": tokens,
            "neighbours": self.doubt.neighbours,
            "far": self.doubt.far,
            "kind": None if cluster is None else {"kind": cluster, "name": kinds[cluster]},
            "adapter": {"name": self.adapter, "answers": self._adapter_answers()} if self.adapter else None,
            "forecast": None if decision.forecast is None else asdict(decision.forecast),
            "arms": [self._row(arm, standing) for arm, standing in self.standings.items()],
        }

    def _row(self, arm: str, standing: EngineStatus) -> dict[str, object]:
        row = {
            "arm": arm,
            "probability": self.decision.probabilities.get(arm, 0.0),
            "eligible": arm in self.candidates,
            **asdict(standing),
        }
        terms = self.terms.get(arm)
        if terms is None:
            return {**row, "predicted": None}
        names = ("seconds", "ttft_s", "decode_s", "weighted_s", "unloaded_s")
        interval = self.doubt.intervals.get(arm)
        low_s, high_s = (None, None) if interval is None else (terms.ttft_s + terms.decode_s * x for x in interval)
        predicted = {name: getattr(terms, name) for name in names} | asdict(terms)
        return {**row, "predicted": predicted | {"low_s": low_s, "high_s": high_s}}

    def deciding_reason(self) -> str:
        """The deciding cause, in one sentence."""
        lead = "the request is far from anything known; " if self.doubt.far else ""
        return lead + self._deciding_reason() + self._of_pool() + self._of_adapter()

    def _adapter_answers(self) -> float:
        """The weight of the adapter's answers that correct its times."""
        return self.in_service.online.answers_of(self.adapter)

    def _of_adapter(self) -> str:
        """What is known of the adapter; "" without one."""
        if not self.adapter:
            return ""
        if (answers := self._adapter_answers()) < 1:
            return f"; adapter {self.adapter} has no answers yet and starts from what those of the target showed"
        return f"; corrected by {answers:.0f} answer{'' if answers < 1.5 else 's'} of adapter {self.adapter}"

    def _of_pool(self) -> str:
        """What a pool makes of the choice; "" for other engines."""
        arm, forecast = self.decision.arm, self.decision.forecast
        if forecast is None:
            return ""
        if forecast.only is not None:
            return f"; {engine_of(arm)} may draft with nothing else"
        begins = f"begins with {drafter_of(arm)} and " if forecast.tau else ""
        return f"; {engine_of(arm)} {begins}changes the drafter at any step"

    def _deciding_reason(self) -> str:
        decision = self.decision
        if decision.reason == "fallback":
            return self._fallback()
        if decision.policy.startswith(SAFE_MODE):
            safe = decision.policy.removeprefix(SAFE_MODE)
            why = f"safe mode: routing was measured slower than {safe} alone, which serves"
            if engine_of(decision.arm) == safe:
                return why
            return f"{why} most requests; {decision.arm} is a probe of routing"
        if len(self.candidates) == 1:
            return f"{decision.arm} is the only eligible engine"
        if not self.terms:
            given = f"gives {decision.arm} {_percent(decision.propensity)} of such requests"
            return f"policy {decision.policy} predicts no times; it {given}"
        return self._compared()

    def _fallback(self) -> str:
        arm = self.decision.arm
        if all(self.standings[one].ineligible_reason == StaleReports.reason for one in self.candidates):
            return f"all load reports are outdated: {arm} serves, the lowest risk under unknown load"
        if self.in_service.policy.featurizer is not None and not self.in_service.accepts(self.context):
            return f"the request has no features (no text, or too late): {arm} serves by default"
        return f"policy {self.in_service.policy.id} failed on this request (see the log): {arm} serves by default"

    def _compared(self) -> str:
        shares, chosen = self.decision.probabilities, self.decision.arm
        likeliest = max(shares, key=shares.__getitem__)
        if shares[chosen] < shares[likeliest]:
            tried = (
                f"{chosen} is explored ({_percent(shares[chosen])} of such requests); otherwise {likeliest} would serve"
            )
            return f"{tried}: {self._why(likeliest)}"
        return self._why(chosen)

    def _why(self, chosen: str) -> str:
        default = self.in_service.policy.default_arm
        default_arm = None if default is None else self.in_service.policy.arms[default]
        others = sorted((arm for arm in self.candidates if arm != chosen and arm in self.terms), key=self._weighted_s)
        first = min(others, key=self._weighted_s)
        if chosen == default_arm and self._weighted_s(first) < self._weighted_s(chosen):
            return self._keeps_default(chosen, first)
        other = default_arm if default_arm in others else first
        lead = self._comparison(chosen, other)
        if self.terms[chosen].seconds > (1.0 + _TIE_SHARE) * self.terms[other].seconds:
            return f"{lead}, but {other} {self._cost_reason(other)}{self._faster_alternative(chosen, other)}"
        return f"{lead}: {self._main_cause(chosen, other)}{self._faster_alternative(chosen, other)}"

    def _keeps_default(self, chosen: str, first: str) -> str:
        saved_s, terms = self._weighted_s(chosen) - self._weighted_s(first), self.terms[first]
        promised = f"{first} is predicted to save only {_time(saved_s)}"
        return f"{chosen}, the default, serves: {promised}, and a switch needs {_time(terms.margin_s)}"

    def _comparison(self, chosen: str, other: str) -> str:
        own = self.terms[chosen].seconds
        lead = f"{chosen} is expected to take {_time(own)}, {_than(own, self.terms[other].seconds)} {other}"
        if self.baseline in self.candidates and self.baseline in self.terms and self.baseline not in (chosen, other):
            lead += f" and {_than(own, self.terms[self.baseline].seconds)} {self.baseline}"
        return lead

    def _cost_reason(self, arm: str) -> str:
        """The reason why an arm's weighted time exceeds its time."""
        n = self.standings[arm].total_in_flight if self.objective == "throughput" else 0
        return f"would slow the {_requests(n)} there" if n else f"counts more for {self.objective}"

    def _main_cause(self, chosen: str, other: str) -> str:
        """The main cause of the difference between two arms."""
        a, b = self.terms[chosen], self.terms[other]
        causes = _causes(a, b)
        there = self.standings[chosen].total_in_flight, self.standings[other].total_in_flight
        messages: dict[str, Callable[[], str]] = {
            "drafts": lambda: f"its acceptance length is {a.tau:.1f} on such requests ({other}: {b.tau:.1f})",
            "step": lambda: f"its steps take {_time(a.step_s)}, those of {other} {_time(b.step_s)}",
            "load": lambda: f"it has {_requests(there[0])} there, {other} {there[1]}",
            "measured": lambda: f"recent answers were {_against(a.residual)}, those of {other} {_against(b.residual)}",
            "wait": lambda: f"{other} has a queue of {_time(b.wait_s)}",
            "read": lambda: (
                f"it has the beginning of this request in its prefix cache, which saves {_time(a.cached_prefix_s)}"
            ),
            "prompt": lambda: f"its prefill takes {_time(a.prompt_s)}, that of {other} {_time(b.prompt_s)}",
        }
        return messages[max(causes, key=causes.__getitem__)]()

    def _faster_alternative(self, chosen: str, other: str) -> str:
        """A faster arm, and why it is not chosen; "" without one, or if already mentioned."""
        own = self.terms[chosen]
        out = [arm for arm in self.terms if arm not in self.candidates and self._weighted_s(arm) < own.weighted_s]
        if out:
            arm = min(out, key=self._weighted_s)
            standing = self.standings.get(arm)
            reason = self.ineligible_reasons[(standing and standing.ineligible_reason) or "no_replica"]
            return f"; {arm} would be faster but {(standing and standing.unable) or reason}"
        rest = [arm for arm in self.candidates if arm != chosen and arm in self.terms]
        soon = min(rest, key=lambda arm: self.terms[arm].seconds)
        if self.terms[soon].seconds < (1.0 - _TIE_SHARE) * own.seconds:
            return "" if soon == other else f"; {soon} would finish sooner but {self._cost_reason(soon)}"
        idle = min(rest, key=lambda arm: self.terms[arm].unloaded_s)
        if idle == other or self.terms[idle].unloaded_s >= (1.0 - _TIE_SHARE) * own.unloaded_s:
            return ""
        n = self.standings[idle].total_in_flight
        return f"; {idle} would be faster but {f'has {_requests(n)} there' if n else self._cost_reason(idle)}"

    def _weighted_s(self, arm: str) -> float:
        return self.terms[arm].weighted_s


def explain_doubt(in_service: PolicyInService, context: Context | None) -> Doubt:
    """What the policy knows of its predictions; nothing if it has no calibration."""
    if context is None or not in_service.accepts(context):
        return Doubt()
    policy = in_service.policy
    try:
        intervals = policy.intervals(context) or ()
        return Doubt(
            policy.neighbours(context), policy.is_far(context), dict(zip(policy.arms, intervals, strict=False))
        )
    except Exception:  # a policy may be third-party code: report the rest
        return Doubt()


def explain_terms(decision: Decision, in_service: PolicyInService, context: Context | None) -> dict[str, Terms]:
    """Terms by arm, under the load and corrections of the decision; empty if nothing is predicted."""
    if context is None or not in_service.accepts(context):
        return {}
    made = decision.policy == in_service.policy.id or decision.policy.startswith(SAFE_MODE)
    shifts = [decision.residual] if made and decision.residual is not None else in_service.online.shifts
    try:
        terms = in_service.policy.terms(context, shifts, decision.load if made else None)
    except Exception:  # a policy may be third-party code: report the rest
        return {}
    return dict(zip(in_service.policy.arms, terms or (), strict=False))


def _causes(a: Terms, b: Terms) -> dict[str, float]:
    """Weighted seconds saved by `a` against `b`, by cause; they sum to the difference.

    The logarithms of the factors of decoding share its difference by the logarithmic mean (Ang, Liu 2001).
    """
    prefill_weight = (a.prefill_weight + b.prefill_weight) / 2
    left, right = a.weighted_decode_s, b.weighted_decode_s
    log = math.log(right / left) if left > 0 and right > 0 else 0.0
    mean = (right - left) / log if abs(log) > 1e-12 else left
    return {
        "drafts": mean * math.log(a.tau / b.tau),
        "step": mean * math.log(b.step_s / a.step_s) if a.step_s > 0 and b.step_s > 0 else 0.0,
        "load": mean * math.log(b.objective_weight / a.objective_weight)
        + (b.prefill_weight - a.prefill_weight) * (a.prefill_s + b.prefill_s) / 2,
        "measured": mean * (b.residual - a.residual),
        "wait": b.wait_s - a.wait_s,
        "read": (a.cached_prefix_s - b.cached_prefix_s) * prefill_weight,
        "prompt": (b.prompt_s - a.prompt_s) * prefill_weight,
    }


def _time(seconds: float) -> str:
    if seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.00995 else f"{1000 * seconds:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"


def _than(seconds: float, other: float) -> str:
    """Compare two times: `22 % less than`."""
    saved = 1.0 - seconds / other if other else 0.0
    if abs(saved) < _TIE_SHARE:
        return "as long as"
    return f"{_percent(abs(saved))} {'less' if saved > 0 else 'more'} than"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.095 else f"{100 * share:.0f} %"


def _requests(n: int) -> str:
    return f"{n or 'no'} request{'' if n == 1 else 's'}"


def _against(residual: float) -> str:
    """Describe measured times relative to predictions."""
    if abs(residual) < _TIE_SHARE:
        return "as predicted"
    return f"{_percent(abs(math.expm1(residual)))} {'slower' if residual > 0 else 'faster'} than predicted"
