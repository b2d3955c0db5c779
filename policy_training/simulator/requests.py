"""Requests to simulate: their properties, and arrival times."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.matrix import Matrix

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Requests:
    """Properties of requests, one row each; in order of arrival, once they have one.

    `kind` [n]: indices into `kinds`. `tau` [n, columns]: acceptance lengths of every drafter (and draft length) of
    `columns`; only the engines know them. `arrival_s` [n]: seconds from the start.
    """

    kinds: tuple[str, ...]
    columns: tuple[str, ...]
    kind: npt.NDArray[np.intp]
    prompt_tokens: Floats
    output_tokens: Floats
    sampled: npt.NDArray[np.bool_]
    tau: Floats
    arrival_s: Floats

    def __len__(self) -> int:
        return len(self.kind)

    def __post_init__(self) -> None:
        if self.tau.shape != (len(self), len(self.columns)) or not (self.tau >= 1).all():
            raise DatasetError("tau must be 1 or more, one value per request and column")
        if not ((self.output_tokens >= 1).all() and (self.prompt_tokens >= 0).all()):
            raise DatasetError("requests must have at least one output token, and 0 or more prompt tokens")
        if (np.diff(self.arrival_s) < 0).any():
            raise DatasetError("requests must be in order of arrival")

    @classmethod
    def from_matrix(cls, data: Matrix) -> "Requests":
        """The requests of a matrix, all arriving at time 0."""
        kinds = tuple(sorted(set(data.kinds)))
        return cls(
            kinds=kinds,
            columns=data.arms,
            kind=np.asarray([kinds.index(kind) for kind in data.kinds]),
            prompt_tokens=data.prompt_tokens,
            output_tokens=np.maximum(data.output_tokens, 1.0),
            sampled=data.temperatures > 0,
            tau=np.maximum(data.acceptance_length, 1.0),
            arrival_s=np.zeros(len(data)),
        )

    def select_rows(self, rows: Rows) -> "Requests":
        """These rows, in this order, without arrivals."""
        arrays = {name: getattr(self, name)[rows] for name in ("kind", "prompt_tokens", "output_tokens", "sampled")}
        return replace(self, tau=self.tau[rows], arrival_s=np.zeros(len(rows)), **arrays)

    def draw(self, n: int, rng: np.random.Generator, mix: Mapping[str, float] | None = None) -> "Requests":
        """`n` requests like these, with replacement; `mix`: shares of tasks instead of their own.

        Raises `DatasetError` for an unknown task.
        """
        if mix is None:
            return self.select_rows(rng.integers(0, len(self), n))
        if unknown := [kind for kind in mix if kind not in self.kinds]:
            raise DatasetError(f"no request of kind {', '.join(unknown)} (known: {', '.join(self.kinds)})")
        shares = np.asarray([mix.get(kind, 0.0) for kind in self.kinds])
        weights = (shares / np.maximum(np.bincount(self.kind, minlength=len(self.kinds)), 1))[self.kind]
        return self.select_rows(rng.choice(len(self), n, p=weights / weights.sum()))

    def with_arrivals(self, at_s: Floats) -> "Requests":
        """The same requests at these ascending times."""
        return replace(self, arrival_s=at_s)

    @property
    def mean_output_tokens(self) -> float:
        """Mean answer length, a router's expectation before it reads the request."""
        return float(self.output_tokens.mean())

    @property
    def mean_context(self) -> float:
        """Mean context in the middle of an answer."""
        return float(self.prompt_tokens.mean() + self.output_tokens.mean() / 2)

    def column(self, name: str) -> int:
        """Index of a drafter's acceptance lengths. Raises `DatasetError`."""
        if name not in self.columns:
            raise DatasetError(f"no acceptance lengths of {name!r} (known: {', '.join(self.columns)})")
        return self.columns.index(name)
