"""Whether the gates promote what is better and nothing else: `python -m tests.bench.gates --trials 200 --json FILE`.

Each trial is a world whose values are known, and a candidate that is truly worse than the active policy (by 1 to 10 %)
or better (by 5 to 10 %). It goes the whole way: offline gate on logged decisions, then stage by stage with a look every
50 requests, until it is promoted, refused, or out of records.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from scipy.stats import beta

from deploy.console import progress_bar
from deploy.results import write
from policy_training.evaluate import Interval
from policy_training.gates import STAGES, Limits, Stream, gain_bounds, offline, online, scale_of
from policy_training.ope import Floats, Logged, reward_model
from tests.bench.figures import show

Ints = npt.NDArray[np.int64]
ARMS, CLUSTERS, POOL = 4, 6, 4000
EXPLORE, SIGMA, FAILED = 0.05, 0.25, 0.002
"""Share of requests whose arm is drawn from all alike; noise of log TPOT; share of requests that fail under any arm."""
LOGGED, LOOK_EVERY, RECORDS = 20_000, 50, 100_000
"""Records of the offline gate; requests between two looks; records that a candidate may take, with the logged ones."""


@dataclass(frozen=True, slots=True)
class World:
    """Contexts [POOL, d] that requests come from, mean TPOT in seconds [POOL, ARMS], arms of both policies [POOL]."""

    contexts: npt.NDArray[np.float32]
    mean_s: Floats
    clusters: Ints
    active: Ints
    candidate: Ints

    @classmethod
    def draw(cls, gain: float, rng: np.random.Generator) -> "World":
        """A world in which the candidate saves the share `gain` of the time.

        The active policy has missed the fastest arm in some clusters. A better candidate knows it for some of their
        requests and errs for one in twenty; a worse one errs for as many as it takes.
        """
        while True:
            clusters, z = rng.integers(0, CLUSTERS, POOL), rng.random(POOL)
            speed = np.hstack([np.ones((CLUSTERS, 1)), rng.lognormal(-0.1, 0.3, (CLUSTERS, ARMS - 1))])
            order = speed.argsort(1)
            missed = (rng.random(CLUSTERS) < 0.6) & (order[:, 0] != 0)
            active = np.where(missed, order[:, 1], order[:, 0])[clusters]
            best, wrong = order[clusters, 0], order[clusters, rng.integers(2, ARMS, CLUSTERS)[clusters]]
            pace = rng.lognormal(0.0, 0.25, POOL)
            mean_s = 0.03 * pace[:, None] * speed[clusters]
            known, erred = (0.0, 0.05) if gain > 0 else (0.1, 0.0)
            for more in np.arange(0.0, 0.95, 0.002):
                a, b = (known + more, erred) if gain > 0 else (known, erred + more)
                candidate = np.where(z < a, best, np.where(z > 1 - b, wrong, active))
                if abs(_saved(mean_s, candidate, active) - gain) < 0.001:
                    return cls(_seen(clusters, pace, rng), mean_s, clusters, active, candidate)

    def pi(self, arms: Ints, explore: float = 0.0) -> Floats:
        """Probabilities [POOL, ARMS] of a policy."""
        return (1 - explore) * np.eye(ARMS)[arms] + explore / ARMS

    def gain(self, scale_s: float) -> float:
        """Share of the time that the candidate truly saves, of times clipped as the gate clips them."""
        return _saved(_clipped_mean(self.mean_s, scale_s), self.candidate, self.active)

    def serve(self, arms: Ints, n: int, rng: np.random.Generator) -> tuple[Ints, Ints, Floats]:
        """Rows of the pool, arms and TPOT in seconds of n requests that a policy decides with exploration."""
        rows = rng.integers(0, POOL, n)
        arm = np.where(rng.random(n) < EXPLORE, rng.integers(0, ARMS, n), arms[rows])
        return rows, arm, self.mean_s[rows, arm] * rng.lognormal(-(SIGMA**2) / 2, SIGMA, n)

    def stream(self, arms: Ints, n: int, rng: np.random.Generator) -> Stream:
        """What the gate sees of n requests."""
        tpot_s, failed = self.serve(arms, n, rng)[2], rng.random(n) < FAILED
        return Stream(np.where(failed, np.nan, tpot_s), rng.lognormal(-1.6, 0.4, n), failed)


def _seen(clusters: Ints, pace: Floats, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    noise = rng.normal(0, 0.2, (POOL, CLUSTERS + 4))
    noise[:, :CLUSTERS] += np.eye(CLUSTERS)[clusters]
    return np.hstack([noise, np.log(pace)[:, None]]).astype(np.float32)


def _saved(means: Floats, candidate: Ints, active: Ints) -> float:
    """Share of the time that one policy saves against another, both with exploration."""
    rows = np.arange(POOL)
    ours, theirs = ((1 - EXPLORE) * means[rows, arms].mean() + EXPLORE * means.mean() for arms in (candidate, active))
    return float(1.0 - ours / theirs)


def _clipped_mean(mean_s: Floats, scale_s: float) -> Floats:
    """Mean of min(t / (2 scale), 1) for log-normal t of these means, where a failed request counts 1."""
    x = mean_s / (2 * scale_s)
    m = np.log(x) - SIGMA**2 / 2
    clipped = x * ndtr(-(m + SIGMA**2) / SIGMA) + ndtr(m / SIGMA)
    return np.asarray((1 - FAILED) * clipped + FAILED)


@dataclass(frozen=True, slots=True)
class Trial:
    """How it ended (promoted, offline, a stage's share, out of records), with how many records.

    covered: the true gain was inside the bounds of every stage at all sample sizes. proven: the last stage alone, with
    all requests it may take, would have promoted it.
    """

    better: bool
    end: str
    records: int
    covered: bool
    proven: bool


def trial(seed: int, records: int) -> Trial:
    """One candidate, on its whole way; every other one is better."""
    rng, better = np.random.default_rng([7, seed]), seed % 2 == 1
    world = World.draw(float(rng.uniform(0.05, 0.10) if better else -rng.uniform(0.01, 0.10)), rng)
    passed, scale_s = judged_offline(world, rng)
    end, used = judged_online(world, scale_s, records, rng) if passed else ("offline", LOGGED)
    return Trial(better, end, used, *bounded(world, scale_s, rng))


def judged_offline(world: World, rng: np.random.Generator) -> tuple[bool, float]:
    """The offline gate's verdict on logged decisions, and the scale of their times."""
    rows, arm, tpot_s = world.serve(world.active, LOGGED, rng)
    logged = Logged(arm, -tpot_s, world.pi(world.active, EXPLORE)[rows, arm])
    q = reward_model(world.contexts[rows], logged, ARMS)
    pi_candidate, pi_active = (world.pi(arms)[rows] for arms in (world.candidate, world.active))
    slices = world.clusters[rows].astype(str).tolist()
    return offline(logged, pi_candidate, pi_active, q, default=0, slices=slices).passed, scale_of(tpot_s)


def judged_online(world: World, scale_s: float, records: int, rng: np.random.Generator) -> tuple[str, int]:
    """Where the candidate ended, and how many records it took by then."""
    used = LOGGED
    for share in STAGES[:-1]:
        n = min(records - used, round(1.2 * Limits().most_requests / share))
        mine = np.cumsum(rng.random(n) < share)
        candidate = world.stream(world.candidate, int(mine[-1]) if n else 0, rng)
        active = world.stream(world.active, n - len(candidate.failed), rng)
        for seen in range(LOOK_EVERY, n + 1, LOOK_EVERY):
            of_candidate = int(mine[seen - 1])
            streams = first(candidate, of_candidate), first(active, seen - of_candidate)
            action = online(*streams, share=share, scale_s=scale_s).action
            if action != "hold":
                break
        else:
            return "out of records", used + n
        used += seen
        if action == "roll_back":
            return f"{share:.0%}", used
    return "promoted", used


def first(stream: Stream, n: int) -> Stream:
    """Its first n requests."""
    return Stream(stream.tpot_s[:n], stream.ttft_s[:n], stream.failed[:n])


def bounded(world: World, scale_s: float, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether the bounds ever miss the true gain in a stage of full length, and whether the last one proves a gain.

    Bounds only ever shrink, so those of the full length tell of all looks before.
    """
    limits, truth, held, low = Limits(), world.gain(scale_s), True, 0.0
    for share in STAGES[:-1]:
        n, others = limits.most_requests, round((1 - share) / share)
        sizes = ((world.candidate, n), (world.active, n * others))
        times = [1.0 - world.stream(arms, size, rng).rewards(scale_s) for arms, size in sizes]
        low, high = gain_bounds(times[0], times[1], others, limits.alpha / (len(STAGES) - 1))
        held &= low <= truth <= high
    return held, low > 0.0


def share_of(hits: int, n: int) -> Interval:
    """A share with its Clopper-Pearson interval of 95 %."""
    low = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    return Interval(hits / n, float(low), float(high))


def figures_of(trials: list[Trial], records: int) -> dict[str, Interval]:
    """The shares, and the records that the promoted took: median, and where 95 % of them lie."""
    better, worse = ([t for t in trials if t.better is kind] for kind in (True, False))
    promoted = [t for t in better if t.end == "promoted"]
    middle, low, high = np.quantile([float(t.records) for t in promoted] or [np.nan], [0.5, 0.025, 0.975])
    return {
        "unsafe_promotion_share": share_of(sum(t.end == "promoted" for t in worse), len(worse)),
        "good_promotion_share": share_of(len(promoted), len(better)),
        "records_to_promote": Interval(records, records, records),
        "records_taken": Interval(float(middle), float(low), float(high)),
        "unsafe_promotion_share_of_last_stage_alone": share_of(sum(t.proven for t in worse), len(worse)),
        "worse_refused_offline_share": share_of(sum(t.end == "offline" for t in worse), len(worse)),
        "coverage": share_of(sum(t.covered for t in trials), len(trials)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="candidates, at least 2; every other one is better")
    parser.add_argument("--records", type=int, default=RECORDS, help="most records until it is promoted")
    parser.add_argument("--json", type=Path, help="file for the result")
    args = parser.parse_args()
    with progress_bar() as shown:
        trials = [trial(seed, args.records) for seed in shown.track(range(args.trials), description="candidates")]
    ends = {
        kind: dict(Counter(t.end for t in trials if t.better is (kind == "better"))) for kind in ("better", "worse")
    }
    figures = figures_of(trials, args.records)
    show(figures)
    print(ends)
    if args.json:
        write(args.json, len(trials), figures, ends=ends)


if __name__ == "__main__":
    main()
