"""When requests come: at random, in crowds, or as they were recorded."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policy_training.simulator.requests import Requests

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Crowds:
    """Flash crowds: once in `every_s` seconds the rate is `times` as high, for `lasts_s` seconds."""

    every_s: float
    lasts_s: float
    times: float

    def __post_init__(self) -> None:
        if not (0 < self.lasts_s < self.every_s and self.times > 0):
            raise ValueError("a crowd must last less long than the time from one to the next, and its rate be positive")


def poisson(n: int, rate: float, rng: np.random.Generator, crowds: Crowds | None = None) -> Floats:
    """Arrivals [n] in seconds that know nothing of one another, `rate` a second, between the crowds.

    A process of rate 1, whose clock runs as fast as the rate is at the time.
    """
    clock = np.cumsum(rng.exponential(1.0, n))
    if crowds is None:
        return np.asarray(clock / rate)
    calm_s = crowds.every_s - crowds.lasts_s
    calm, crowded = calm_s * rate, crowds.lasts_s * rate * crowds.times
    rounds, rest = np.divmod(clock, calm + crowded)
    within = np.where(rest < calm, rest / rate, calm_s + (rest - calm) / (rate * crowds.times))
    return np.asarray(rounds * crowds.every_s + within)


def rotated(made: Requests, by: int) -> Requests:
    """The same traffic, begun at request `by`: pauses and neighbours stay, and what came before follows at the end."""
    n = len(made)
    rows = np.roll(np.arange(n), -(by % n))
    last = (made.arrival_s[-1] - made.arrival_s[0]) / max(n - 1, 1)
    gaps = np.append(np.diff(made.arrival_s), last)[rows]
    return made.take(rows).arriving(np.concatenate([[0.0], np.cumsum(gaps[:-1])]))
