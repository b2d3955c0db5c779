"""Tells engines how many of their replicas are wanted, as demand and the budget have it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from draftpick.engines.replicas import ReplicaTable
from draftpick.router.config.router_config import DraftpickConfig
from draftpick.router.load.demand import Demand, Scalable, replicas
from draftpick.router.load.load_model import LoadModel

TargetSetter = Callable[[int], Awaitable[object]]


class Autoscaler:
    """Of all engines that are started here. `wanted`: replicas of each; `tells`: whether anybody is told."""

    def __init__(
        self,
        config: DraftpickConfig,
        table: ReplicaTable,
        demand: Demand,
        load: LoadModel,
        set_target: Mapping[str, TargetSetter],
    ) -> None:
        """`set_target` tells the replicas of an arm how many of them are wanted."""
        self._config, self._table, self._set_target = config.router.scaling, table, set_target
        self._demand, self._load = demand, load
        self._fleet = scalable_engines(config)
        self.enabled, self.targets = bool(set_target), dict[str, int]()

    async def run(self) -> None:
        """Tell them, for ever."""
        while True:
            await asyncio.sleep(self._config.every_s)
            everywhere = [replica for there in self._table.by_arm.values() for replica in there]
            own, others = sum(r.in_flight for r in everywhere), sum(r.foreign_in_flight for r in everywhere)
            # Where others send requests, too, these are taken to wish for the same.
            scale = 1.0 + others / own if own else 1.0
            demand = self._demand.in_flight(self._load.service_s)
            self.targets = replicas({arm: scale * n for arm, n in demand.items()}, self._fleet, self._config.budget)
            told = [self._set_target[arm](n) for arm, n in self.targets.items() if arm in self._set_target]
            await asyncio.gather(*told, return_exceptions=True)


def scalable_engines(config: DraftpickConfig) -> dict[str, Scalable]:
    """The engines that are started here: how few and how many replicas each may have."""
    found = {}
    for engine in config.engines:
        scaling, fixed_number = engine.deployment.autoscaling, engine.deployment.num_replicas
        least, most = (scaling.min_replicas, scaling.max_replicas) if scaling else (fixed_number, fixed_number)
        target = scaling.target_ongoing_requests if scaling else 1.0
        if engine.kind != "url":
            found[engine.name] = Scalable(config.accelerators[engine.name], least, most, target)
    return found
