"""Arrival times: random, in bursts, or recorded."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.simulator.requests import Requests

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bursts:
    """Flash crowds: once per `every_s` seconds the rate is multiplied by `times`, for `lasts_s` seconds."""

    every_s: float
    lasts_s: float
    times: float

    def __post_init__(self) -> None:
        if not (0 < self.lasts_s < self.every_s and self.times > 0):
            raise ValueError("lasts_s must be shorter than every_s, and times positive")


def poisson(n: int, rate: float, rng: np.random.Generator, bursts: Bursts | None = None) -> Floats:
    """Independent arrivals [n] in seconds, at `rate` per second outside the bursts.

    A Poisson process of rate 1 in the time scale of the cumulative rate.
    """
    clock = np.cumsum(rng.exponential(1.0, n))
    if bursts is None:
        return np.asarray(clock / rate)
    calm_s = bursts.every_s - bursts.lasts_s
    calm, crowded = calm_s * rate, bursts.lasts_s * rate * bursts.times
    rounds, rest = np.divmod(clock, calm + crowded)
    within = np.where(rest < calm, rest / rate, calm_s + (rest - calm) / (rate * bursts.times))
    return np.asarray(rounds * bursts.every_s + within)


def rotate(requests: Requests, by: int) -> Requests:
    """The same traffic, starting at request `by`: intervals and neighbours stay, the beginning follows at the end."""
    n = len(requests)
    rows = np.roll(np.arange(n), -(by % n))
    last = (requests.arrival_s[-1] - requests.arrival_s[0]) / max(n - 1, 1)
    gaps = np.append(np.diff(requests.arrival_s), last)[rows]
    return requests.select_rows(rows).with_arrivals(np.concatenate([[0.0], np.cumsum(gaps[:-1])]))
