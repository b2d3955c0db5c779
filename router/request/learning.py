"""Updates load, quarantine and policies from successful attempts."""

from collections import defaultdict
from dataclasses import replace

from draftpick.router.load.load_model import LoadModel
from draftpick.router.online.key_shares import KeyShares
from draftpick.router.online.quarantine import AcceptanceMonitor
from draftpick.router.registry.active_policy import ActivePolicies
from draftpick.router.types import Attempt, acceptance_by_arm


class AttemptLearning:
    """Observer of attempts."""

    def __init__(self, active_policies: ActivePolicies, acceptance_monitor: AcceptanceMonitor, load: LoadModel) -> None:
        self._active_policies, self._acceptance_monitor, self._load = active_policies, acceptance_monitor, load
        self._keys: defaultdict[str, KeyShares] = defaultdict(KeyShares)

    def on_attempt_end(self, attempt: Attempt) -> None:
        """Learn from a finished answer. Raises what a policy raises."""
        if attempt.running is None:
            return
        decision, outcome = attempt.decision, attempt.outcome
        # Sequences side by side, or a text to copy from: their steps are no measure of other requests'.
        if attempt.sampling.get("n", 1.0) > 1 or outcome.prediction is not None:
            outcome = replace(outcome, tpot_s=None, acceptance_length=None, drafters=None)
        weight = self._keys[decision.arm].observe(attempt.key)
        self._load.observe(decision.arm, attempt.context, outcome, attempt.running, weight)
        shadow, cluster = decision.reason == "shadow", attempt.cluster[1] if attempt.cluster else 0
        watch, key, adapter = self._acceptance_monitor.observe, attempt.key, attempt.adapter
        if outcome.drafters is None:
            tau, tokens = outcome.acceptance_length, outcome.output_tokens
            watch(decision.arm, tau, tokens, cluster, shadow=shadow, key=key, adapter=adapter)
        else:
            for arm, tau, tokens in acceptance_by_arm(decision.arm, outcome):
                watch(arm, tau, tokens, cluster, shadow=shadow, key=key, adapter=adapter)
        if shadow or decision.reason == "policy":
            slowdown = self._load.slowdown(decision.arm, attempt.context, attempt.running)
            in_flight = attempt.in_flight[decision.arm] + 1
            self._active_policies.observe(
                attempt.context, cluster, decision, outcome, in_flight, slowdown, key, adapter
            )
