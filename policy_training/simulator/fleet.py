"""Replicas of a fleet by load: finds the least loaded one of an arm in constant time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.replica import Replica, RequestLog, TaskClass, replica
from draftpick.policy_training.simulator.requests import Requests


@dataclass(frozen=True, slots=True)
class Fleet:
    """Arms, and the number of replicas of each, at least 1."""

    arms: tuple[Arm, ...]
    replicas: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.arms or len(self.arms) != len(self.replicas) or min(self.replicas) < 1:
            raise DatasetError("a fleet needs arms, and at least one replica of each")

    @classmethod
    def from_counts(cls, arms: Mapping[str, Arm], counts: Mapping[str, int]) -> "Fleet":
        """The arms with replicas in `counts`. Raises `DatasetError`."""
        if unknown := [name for name in counts if name not in arms]:
            raise DatasetError(f"unknown engine {', '.join(unknown)} (known: {', '.join(arms)})")
        wanted = {name: count for name, count in counts.items() if count}
        return cls(tuple(arms[name] for name in wanted), tuple(wanted.values()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(arm.name for arm in self.arms)

    @property
    def accelerators(self) -> int:
        """Accelerators of all replicas."""
        return sum(arm.accelerators * count for arm, count in zip(self.arms, self.replicas, strict=True))


class Pools:
    """The replicas of all arms, in buckets by requests in flight.

    `least[arm]`: requests in flight of its least loaded replica.
    """

    def __init__(self, fleet: Fleet, requests: Requests, log: RequestLog) -> None:
        self._buckets: list[list[list[Replica]]] = []
        for number, (arm, count) in enumerate(zip(fleet.arms, fleet.replicas, strict=True)):
            kind = TaskClass(number, arm, requests)
            self._buckets.append([[replica(kind, log) for _ in range(count)]])
            for place, one in enumerate(self._buckets[-1][0]):
                one.place = place
        self.all: Sequence[Sequence[Replica]] = [list(buckets[0]) for buckets in self._buckets]
        self.least_loaded = [0] * len(fleet.arms)

    def lease(self, arm: int, chosen: Replica | None = None) -> Replica:
        """Take a replica of an arm, by default the least loaded one, adding one request."""
        buckets, least = self._buckets[arm], self.least_loaded[arm]
        chosen = chosen or buckets[least][-1]
        load = chosen.in_flight
        if load + 1 == len(buckets):
            buckets.append([])
        self._move(chosen, buckets[load], buckets[load + 1])
        if not buckets[least]:
            self.least_loaded[arm] = least + 1
        return chosen

    def release(self, one: Replica, before: int) -> None:
        """Move a replica that had `before` requests and has fewer now."""
        buckets = self._buckets[one.number]
        self._move(one, buckets[before], buckets[one.in_flight])
        self.least_loaded[one.number] = min(self.least_loaded[one.number], one.in_flight)

    def _move(self, one: Replica, bucket: list[Replica], to: list[Replica]) -> None:
        last = bucket[-1]
        bucket[one.place] = last
        last.place = one.place
        bucket.pop()
        self._put(one, to)

    def _put(self, one: Replica, bucket: list[Replica]) -> None:
        one.place = len(bucket)
        bucket.append(one)
