"""Updates load, quarantine and policies from successful attempts."""

import logging

from draftpick.router.load.load_model import LoadModel
from draftpick.router.online.quarantine import AcceptanceMonitor
from draftpick.router.registry.active_policy import ActivePolicies
from draftpick.router.telemetry.metrics import Metrics
from draftpick.router.types import Attempt

log = logging.getLogger("draftpick.router")


class AttemptLearning:
    """Observer of attempts; runs after the client has its answer."""

    def __init__(
        self, active_policies: ActivePolicies, acceptance_monitor: AcceptanceMonitor, load: LoadModel, metrics: Metrics
    ) -> None:
        self._active_policies, self._acceptance_monitor, self._load, self._metrics = (
            active_policies,
            acceptance_monitor,
            load,
            metrics,
        )

    def on_attempt_end(self, attempt: Attempt) -> None:
        """Learn from a finished answer; failures are counted in `metrics`."""
        if attempt.running is None:
            return
        decision, outcome = attempt.decision, attempt.outcome
        self._load.observe(decision.arm, attempt.context, outcome, attempt.running)
        shadow, cluster = decision.reason == "shadow", attempt.cluster[1] if attempt.cluster else 0
        try:
            self._acceptance_monitor.observe(
                decision.arm, outcome.acceptance_length, outcome.output_tokens, cluster, shadow=shadow
            )
            if shadow or decision.reason == "policy":
                stretch = self._load.slowdown(decision.arm, attempt.context, attempt.running)
                in_flight = attempt.in_flight[decision.arm] + 1
                self._active_policies.observe(attempt.context, cluster, decision, outcome, in_flight, stretch)
        except Exception as error:  # third-party policies may raise anything; the answer has been sent
            log.exception("policy %s cannot learn", self._active_policies.policy.id)
            self._metrics.failures["learning", type(error).__name__] += 1
