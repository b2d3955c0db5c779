"""Headroom data from the router's records: requests with shadows under all arms, and single choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from draftpick.engines.arms import engine_of
from draftpick.policy_training.data.dataset import Dataset, DatasetError, Measurement, smallest_featurizer
from draftpick.policy_training.data.from_records import (
    dataset_of,
    impute_missing_arms,
    random_arm_rows,
    separate_requests,
)
from draftpick.policy_training.data.matrix import Matrix, matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.headroom.crossover import bucket_of
from draftpick.policy_training.retraining.pipeline import changed_since
from draftpick.router.online.events import Event
from draftpick.router.types import Record

Floats = npt.NDArray[np.float64]
MIN_REQUESTS = 40
"""Minimum answers per arm."""
_MAX_TIMED = 500
"""Maximum answers per arm for fitting costs, and requests of a bootstrap."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Finished answers of the arms with enough of them.

    `in_flight` of a measurement: requests on its arm at the time, including it. `offered`: the logging probabilities,
    by prompt id and arm. `costs`: step costs at the baseline load. `excluded`: answers of the other arms. `overhead_s`:
    median time of a request in the router itself; None: unknown.
    """

    data: Dataset
    arms: tuple[str, ...]
    featurizer: str
    costs: Costs
    offered: Mapping[str, Mapping[str, float]]
    excluded: Mapping[str, int]
    overhead_s: float | None

    @classmethod
    def from_records(
        cls, records: Sequence[Record], events: Sequence[Event] = (), featurizer: str | None = None
    ) -> "Traffic":
        """Build from records; an arm's records before its last change are dropped. Raises `DatasetError`."""
        if records and all(record.context is None for record in records):
            raise DatasetError("no record has a context: set router.featurizer (`lexical` needs no model)")
        records = separate_requests(records)
        found = dataset_of(records, changed_since(events))
        name = smallest_featurizer(found, featurizer)
        loads, offered, overheads = {}, {}, []
        for record in records:
            id, decision = f"{record.request_id}/{record.attempt}", record.decision
            loads[id, engine_of(decision.arm)] = record.in_flight.get(decision.arm, 0) + 1
            if decision.reason == "policy":
                offered[id] = decision.probabilities
            if record.outcome.overhead_s is not None:
                overheads.append(record.outcome.overhead_s)
        kept = [
            replace(m, in_flight=loads[m.prompt_id, engine_of(m.arm)])
            for m in found.measurements
            if name in found.contexts[m.prompt_id]
        ]
        counts = {arm: sum(m.arm == arm for m in kept) for arm in found.arms}
        arms = tuple(arm for arm, count in counts.items() if count >= MIN_REQUESTS)
        if len(arms) < 2:
            counted = ", ".join(f"{arm} {count}" for arm, count in counts.items())
            raise DatasetError(
                f"fewer than two engines have {MIN_REQUESTS} finished answers ({counted}): no comparison is possible; "
                "set router.exploration.rate or router.shadow.sample_rate"
            )
        data = Dataset(tuple(m for m in kept if m.arm in arms), found.contexts, found.dropped)
        left_out = {arm: count for arm, count in counts.items() if arm not in arms}
        overhead_s = float(np.median(overheads)) if overheads else None
        return cls(data, arms, name, Costs.fit(_default_costs(data, arms), arms), offered, left_out, overhead_s)

    def paired_matrix(self) -> Matrix | None:
        """Requests answered under all arms, with the acceptance of each; times are those of the baseline load.

        Shadows run when load is low: their own times would be biased. None without such a request.
        """
        try:
            return matrix(self.data, self.arms, featurizer=self.featurizer, costs=self.costs)
        except DatasetError:
            return None

    def single_answers(self) -> Dataset:
        """Answers drawn by a policy, without shadows, in order of time."""
        return random_arm_rows(self.data, self.featurizer)

    def matrix(self, some: Dataset) -> Matrix:
        """The requests of these measurements, one each, in their order; unobserved cells are imputed."""
        every = self.impute()
        at = {id: i for i, id in enumerate(every.prompt_ids)}
        return every.select_rows(np.asarray([at[m.prompt_id] for m in some.measurements]))

    def impute(self, excluding: Sequence[str] = ()) -> Matrix:
        """All requests except these and those of the same text, observed or imputed."""
        held = {self._text_of(id) for id in excluding}
        rows = tuple(m for m in self.data.measurements if self._text_of(m.prompt_id) not in held)
        return impute_missing_arms(Dataset(rows, self.data.contexts), self.arms, self.featurizer, self.costs)

    def _text_of(self, prompt_id: str) -> bytes:
        """Key of a text: its context."""
        return self.data.contexts[prompt_id][self.featurizer].tobytes()

    def drawn_costs(self, draws: int, seed: int) -> list[Costs]:
        """Costs of resampled answers."""
        return drawn_costs(_default_costs(self.data, self.arms), self.arms, draws, seed)


def drawn_costs(data: Dataset, arms: Sequence[str], draws: int, seed: int) -> list[Costs]:
    """Bootstrap over requests of the costs."""
    by_request: dict[str, list[Measurement]] = {}
    for m in data.measurements:
        if m.source != "replay":
            by_request.setdefault(m.prompt_id, []).append(m)
    requests, rng, found = list(by_request.values()), np.random.default_rng(seed), []
    for _ in range(draws):
        chosen = rng.integers(0, len(requests), min(len(requests), _MAX_TIMED))
        rows = [replace(m, prompt_id=f"{i}") for i, at in enumerate(chosen) for m in requests[at]]
        try:
            found.append(Costs.fit(Dataset(tuple(rows)), arms))
        except DatasetError:
            continue  # the resample may have too few answers of an arm
    return found


def _default_costs(data: Dataset, arms: Sequence[str]) -> Dataset:
    """The answers at the most frequent load, among loads with enough answers of every arm; all, if there is none.

    At most `_MAX_TIMED` per arm, the latest ones.
    """
    by_bucket: dict[int, list[Measurement]] = {}
    for m in data.measurements:
        by_bucket.setdefault(bucket_of(m.in_flight), []).append(m)
    full = [rows for rows in by_bucket.values() if all(sum(m.arm == arm for m in rows) >= MIN_REQUESTS for arm in arms)]
    rows = max(full, key=len, default=list(data.measurements))
    kept = [m for arm in arms for m in [m for m in rows if m.arm == arm][-_MAX_TIMED:]]
    return Dataset(tuple(kept), data.contexts)
