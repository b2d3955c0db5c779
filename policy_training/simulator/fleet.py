"""Replicas of a fleet by load: the least loaded one of an arm is found at once, however many there are."""

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
        """The arms of which `counts` wants replicas. Raises `DatasetError`."""
        if unknown := [name for name in counts if name not in arms]:
            raise DatasetError(f"no engine {', '.join(unknown)} (there are: {', '.join(arms)})")
        wanted = {name: count for name, count in counts.items() if count}
        return cls(tuple(arms[name] for name in wanted), tuple(wanted.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arms."""
        return tuple(arm.name for arm in self.arms)

    @property
    def accelerators(self) -> int:
        """What all replicas need."""
        return sum(arm.accelerators * count for arm, count in zip(self.arms, self.replicas, strict=True))


class Pools:
    """The replicas of all arms, each in a bucket of those with as many requests in flight.

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

    def lease(self, arm: int) -> Replica:
        """The least loaded replica of an arm; it has one more request from now on."""
        buckets, load = self._buckets[arm], self.least_loaded[arm]
        chosen = buckets[load].pop()
        if load + 1 == len(buckets):
            buckets.append([])
        self._put(chosen, buckets[load + 1])
        if not buckets[load]:
            self.least_loaded[arm] = load + 1
        return chosen

    def release(self, one: Replica, before: int) -> None:
        """A replica that had `before` requests has fewer now."""
        buckets = self._buckets[one.number]
        bucket, last = buckets[before], buckets[before][-1]
        bucket[one.place] = last
        last.place = one.place
        bucket.pop()
        self._put(one, buckets[one.in_flight])
        self.least_loaded[one.number] = min(self.least_loaded[one.number], one.in_flight)

    def _put(self, one: Replica, bucket: list[Replica]) -> None:
        one.place = len(bucket)
        bucket.append(one)
