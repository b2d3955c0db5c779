"""Sets the engines' target numbers of replicas from demand and budget."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from draftpick.engines.replicas import ReplicaTable
from draftpick.router.config.router_config import DraftpickConfig
from draftpick.router.load.demand import Demand, Scalable, replicas
from draftpick.router.load.load_model import LoadModel

TargetSetter = Callable[[int], Awaitable[object]]


class Autoscaler:
    """Scales all engines started here. `targets`: replicas by engine; `enabled`: whether targets are sent."""

    def __init__(
        self,
        config: DraftpickConfig,
        table: ReplicaTable,
        demand: Demand,
        load: LoadModel,
        set_target: Mapping[str, TargetSetter],
    ) -> None:
        """`set_target` sends an engine's target number of replicas to its replicas."""
        self._config, self._table, self._set_target = config.router.autoscaling, table, set_target
        self._demand, self._load = demand, load
        self._fleet = scalable_engines(config)
        self.enabled, self.targets = bool(set_target), dict[str, int]()

    async def run(self) -> None:
        """Send targets periodically, forever."""
        while True:
            await asyncio.sleep(self._config.interval_s)
            everywhere = [replica for there in self._table.by_engine.values() for replica in there]
            own, others = sum(r.in_flight for r in everywhere), sum(r.foreign_in_flight for r in everywhere)
            # Assume that other routers have the same demand.
            scale = 1.0 + others / own if own else 1.0
            demand = self._demand.in_flight(self._load.service_s)
            scaled = {arm: scale * n for arm, n in demand.items()}
            self.targets = replicas(scaled, self._fleet, self._config.max_accelerators)
            updates = [self._set_target[arm](n) for arm, n in self.targets.items() if arm in self._set_target]
            await asyncio.gather(*updates, return_exceptions=True)


def scalable_engines(config: DraftpickConfig) -> dict[str, Scalable]:
    """Replica bounds of the engines started here."""
    found = {}
    for engine in config.engines:
        scaling, fixed_number = engine.deployment.autoscaling, engine.deployment.num_replicas
        least, most = (scaling.min_replicas, scaling.max_replicas) if scaling else (fixed_number, fixed_number)
        target = scaling.target_ongoing_requests if scaling else 1.0
        if engine.kind != "url":
            found[engine.name] = Scalable(config.accelerators[engine.name], least, most, target)
    return found
