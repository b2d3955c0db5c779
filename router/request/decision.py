"""Chooses an engine for a request: the policy's draw among the eligible ones, or a fallback."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from draftpick.engines.arms import drafter_of, engine_of
from draftpick.engines.pool.forecast import Forecast as DrafterForecast
from draftpick.engines.replicas import Replica, ReplicaTable
from draftpick.router import headers
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.config.sections import Objective
from draftpick.router.errors import BadRequest, NoEngineAvailable, Overloaded, RequestError
from draftpick.router.load.health_signal import HealthSignal, signals_of
from draftpick.router.load.load_model import LoadModel
from draftpick.router.policies.base import DecisionInput
from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.registry.active_policy import ActivePolicies
from draftpick.router.request.admission import Admission
from draftpick.router.telemetry.metrics import Metrics
from draftpick.router.types import Accepted, Context, Decision

log = logging.getLogger("draftpick.router")

_NOTHING: Mapping[str, int] = {}
_NO_TURNS: Mapping[str, Accepted] = {}


class DecisionMaker:
    """Makes decisions. `metrics` counts fallbacks by reason."""

    def __init__(
        self,
        config: RouterConfig,
        active_policies: ActivePolicies,
        replicas: ReplicaTable,
        load: LoadModel,
        health_signals: Sequence[HealthSignal],
        admission: Admission,
        metrics: Metrics,
        baseline: str,
        rng: np.random.Generator,
    ) -> None:
        """`baseline`: the engine that serves while no load is known."""
        self._config, self._active_policies, self._replicas = config, active_policies, replicas
        self._load, self._health_signals, self._admission = load, health_signals, admission
        self._metrics, self._rng = metrics, rng
        self._objective, self._pinnable = config.load.objective, frozenset(replicas.arms)
        self._default = FixedPolicy(replicas.arms, config.default_engine)
        self._baseline = FixedPolicy(replicas.arms, baseline)

    def __call__(
        self,
        context: Context | None,
        pin: str | None = None,
        *,
        failed: Collection[str] = (),
        tried: Collection[Replica] = (),
        explore: bool = True,
        cached_prefix: Mapping[str, int] = _NOTHING,
        objective: Objective | None = None,
        unable: Collection[str] = (),
        generates: bool = True,
        preferred: Collection[str] = (),
        accepted: Mapping[str, Accepted] = _NO_TURNS,
        adapter: str = "",
    ) -> Decision:
        """Choose an arm with an available replica: if possible on none of the engines `failed`, never one of `tried`.

        `explore`: whether exploration is allowed; `cached_prefix`: see `ReplicaTable.pick`. `unable`: engines that
        cannot take the request. `generates`: False if no policy decides, since no text is generated. `preferred`:
        engines from which a policy with features chooses if any is there. `accepted`, `adapter`: see `DecisionInput`.

        Raises `NoEngineAvailable`, `Overloaded` if all engines are full, `BadRequest` for an unknown pin.
        """
        arms = self._replicas.eligible(tried)
        if pin is not None:
            arms = self._pinned_arms(pin, arms)
            if pin in self._pinnable:
                return self._pinned_decision(pin)
            explore = False
        if not arms:
            raise self._nothing_left()
        if unable and pin is None:
            arms = [arm for arm in arms if engine_of(arm) not in unable]
            if not arms:
                raise NoEngineAvailable("no engine that takes this request is ready", code="no_engine")
        if failed:
            arms = [arm for arm in arms if engine_of(arm) not in failed] or arms
        eligible, fallback = self.healthy(arms, adapter)
        if fallback is not None:
            return self._fallback_decision(fallback, eligible, self._baseline)
        needs = self._active_policies.policy.featurizer
        if needs is not None and (context is None or context.featurizer != needs):  # None, or of the previous policy
            return self._fallback_decision("no_context" if generates else None, eligible)
        if preferred and needs is not None and pin is None:  # a policy without features is an order
            eligible = [arm for arm in eligible if engine_of(arm) in preferred] or eligible
        loads = None
        if context is not None and self._config.load.enabled:
            loads = partial(self._load.terms_now, context=context, cached_prefix=cached_prefix, objective=objective)
        exploration, wanted = self._config.exploration, objective or self._objective
        most = exploration.max_in_flight
        explore = explore and (most is None or self._admission.in_flight < most)
        rate = self._active_policies.explore if explore else 0.0
        given = DecisionInput(context, eligible, rate, exploration, loads, rate > 0.0, wanted, accepted, adapter)
        try:
            decision = self._active_policies.decide(given, self._rng)
            return decision if pin is None else replace(decision, reason="pinned")
        except Exception:  # third-party policies may raise anything; the request is served anyway
            log.exception("policy %s failed", self._active_policies.policy.id)
            return self._fallback_decision("policy_error", eligible)

    def _nothing_left(self) -> RequestError:
        if self._replicas.reachable():
            return Overloaded("every engine is full", retry_after_s=self._admission.limits.retry_after_s)
        return NoEngineAvailable("no engine is ready", code="no_engine")

    def healthy(self, arms: list[str], adapter: str = "") -> tuple[list[str], str | None]:
        """Drop the arms that a health signal suspects for an adapter, unless it suspects all of them.

        Also returns the reason of a fallback, if a signal with a `fallback` suspects all.
        """
        for signal in signals_of(self._health_signals, adapter) if adapter else self._health_signals:
            if signal.suspects:
                in_flight = self._replicas.in_flight()
                admitted = [arm for arm in arms if arm not in signal.suspects or signal.admits(arm, in_flight[arm])]
                if not admitted and signal.fallback is not None:
                    return arms, signal.fallback
                arms = admitted or arms
        return arms, None

    def fallbacks(
        self, decision: Decision, tried: Collection[Replica], unable: Collection[str], adapter: str, most: int
    ) -> list[tuple[str, Replica]]:
        """Where a gateway may send a request next, if the chosen engine fails: other replicas, the best first, each
        with its engine. `tried`, `unable`, `adapter`: see `__call__`."""
        left, found = set(tried), list[tuple[str, Replica]]()
        predicted = decision.predicted_tpot_s
        cost = [-p for p in decision.probabilities.values()] if predicted is None else predicted
        others = [arm for _, arm in sorted(zip(cost, decision.probabilities, strict=True))]
        eligible, _ = self.healthy(self._replicas.eligible(left), adapter)
        for arm in (decision.arm, *others):
            able = arm in eligible and engine_of(arm) not in unable
            if len(found) < most and able and (replica := self._replicas.pick(arm, left)) is not None:
                left.add(replica)
                found.append((engine_of(arm), replica))
        return found

    def _pinned_arms(self, pin: str, eligible: list[str]) -> list[str]:
        """The eligible arms that a pin allows: one, or all of a pool."""
        if not self._config.allow_engine_pinning:
            raise BadRequest("router.allow_engine_pinning is false", param=headers.ARM, code="pin_not_allowed")
        pinned = [pin] if pin in self._pinnable else self._replicas.arms_of(pin)
        if not pinned:
            known = ", ".join(self._replicas.arms)
            raise BadRequest(f"no engine {pin!r} (engines: {known})", param=headers.ARM, code="unknown_engine")
        if not (left := [arm for arm in pinned if arm in eligible]):
            raise NoEngineAvailable(f"engine {pin!r} is not ready", code="no_engine")
        return left

    def _pinned_decision(self, pin: str) -> Decision:
        drafter = drafter_of(pin)
        forecast = DrafterForecast(objective=self._objective, only=drafter) if drafter is not None else None
        return Decision(pin, 1.0, {pin: 1.0}, self._active_policies.policy.id, "pinned", forecast=forecast)

    def _fallback_decision(
        self, reason: str | None, eligible: list[str], policy: FixedPolicy | None = None
    ) -> Decision:
        if reason is not None:
            self._metrics.fallbacks[reason] += 1
        made = (policy or self._default).decide(DecisionInput(None, eligible), self._rng)
        return Decision(made.arm, made.propensity, made.probabilities, made.policy, "fallback", forecast=made.forecast)
