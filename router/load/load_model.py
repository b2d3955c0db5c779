"""The effect of engine load on a request's time, and on that of concurrent requests.

With B requests at a replica, and t(n) the seconds of its step with n of them, one more request makes its own steps take
t(B+1), and those of the others longer by t(B+1) - t(B); during its prefill, the others wait (they get one step
meanwhile, which is ignored: in simulation it makes no difference). Objectives weight these, for a step and for a second
of prefill:

    latency       t(B+1)                          1               the request's own time
    throughput    t(B+1) + B (t(B+1) - t(B))      B + 1           the time of all current requests
    cost          accelerators t(B+1) / (B+1)     accelerators    its share of an engine: fills busy ones, frees others

Where a request would have to wait, it runs later, as the last one in a full batch.

Placement takes the replica of an arm with the least `throughput` cost, in which a step depends on who else is there: it
takes the time of the most expensive sampling mode in it, since all rows pass one sampler, and each drafter of a pool in
it adds its time once, and a share of that for each further request. So sampled requests meet, and requests of one head.
A cached prefix counts by the seconds that it saves. A policy that has load terms of all arms of a pool, each at its
cheapest replica, thereby chooses replica and drafter together.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from draftpick.engines.arms import drafter_of, engine_of
from draftpick.engines.profile.profile import FURTHER_ROW, GREEDY, SAMPLED, Profile
from draftpick.engines.replicas import Replica, ReplicaTable
from draftpick.router.config.sections import LoadConfig, Objective
from draftpick.router.load.staleness import StaleReports
from draftpick.router.load.step_time import MAX_BATCH, StepTimeModel
from draftpick.router.types import Context, LoadTerms, Outcome

_OWN_OF_COST = 0.1
"""Weight of a request's own time in the objective `cost`: breaks ties in favour of the faster engine."""
_BYTES_PER_TOKEN = 4
_WEIGHT = 0.02
_USUAL_STEPS = 50.0
"""Steps of an answer, until answers show it."""
_READING_STEPS = 0.02
"""Steps that reading a prompt token takes, without a profile: between accelerators (0.005) and CPUs (0.06)."""
_NO_LOAD = (1.0, 1.0, 0.0, 0, 1.0)
"""Load of an arm without a replica."""


@dataclass(frozen=True, slots=True)
class Composition:
    """Who runs at a replica: the most expensive sampling mode, and seconds that drafters add to a step now, and that
    one more request of an arm would add."""

    mode: int
    drafters_s: float
    further_s: Mapping[str, float]


class LoadModel:
    """Step times of every engine at any load.

    `stale`: arms with outdated load reports; `steps`, `service_s`, `num_steps`: step times, service time without
    waiting, and steps of an answer, by engine. `on_profiles` is called with the profiles of all arms when one is new.
    """

    def __init__(
        self,
        config: LoadConfig,
        replicas: ReplicaTable,
        accelerators: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`accelerators`: how many each replica of an engine takes (1)."""
        self._config, self._replicas = config, replicas
        self._accelerators = dict(accelerators or {})
        self._engines = {arm: engine_of(arm) for arm in replicas.arms}
        self.steps = {engine: StepTimeModel() for engine in self._engines.values()}
        self.service_s, self.num_steps = dict.fromkeys(self.steps, 0.0), dict.fromkeys(self.steps, _USUAL_STEPS)
        self.staleness = StaleReports(replicas, config.stale_s, clock)
        self._has_foreign_load = False
        self.on_profiles: Callable[[Mapping[str, Profile]], None] = lambda profiles: None
        if config.enabled:
            replicas.placement_cost = self.placement_cost

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
            replica = (replicas[0] if len(replicas) == 1 else pick(arm, (), cached_prefix, mode)) if replicas else None
            if replica is None:
                rows.append(_NO_LOAD)
                continue
            engine = self._engines[arm]
            table, before, wait_s, prefill_weight = (
                self.steps[engine],
                replica.in_flight + replica.foreign_in_flight,
                0.0,
                1.0,
            )
            if before:
                if before >= table.max_running or (replica.report is not None and replica.report.waiting):
                    wait_s = self._wait_s(engine, replica, before)
                before = min(before, table.max_running - 1, MAX_BATCH - 1)
            curve = table.curves[mode]
            slowdown, previous = curve[before + 1], curve[before]
            if table.drafter_s and before:
                slowdown, previous = self._mixed_slowdown(table, arm, replica, mode)
            if wanted == "cost":
                accelerators = self._accelerators.get(engine, 1)
                objective_weight = accelerators * slowdown / (before + 1) + _OWN_OF_COST * slowdown
                prefill_weight = accelerators + _OWN_OF_COST
            elif wanted == "latency":
                objective_weight = slowdown
            else:
                objective_weight, prefill_weight = slowdown + before * (slowdown - previous), 1.0 + before
            cached_tokens = cached_prefix.get(replica.url, 0) // _BYTES_PER_TOKEN if cached_prefix else 0
            rows.append((slowdown, objective_weight, wait_s, cached_tokens, prefill_weight))
        return LoadTerms(*zip(*rows, strict=True))

    def placement_cost(self, arm: str, replica: Replica, mode: int, cached_bytes: int = 0) -> float:
        """What one more request of an arm costs all requests at a replica, in seconds: its own steps, what it adds to
        those of the others, less what a cached prefix saves them all."""
        engine, n = self._engines[arm], replica.in_flight + replica.foreign_in_flight
        table = self.steps[engine]
        before_s, after_s = self._mixed_step_s(table, arm, replica, mode)
        if n >= table.max_running:  # it would wait for the others
            after_s *= (n + 1) / table.max_running
        cost_s = self.num_steps[engine] * (after_s + n * (after_s - before_s))
        if not cached_bytes:
            return cost_s
        token_s = _READING_STEPS if table.profile is None else table.profile.prefill_s_per_token
        return cost_s - cached_bytes / _BYTES_PER_TOKEN * token_s * (n + 1)

    def _mixed_slowdown(self, table: StepTimeModel, arm: str, replica: Replica, mode: int) -> tuple[float, float]:
        """Steps at a pool's replica with one more request of an arm, and without it, relative to that request alone."""
        before_s, after_s = self._mixed_step_s(table, arm, replica, mode)
        alone_s = table.alone_s[mode] + table.drafter_s.get(drafter_of(arm) or "", 0.0)
        return after_s / alone_s, before_s / alone_s

    def _mixed_step_s(self, table: StepTimeModel, arm: str, replica: Replica, mode: int) -> tuple[float, float]:
        """Seconds of a step at a replica now, and with one more request of an arm and a mode."""
        there = replica.composition
        if not isinstance(there, Composition):
            there = replica.composition = self._composition(table, self._engines[arm], replica)
        n, last = replica.in_flight + replica.foreign_in_flight, min(table.max_running, MAX_BATCH)
        now, then = there.mode, max(there.mode, mode)
        before_s = table.curves[now][min(n, last)] * table.alone_s[now] + there.drafters_s if n else 0.0
        after_s = table.curves[then][min(n + 1, last)] * table.alone_s[then] + there.drafters_s
        return before_s, after_s + there.further_s.get(arm, 0.0)

    def _composition(self, table: StepTimeModel, engine: str, replica: Replica) -> Composition:
        """Of this router's requests, and those of others as the engine reports them."""
        report = replica.report if replica.foreign_in_flight else None
        mode = max((one for one, rows in enumerate(replica.by_mode) if rows), default=GREEDY)
        if report is not None and report.sampled:
            mode = max(mode, SAMPLED)
        if not table.drafter_s:
            return Composition(mode, 0.0, {})
        rows, further_s, drafters_s = replica.by_arm, {}, 0.0
        for arm in self._replicas.arms_of(engine):
            drafter = drafter_of(arm) or ""
            drafter_s, n = table.drafter_s.get(drafter, 0.0), rows.get(arm, 0)
            if report is not None and report.active is not None:
                n = max(n, report.active.get(drafter, 0))
            further_s[arm] = drafter_s * (FURTHER_ROW if n else 1.0)
            drafters_s += drafter_s * (1.0 + FURTHER_ROW * (n - 1)) if n else 0.0
        return Composition(mode, drafters_s, further_s)

    def _wait_s(self, engine: str, replica: Replica, in_flight: int) -> float:
        """Seconds until one more request starts to run."""
        report = replica.report
        room = report.running if report is not None and report.waiting else self.steps[engine].max_running
        return max(in_flight + 1 - room, 0) / max(room, 1) * self.service_s[engine]

    def slowdown(self, arm: str, context: Context | None, running: float) -> float:
        """Ratio of the step time with `running` requests to that with one."""
        curve = self.steps[self._engines[arm]].curves[0 if context is None else context.sampled + context.truncated]
        return curve[min(round(running), MAX_BATCH)]

    def observe(self, arm: str, context: Context | None, outcome: Outcome, running: float, weight: float = 1.0) -> None:
        """Learn from a finished answer. `running`: concurrent requests at its replica, including itself; `weight`: of
        its API key, in (0, 1]."""
        if outcome.tpot_s is None:
            return
        if outcome.output_tokens:
            engine, steps = self._engines[arm], outcome.output_tokens / (outcome.acceptance_length or 1.0)
            self.num_steps[engine] += weight * _WEIGHT * (steps - self.num_steps[engine])
        if outcome.ttft_s is not None:  # what the engine did, without the router's own time
            engine = self._engines[arm]
            prefill_s = outcome.ttft_s - (outcome.overhead_s or 0.0) - (outcome.queue_s or 0.0)
            served_s, before = prefill_s + outcome.tpot_s * (outcome.output_tokens or 0), self.service_s[engine]
            self.service_s[engine] = before + weight * _WEIGHT * (served_s - before) if before else served_s
        if context is None:
            return
        mode = context.sampled + context.truncated
        step_s = outcome.tpot_s * (outcome.acceptance_length or 1.0)
        self.steps[self._engines[arm]].update(running, mode, step_s, weight)

    def use_profile(self, engine: str, profile: Profile) -> None:
        """Use a new profile of an engine."""
        self.steps[engine].use_profile(profile)
        for replica in self._replicas.by_engine.get(engine, ()):
            replica.composition = None
        found = {arm: self.steps[engine].profile for arm, engine in self._engines.items()}
        self.on_profiles({arm: one.with_drafter(drafter_of(arm)) for arm, one in found.items() if one is not None})

    def refresh(self) -> None:
        """Refit on the new observations, and update the stale arms."""
        for table in self.steps.values():
            table.refit()
        self._has_foreign_load = any(
            replica.foreign_in_flight for there in self._replicas.by_arm.values() for replica in there
        )
        self.staleness.refresh()
