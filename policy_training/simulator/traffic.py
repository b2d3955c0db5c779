"""Traffic to simulate: a specification, a dataset or the router's records; every seed draws its own requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import pydantic
import yaml
from pydantic import Field

from draftpick.engines.arms import drafter_of
from draftpick.engines.profile.profile import GREEDY, SAMPLED, Profile
from draftpick.policy_training.data.dataset import Dataset, DatasetError, smallest_featurizer
from draftpick.policy_training.data.from_records import impute_missing_arms
from draftpick.policy_training.data.matrix import matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.simulator.arrivals import Bursts, poisson, rotate
from draftpick.policy_training.simulator.requests import Requests
from draftpick.router.config.former_fields import TRAFFIC, rename_former
from draftpick.router.policies.base import Policy

Floats = npt.NDArray[np.float64]
_ROWS = 20_000
_FOLDER = Path(__file__).parent
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Traffic(Protocol):
    """Generates the requests of a seed, independent of the fleet."""

    def __call__(self, seed: int) -> Requests: ...


@dataclass(frozen=True, slots=True)
class SyntheticTraffic:
    """`n` requests like those of `rows`, at `rate` per second."""

    rows: Requests
    n: int
    rate: float
    bursts: Bursts | None = None
    mix: Mapping[str, float] | None = None

    def __call__(self, seed: int) -> Requests:
        rng = np.random.default_rng(seed)
        return self.rows.draw(self.n, rng, self.mix).with_arrivals(poisson(self.n, self.rate, rng, self.bursts))


@dataclass(frozen=True, slots=True)
class RecordedTraffic:
    """Recorded requests, starting at another one for each seed; `rate`: per second, instead of the recorded one; at
    most `n`."""

    rows: Requests
    rate: float | None = None
    n: int | None = None

    def __call__(self, seed: int) -> Requests:
        made = rotate(self.rows, int(np.random.default_rng(seed).integers(len(self.rows))))
        at_s, lasted = made.arrival_s, float(made.arrival_s[-1])
        if self.rate is not None and lasted:
            at_s = at_s * (len(made) - 1) / (lasted * self.rate)
        kept = np.arange(min(self.n or len(made), len(made)))
        return made.select_rows(kept).with_arrivals(at_s[kept])


class TaskSpec(pydantic.BaseModel, frozen=True, extra="forbid"):
    """One task of requests."""

    share: Positive = Field(1.0, description="relative share of the traffic")
    prompt_tokens: Positive = 200.0
    output_tokens: Annotated[float, Field(ge=1)] = 200.0
    sampled: Share = Field(0.5, description="share of requests with a temperature above 0")
    tau: dict[str, Annotated[float, Field(ge=1)]] = Field({}, description="mean acceptance length by engine; absent: 1")

    def tau_of(self, arm: str) -> float:
        """Mean acceptance length of an arm; one of a pool has that of the engine of its drafter's name."""
        return self.tau.get(arm, self.tau.get(drafter_of(arm) or "", 1.0))


class BurstSpec(pydantic.BaseModel, frozen=True, extra="forbid"):
    interval_s: Positive
    duration_s: Positive
    rate_factor: Positive = 3.0

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        self.bursts()
        return self

    def bursts(self) -> Bursts:
        """Convert for arrivals."""
        return Bursts(self.interval_s, self.duration_s, self.rate_factor)


class TrafficSpec(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A traffic specification file: tasks, their lengths, and acceptance lengths by engine."""

    tasks: dict[str, TaskSpec] = Field(min_length=1)
    rate: Positive = Field(1.0, description="requests per second")
    spread: Annotated[float, Field(ge=0, le=2)] = Field(
        0.3, description="standard deviation of log accepted tokens per step, between requests of a kind"
    )
    length_spread: Annotated[float, Field(ge=0, le=2)] = Field(0.6, description="standard deviation of log lengths")
    bursts: BurstSpec | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _former_fields(cls, data: Any) -> Any:
        return rename_former(data, TRAFFIC)

    def rows(self, columns: Sequence[str], seed: int = 0) -> Requests:
        """Draw requests in the shares of their tasks, with acceptance lengths of `columns`."""
        rng, kinds = np.random.default_rng(seed), tuple(self.tasks)
        shares = np.asarray([one.share for one in self.tasks.values()])
        kind = rng.choice(len(kinds), _ROWS, p=shares / shares.sum())
        tau = np.asarray([[one.tau_of(column) for column in columns] for one in self.tasks.values()])
        prompt, output, sampled = (
            np.asarray([getattr(one, name) for one in self.tasks.values()])[kind]
            for name in ("prompt_tokens", "output_tokens", "sampled")
        )
        return Requests(
            kinds=kinds,
            columns=tuple(columns),
            kind=kind,
            prompt_tokens=np.round(prompt * _around_1(rng, self.length_spread, (_ROWS,))),
            output_tokens=np.maximum(np.round(output * _around_1(rng, self.length_spread, (_ROWS,))), 1.0),
            sampled=rng.random(_ROWS) < sampled,
            tau=1.0 + (tau[kind] - 1.0) * _around_1(rng, self.spread, (_ROWS, len(columns))),
            arrival_s=np.zeros(_ROWS),
        )


def _around_1(rng: np.random.Generator, spread: float, shape: tuple[int, ...]) -> Floats:
    """Log-normal factors of mean 1."""
    return rng.lognormal(-(spread**2) / 2, spread, shape)


def read_spec(name: str) -> TrafficSpec:
    """Read the specification in a YAML file, or a shipped one by name. Raises `DatasetError`."""
    file = _FOLDER / f"{name}.yaml"
    if not file.is_file():
        file = Path(name)
    if not file.is_file():
        shipped = ", ".join(sorted(one.stem for one in _FOLDER.glob("*.yaml")))
        raise DatasetError(f"{name} is neither a file nor a shipped specification ({shipped})")
    try:
        return TrafficSpec.model_validate(yaml.safe_load(file.read_text()))
    except (pydantic.ValidationError, yaml.YAMLError) as error:
        raise DatasetError(f"{file}: {error}") from error


def dataset_traffic(data: Dataset, profiles: Mapping[str, Profile]) -> Requests:
    """Requests measured or replayed under all of these engines. Raises `DatasetError`."""
    return Requests.from_matrix(matrix(data, list(profiles), costs=_costs(profiles)))


def records_traffic(data: Dataset, profiles: Mapping[str, Profile], prior: Policy | None = None) -> Requests:
    """The router's recorded requests; missing acceptance lengths of engines are imputed.

    With `prior`, a policy that predicts them, an engine may be unobserved. Raises `DatasetError`.
    """
    featurizer = prior.featurizer if prior is not None and prior.featurizer else smallest_featurizer(data)
    made = impute_missing_arms(data, list(profiles), featurizer, _costs(profiles), prior)
    began = {m.prompt_id: m.time - (m.outcome.e2e_s or 0.0) for m in data.measurements if m.propensity is not None}
    kept = [i for i, prompt_id in enumerate(made.prompt_ids) if prompt_id in began]
    if not kept:
        raise DatasetError("no record of a request that a policy routed")
    at_s = np.asarray([began[made.prompt_ids[i]] for i in kept])
    order = np.argsort(at_s)
    rows = Requests.from_matrix(made).select_rows(np.asarray(kept)[order])
    return rows.with_arrivals(at_s[order] - at_s.min())


def _costs(profiles: Mapping[str, Profile]) -> Costs:
    """Costs of one unloaded request."""
    step_s = np.asarray([[p.step(1, 0.0, half) for half in (GREEDY, SAMPLED)] for p in profiles.values()])
    start_s = np.asarray([p.prefill_s for p in profiles.values()])
    return Costs(tuple(profiles), step_s, start_s, np.asarray([p.prefill_s_per_token for p in profiles.values()]))


def predicted_tau(tau: Floats, predictability: float, seed: int) -> Floats:
    """Simulated predictions of acceptance lengths `tau` [n, columns].

    `predictability`: share of the variance of log tau that a policy explains: at 0 only every drafter's mean, at 1
    everything. As for a calibrated regression, the prediction is the mean of the outcome.
    """
    log, rng = np.log(tau), np.random.default_rng(seed)
    middle, deviation = log.mean(0), log.std(0)
    missed = np.sqrt(predictability * (1 - predictability)) * deviation * rng.standard_normal(log.shape)
    return np.asarray(np.exp(np.maximum(middle + predictability * (log - middle) + missed, 0.0)))
