"""Which addresses serve each arm, and how many requests the router holds on each."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engines.errors import EngineUnavailable


@dataclass(slots=True, eq=False)
class Replica:
    """One address of an arm. `in_flight` counts this router's own requests."""

    url: str
    in_flight: int = 0


class ReplicaTable:
    """Replicas by arm. Read on every request, changed when the fleet changes; one event loop, so no lock."""

    def __init__(self, arms: Iterable[str]) -> None:
        self._replicas: dict[str, list[Replica]] = {arm: [] for arm in arms}
        self.arms = tuple(self._replicas)

    def update(self, arm: str, urls: Iterable[str]) -> None:
        """Make `urls` the replicas of an arm; those that stay keep their counts."""
        known = {replica.url: replica for replica in self._replicas[arm]}
        self._replicas[arm] = [known.get(url) or Replica(url) for url in dict.fromkeys(urls)]

    def discard(self, arm: str, replica: Replica) -> None:
        """Forget a replica that refused a connection, until the next update names it again."""
        self._replicas[arm] = [r for r in self._replicas[arm] if r is not replica]

    def eligible(self) -> list[str]:
        """Arms with at least one replica, in configuration order."""
        return [arm for arm, replicas in self._replicas.items() if replicas]

    def load(self) -> dict[str, int]:
        """This router's requests in flight by arm."""
        return {arm: sum(r.in_flight for r in replicas) for arm, replicas in self._replicas.items()}

    def urls(self) -> dict[str, list[str]]:
        """Addresses by arm."""
        return {arm: [r.url for r in replicas] for arm, replicas in self._replicas.items()}

    @contextmanager
    def lease(self, arm: str) -> Iterator[Replica]:
        """The least loaded replica of an arm, counted for as long as the block runs."""
        replicas = self._replicas[arm]
        if not replicas:
            raise EngineUnavailable(f"engine {arm!r} has no replica")
        replica = min(replicas, key=lambda r: r.in_flight)
        replica.in_flight += 1
        try:
            yield replica
        finally:
            replica.in_flight -= 1
