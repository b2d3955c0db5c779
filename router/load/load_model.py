"""The effect of engine load on a request's time, and on that of concurrent requests.

With B requests at a replica, and t(n) the seconds of its step with n of them, one more request makes its own steps take
t(B+1), and those of the others longer by t(B+1) - t(B); during its prefill, the others wait (they get one step
meanwhile, which is ignored: in simulation it makes no difference). Objectives weight these, for a step and for a second
of prefill:

    latency       t(B+1)                          1               the request's own time
    throughput    t(B+1) + B (t(B+1) - t(B))      B + 1           the time of all current requests
    cost          accelerators t(B+1) / (B+1)     accelerators    its share of an engine: fills busy ones, frees others

Where a request would have to wait, it runs later, as the last one in a full batch.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from draftpick.engines.profile.profile import Profile
from draftpick.engines.replicas import Replica, ReplicaTable
from draftpick.router.config.sections import LoadConfig, Objective
from draftpick.router.load.staleness import StaleReports
from draftpick.router.load.step_time import MAX_BATCH, StepTimeModel
from draftpick.router.types import Context, LoadTerms, Outcome

_OWN_OF_COST = 0.1
"""Weight of a request's own time in the objective `cost`: breaks ties in favour of the faster engine."""
_BYTES_PER_TOKEN = 4
_WEIGHT = 0.02
_NO_LOAD = (1.0, 1.0, 0.0, 0, 1.0)
"""Load of an arm without a replica."""


class LoadModel:
    """Step times of every arm at any load.

    `stale`: arms with outdated load reports; `service_s`: service time by arm, without waiting. `on_profiles` is called
    with the profiles of all arms when one is new.
    """

    def __init__(
        self,
        config: LoadConfig,
        replicas: ReplicaTable,
        accelerators: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`accelerators`: how many each replica of an arm takes (1)."""
        self._config, self._replicas = config, replicas
        self._accelerators = dict(accelerators or {})
        self.steps = {arm: StepTimeModel() for arm in replicas.arms}
        self.service_s = dict.fromkeys(replicas.arms, 0.0)
        self.staleness = StaleReports(replicas, config.stale_s, clock)
        self._has_foreign_load = False
        self.on_profiles: Callable[[Mapping[str, Profile]], None] = lambda profiles: None

    def terms_now(
        self,
        arms: Sequence[str],
        context: Context,
        cached_prefix: Mapping[str, int],
        objective: Objective | None = None,
    ) -> LoadTerms | None:
        """Load terms of each of `arms` at the replica that would be picked; None if no engine has a profile.

        `cached_prefix`: see `ReplicaTable.pick`.
        """
        wanted = objective or self._config.objective
        if not cached_prefix and not self._has_foreign_load and wanted != "cost" and not self._replicas.busy:
            return None
        mode, by_arm, pick = context.sampled + context.truncated, self._replicas.by_arm, self._replicas.pick
        rows = []
        for arm in arms:
            replicas = by_arm.get(arm)
            # An arm without an admitting replica is not eligible.
            replica = (replicas[0] if len(replicas) == 1 else pick(arm, (), cached_prefix)) if replicas else None
            if replica is None:
                rows.append(_NO_LOAD)
                continue
            table, before, wait_s, prefill_weight = (
                self.steps[arm],
                replica.in_flight + replica.foreign_in_flight,
                0.0,
                1.0,
            )
            if before:
                if before >= table.max_running or (replica.report is not None and replica.report.waiting):
                    wait_s = self._wait_s(arm, replica, before)
                before = min(before, table.max_running - 1, MAX_BATCH - 1)
            curve = table.curves[mode]
            slowdown = curve[before + 1]
            if wanted == "cost":
                accelerators = self._accelerators.get(arm, 1)
                objective_weight = accelerators * slowdown / (before + 1) + _OWN_OF_COST * slowdown
                prefill_weight = accelerators + _OWN_OF_COST
            elif wanted == "latency":
                objective_weight = slowdown
            else:
                objective_weight, prefill_weight = slowdown + before * (slowdown - curve[before]), 1.0 + before
            cached_tokens = cached_prefix.get(replica.url, 0) // _BYTES_PER_TOKEN if cached_prefix else 0
            rows.append((slowdown, objective_weight, wait_s, cached_tokens, prefill_weight))
        return LoadTerms(*zip(*rows, strict=True))

    def _wait_s(self, arm: str, replica: Replica, in_flight: int) -> float:
        """Seconds until one more request starts to run."""
        report = replica.report
        room = report.running if report is not None and report.waiting else self.steps[arm].max_running
        return max(in_flight + 1 - room, 0) / max(room, 1) * self.service_s[arm]

    def slowdown(self, arm: str, context: Context | None, running: float) -> float:
        """Ratio of the step time with `running` requests to that with one."""
        curve = self.steps[arm].curves[0 if context is None else context.sampled + context.truncated]
        return curve[min(round(running), MAX_BATCH)]

    def observe(self, arm: str, context: Context | None, outcome: Outcome, running: float) -> None:
        """Learn from a finished answer. `running`: concurrent requests at its replica, including itself."""
        if outcome.tpot_s is None:
            return
        if outcome.ttft_s is not None:  # what the engine did, without the router's own time
            prefill_s = outcome.ttft_s - (outcome.overhead_s or 0.0) - (outcome.queue_s or 0.0)
            served_s, before = prefill_s + outcome.tpot_s * (outcome.output_tokens or 0), self.service_s[arm]
            self.service_s[arm] = before + _WEIGHT * (served_s - before) if before else served_s
        if context is None:
            return
        mode = context.sampled + context.truncated
        self.steps[arm].update(running, mode, outcome.tpot_s * (outcome.acceptance_length or 1.0))

    def use_profile(self, arm: str, profile: Profile) -> None:
        """Use a new profile of an arm."""
        self.steps[arm].use_profile(profile)
        self.on_profiles({arm: table.profile for arm, table in self.steps.items() if table.profile is not None})

    def refresh(self) -> None:
        """Refit on the new observations, and update the stale arms."""
        for table in self.steps.values():
            table.refit()
        self._has_foreign_load = any(
            replica.foreign_in_flight for there in self._replicas.by_arm.values() for replica in there
        )
        self.staleness.refresh()
