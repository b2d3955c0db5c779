"""Plans the replicas of each engine for a number of accelerators, and compares with the best engine of one drafter.

A local search over allocations: it starts from the best engine alone, a pool included, and moves accelerators between
engines, many at first, then fewer, while that improves the objective. All allocations get the same requests (common
random numbers). The result is evaluated on unseen requests.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.fleet import Fleet
from draftpick.policy_training.simulator.requests import Requests
from draftpick.policy_training.simulator.routing import Floats, strategy
from draftpick.policy_training.simulator.simulate import interval, intervals, simulate
from draftpick.policy_training.simulator.traffic import Traffic, predicted_tau

OBJECTIVES = ("latency_s/mean", "latency_s/p95", "latency_s/p99", "tpot_s/mean", "tpot_s/p95", "ttft_s/p95")
WARM_UP = 0.1
"""Share of warm-up requests, which are not counted."""
Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlanQuestion:
    """The planning problem.

    `objective`: the figure to minimise, one of `OBJECTIVES`. `strategy` and `predictability`: of the router. `seeds`:
    of the search's requests; the evaluation uses as many others, at least `evaluation_seeds`.
    """

    arms: Mapping[str, Arm]
    traffic: Traffic
    accelerators: int
    objective: str = "latency_s/mean"
    strategy: str = "throughput"
    predictability: float = 0.6
    seeds: int = 2
    evaluation_seeds: int = 8
    first_seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {self.objective!r} (known: {', '.join(OBJECTIVES)})")
        if not any(arm.accelerators <= self.accelerators for arm in self.arms.values()):
            raise DatasetError(f"{self.accelerators} accelerators are too few for any of these engines")


@dataclass(frozen=True, slots=True)
class Plan:
    """An allocation, and the best single engine, one with a drafter or none unless there are only pools. Both figures
    are seconds, `speed` the ratio of the second to the first: above 1, the plan is faster. `better`: whether that is
    significant; else one engine is the better choice. `pool`: the best pool on all accelerators, if any was considered,
    and `pool_speed` its ratio."""

    replicas: dict[str, int]
    single: dict[str, int]
    objective: str
    value: Interval
    single_value: Interval
    speed: Interval
    better: bool
    tried: int
    figures: dict[str, Interval] = field(default_factory=dict)
    single_figures: dict[str, Interval] = field(default_factory=dict)
    pool: dict[str, int] | None = None
    pool_speed: Interval | None = None

    @property
    def chosen(self) -> dict[str, int]:
        """The recommended allocation."""
        return self.replicas if self.better else self.single


ProgressCallback = Callable[[int, float], None]
"""Called with (number of allocations tried, seconds of the best one)."""


class PlanEvaluator:
    """Simulates allocations on the requests of some seeds, each allocation once."""

    def __init__(self, question: PlanQuestion, seeds: Sequence[int]) -> None:
        self._question, self._names = question, tuple(question.arms)
        self._traffic: list[tuple[Requests, Floats]] = []
        for seed in seeds:
            made = question.traffic(seed)
            self._traffic.append((made, predicted_tau(made.tau, question.predictability, seed)))
        self.figures_by_counts: dict[Counts, list[dict[str, float]]] = {}

    def figures(self, counts: Counts) -> list[dict[str, float]]:
        """Figures of an allocation by seed."""
        if counts not in self.figures_by_counts:
            fleet = Fleet.from_counts(self._question.arms, dict(zip(self._names, counts, strict=True)))
            self.figures_by_counts[counts] = [
                simulate(fleet, made, strategy(self._question.strategy, fleet, made, tau)).figures(WARM_UP)
                for made, tau in self._traffic
            ]
        return self.figures_by_counts[counts]

    def values(self, counts: Counts) -> list[float]:
        """The objective by seed."""
        return [figures[self._question.objective] for figures in self.figures(counts)]

    def value(self, counts: Counts) -> float:
        """The objective, averaged over seeds."""
        return float(np.mean(self.values(counts)))


def plan(question: PlanQuestion, on_progress: ProgressCallback = lambda tried, best: None) -> Plan:
    """The best allocation found, evaluated on other requests than those of the search."""
    names, first = tuple(question.arms), question.first_seed
    evaluator = PlanEvaluator(question, range(first, first + question.seeds))
    pools = list(_alone(question, pool=True))
    single = min(list(_alone(question, pool=False)) or pools, key=evaluator.value)
    pool = min(pools, key=evaluator.value, default=None)
    best = _search(question, evaluator, min([single, *pools], key=evaluator.value), on_progress)
    fresh = PlanEvaluator(question, range(first + question.seeds, first + question.seeds + question.evaluation_seeds))
    ours, theirs = fresh.values(best), fresh.values(single)
    speed = _speed(theirs, ours)
    return Plan(
        replicas=_named(names, best),
        single=_named(names, single),
        objective=question.objective,
        value=interval(ours),
        single_value=interval(theirs),
        speed=speed,
        better=best != single and speed.low > 1.0,
        tried=len(evaluator.figures_by_counts),
        figures=intervals(fresh.figures(best)),
        single_figures=intervals(fresh.figures(single)),
        pool=None if pool is None else _named(names, pool),
        pool_speed=None if pool is None else _speed(theirs, fresh.values(pool)),
    )


def _speed(slower: Sequence[float], faster: Sequence[float]) -> Interval:
    """The ratio by seed."""
    return interval([a / b for a, b in zip(slower, faster, strict=True)])


def _named(names: Sequence[str], counts: Counts) -> dict[str, int]:
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _alone(question: PlanQuestion, *, pool: bool) -> Iterator[Counts]:
    """All accelerators for one pool, or one engine that is none, each in turn."""
    for at, arm in enumerate(question.arms.values()):
        if arm.pool is pool and (count := question.accelerators // arm.accelerators):
            yield tuple(count if i == at else 0 for i in range(len(question.arms)))


def _search(question: PlanQuestion, evaluator: PlanEvaluator, start: Counts, on_progress: ProgressCallback) -> Counts:
    best, step = start, max(question.accelerators // 4, 1)
    while step:
        better = min(_moves(question, best, step), key=evaluator.value, default=best)
        on_progress(len(evaluator.figures_by_counts), evaluator.value(best))
        if evaluator.value(better) < evaluator.value(best):
            best = better
        else:
            step //= 2
    return best


def _moves(question: PlanQuestion, counts: Counts, step: int) -> Iterator[Counts]:
    """Allocations in which one engine gives about `step` accelerators to another one."""
    needs = [arm.accelerators for arm in question.arms.values()]
    free = question.accelerators - sum(n * c for n, c in zip(needs, counts, strict=True))
    for giver, count in enumerate(counts):
        given = min(-(-step // needs[giver]), count)
        for taker in range(len(counts)):
            taken = (free + given * needs[giver]) // needs[taker]
            if taker != giver and given and taken:
                moved = list(counts)
                moved[giver] -= given
                moved[taker] += taken
                yield tuple(moved)
