"""Whether the gates promote only better policies: `python -m tests.bench.gates --trials 200 --json-file FILE`.

Each trial is a world whose values are known, and a candidate that is truly worse than the active policy (by 1 to 10 %)
or better (by 5 to 10 %). It goes the whole way: offline gate on logged decisions, then stage by stage, until it is
promoted, refused, or out of records. Then a policy that was promoted is watched, with a holdout of the one before: in
a world that stays as it was, and in worlds where it becomes slower, fails, or stalls.
"""

import argparse
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from draftpick.deploy.console import progress_bar
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.data.logged_feedback import Floats, LoggedFeedback
from draftpick.policy_training.evaluation.confidence_sequence import confidence_bounds
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.evaluation.ope import reward_model
from draftpick.policy_training.retraining.canary import STAGES, Limits, evaluate_holdout, evaluate_stage
from draftpick.policy_training.retraining.canary_data import BaselineStats, CanaryExperiment, ExpectedTpot
from draftpick.policy_training.retraining.controller import RolloutConfig
from draftpick.policy_training.retraining.gates import OFFLINE
from draftpick.policy_training.retraining.gates.base import evaluate
from draftpick.policy_training.retraining.gates.offline import LoggedEvidence
from tests.bench.figures import show

Ints = npt.NDArray[np.int64]
ARMS, CLUSTERS, POOL = 4, 6, 4000
EXPLORE, SIGMA, FAILED = 0.05, 0.25, 0.002
"""Share of requests whose arm is drawn from all alike; noise of log TPOT; share of requests that fail under any arm."""
LOGGED, RECORDS = 12_000, 20_000
"""Records of the offline gate; records that a candidate may take, with the logged ones."""
OWN_BETWEEN_LOOKS = 10
BAD = {"slower": 0.12, "failing": 0.04, "stalling": 0.05}
"""What becomes of a promoted policy, over all its requests: time lost; share that fails; share that takes long."""
_STALLED = 5.0


@dataclass(frozen=True, slots=True)
class World:
    """Contexts [POOL, d] that requests come from, mean TPOT in seconds [POOL, ARMS], arms of both policies [POOL].

    `fails`, `stalls`: shares of requests, [POOL, ARMS] or of all alike.
    """

    contexts: npt.NDArray[np.float32]
    mean_s: Floats
    clusters: Ints
    active: Ints
    candidate: Ints
    fails: Floats | float = FAILED
    stalls: Floats | float = 0.0

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

    def gain(self, usual: BaselineStats) -> float:
        """What the candidate truly saves, of what was usual, of times clipped as the gate clips them."""
        means, rows = _clipped_mean(self.mean_s, usual.scale_s), np.arange(POOL)
        ours, theirs = (means[rows, arms].mean() for arms in (self.candidate, self.active))
        return float((1 - EXPLORE) * (theirs - ours) / usual.mean)

    def gone_bad(self, how: str) -> "World":
        """The same, but where the candidate differs from the active policy, its arm does badly."""
        differs = self.candidate != self.active
        cells, extent = np.zeros((POOL, ARMS)), BAD[how] / differs.mean()
        cells[differs, self.candidate[differs]] = 1.0
        if how == "failing":
            return replace(self, fails=FAILED + extent * cells)
        if how == "stalling":
            return replace(self, stalls=extent * cells)
        slower = self.mean_s * (1 + cells)
        lost = -_saved(slower, self.candidate, self.active) - -_saved(self.mean_s, self.candidate, self.active)
        saved = _saved(self.mean_s, self.candidate, self.active)
        return replace(self, mean_s=self.mean_s * (1 + cells * (saved + BAD[how]) / lost))

    def serve(self, arms: Ints, n: int, rng: np.random.Generator) -> tuple[Ints, Ints, Floats]:
        """Rows of the pool, arms and TPOT in seconds of n requests that a policy decides with exploration."""
        rows = rng.integers(0, POOL, n)
        arm = np.where(rng.random(n) < EXPLORE, rng.integers(0, ARMS, n), arms[rows])
        return rows, arm, self.mean_s[rows, arm] * rng.lognormal(-(SIGMA**2) / 2, SIGMA, n)

    def trial(
        self, n: int, share: float, expected_s: Floats, rng: np.random.Generator, since: float = 0.0
    ) -> CanaryExperiment:
        """n requests of which the candidate decides a share; `expected_s` [POOL, ARMS]."""
        rows, own = rng.integers(0, POOL, n), rng.random(n) < share
        chosen = np.where(own, self.candidate[rows], self.active[rows])
        arm = np.where(rng.random(n) < EXPLORE, rng.integers(0, ARMS, n), chosen)
        tpot_s = self.mean_s[rows, arm] * rng.lognormal(-(SIGMA**2) / 2, SIGMA, n)
        fails, stalls = (np.broadcast_to(x, (POOL, ARMS))[rows, arm] for x in (self.fails, self.stalls))
        tpot_s = np.where(rng.random(n) < stalls, _STALLED, 1.0) * tpot_s
        failed = rng.random(n) < fails
        ours, theirs = (self.pi(arms, EXPLORE)[rows] for arms in (self.candidate, self.active))
        return CanaryExperiment(
            since + 1.0 + np.arange(n, dtype=np.float64), np.full(n, share), own, ours, theirs, arm, expected_s[rows],
            np.where(failed, np.nan, tpot_s), rng.lognormal(-1.6, 0.4, n), failed,
            np.ones(n),
        )  # fmt: skip


def joined(trials: list[CanaryExperiment]) -> CanaryExperiment:
    """One after the other."""
    return CanaryExperiment(
        *(np.concatenate([getattr(one, name) for one in trials]) for name in CanaryExperiment.__dataclass_fields__)
    )


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
    """Mean of min(t / scale, 1) for log-normal t of these means, where a failed request counts 1."""
    x = mean_s / scale_s
    m = np.log(x) - SIGMA**2 / 2
    clipped = x * ndtr(-(m + SIGMA**2) / SIGMA) + ndtr(m / SIGMA)
    return np.asarray((1 - FAILED) * clipped + FAILED)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a candidate ended (promoted, offline, a stage's share, out of records), with how many records.

    `alone`: how it ended on live traffic, had it been let through to it. covered: the true gain was inside the bounds
    at all sample sizes. `watched`: by what became of it after its promotion, the requests until it was rolled back;
    None: it was not.
    """

    better: bool
    end: str
    records: int
    alone: str
    covered: bool
    watched: dict[str, int | None]


def ended(seed: int, records: int) -> Ended:
    """One candidate, on its whole way; every other one is better."""
    rng, better = np.random.default_rng([7, seed]), seed % 2 == 1
    world = World.draw(float(rng.uniform(0.05, 0.10) if better else -rng.uniform(0.01, 0.10)), rng)
    passed, usual, expected_s = judged_offline(world, rng)
    alone, used = judged_online(world, usual, expected_s, records, rng)
    end, used = (alone, used) if passed else ("offline", LOGGED)
    watching = {"unchanged": world, **{how: world.gone_bad(how) for how in BAD}} if better else {}
    watched = {how: rolled_back(one, usual, expected_s, rng) for how, one in watching.items()}
    return Ended(better, end, used, alone, bounded(world, usual, expected_s, rng), watched)


def judged_offline(world: World, rng: np.random.Generator) -> tuple[bool, BaselineStats, Floats]:
    """The offline gate's verdict on logged decisions, what was usual in them, and what is to be expected."""
    rows, arm, tpot_s = world.serve(world.active, LOGGED, rng)
    logged = LoggedFeedback(arm, -tpot_s, world.pi(world.active, EXPLORE)[rows, arm])
    q = reward_model(world.contexts[rows], logged, ARMS)
    pi_candidate, pi_active = (world.pi(arms)[rows] for arms in (world.candidate, world.active))
    slices = world.clusters[rows].astype(str).tolist()
    passed = evaluate(OFFLINE, LoggedEvidence(logged, pi_candidate, pi_active, q, 0, slices)).passed
    return passed, *before(world, rows, arm, tpot_s, rng)


def before(
    world: World, rows: Ints, arm: Ints, tpot_s: Floats, rng: np.random.Generator
) -> tuple[BaselineStats, Floats]:
    """What a trial is told of earlier requests: what was usual, and what is to be expected [POOL, ARMS]."""
    expected_s = ExpectedTpot.fit(world.contexts[rows], arm, tpot_s, ARMS)(world.contexts)
    return BaselineStats.from_earlier(tpot_s, rng.lognormal(-1.6, 0.4, len(rows)), expected_s[rows, arm]), expected_s


def judged_online(
    world: World, usual: BaselineStats, expected_s: Floats, records: int, rng: np.random.Generator
) -> tuple[str, int]:
    """Where the candidate ended, and how many records it took by then."""
    seen, used = list[CanaryExperiment](), LOGGED
    for share, next_share in pairwise((*STAGES, 1.0)):
        step, action, since = round(OWN_BETWEEN_LOOKS / share), "hold", float(used)
        while action == "hold":
            if used + step > records:
                return "out of records", used
            seen.append(world.trial(step, share, expected_s, rng, used))
            used += step
            action = evaluate_stage(joined(seen), usual, since=since, next_share=next_share).action
        if action == "roll_back":
            return f"{share:.0%}", used
    return "promoted", used


def rolled_back(world: World, usual: BaselineStats, expected_s: Floats, rng: np.random.Generator) -> int | None:
    """After how many requests a promoted policy was rolled back, with a look every 100; None: not at all."""
    rules = RolloutConfig()
    trial = world.trial(rules.holdout_requests, 1.0 - rules.holdout, expected_s, rng)
    for n in range(100, rules.holdout_requests + 1, 100):
        if evaluate_holdout(trial.head(n), usual).action == "roll_back":
            return n
    return None


def bounded(world: World, usual: BaselineStats, expected_s: Floats, rng: np.random.Generator) -> bool:
    """Whether the bounds of the gain ever miss the truth, over all stages.

    Bounds only ever shrink, so those of the full length tell of all looks before.
    """
    trial = joined([world.trial(2000, share, expected_s, rng) for share in STAGES])
    low, high = confidence_bounds(*usual.savings(trial)[:3], Limits().alpha)
    return low <= world.gain(usual) * usual.mean <= high


def share_of(hits: int, n: int) -> Interval:
    """A share with its Clopper-Pearson interval of 95 %."""
    from scipy.stats import beta  # here: the tests use the worlds of this module, and it takes a second

    low = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    return Interval(hits / n, float(low), float(high))


def figures_of(trials: list[Ended], records: int) -> dict[str, Interval]:
    """The shares, and the records that the promoted took: median, and where 95 % of them lie."""
    better, worse = ([t for t in trials if t.better is kind] for kind in (True, False))
    promoted = [t for t in better if t.end == "promoted"]
    found = {
        "unsafe_promotion_share": share_of(sum(t.end == "promoted" for t in worse), len(worse)),
        "good_promotion_share": share_of(len(promoted), len(better)),
        "records_to_promote": Interval(records, records, records),
        "records_taken": _spread([float(t.records) for t in promoted]),
        "live_requests_taken": _spread([float(t.records - LOGGED) for t in promoted]),
        "unsafe_promotion_share_of_live_traffic_alone": share_of(sum(t.alone == "promoted" for t in worse), len(worse)),
        "worse_refused_offline_share": share_of(sum(t.end == "offline" for t in worse), len(worse)),
        "coverage": share_of(sum(t.covered for t in trials), len(trials)),
    }
    for how in ("unchanged", *BAD):
        after_s = [t.watched[how] for t in better]
        found[f"rolled_back_share/{how}"] = share_of(sum(n is not None for n in after_s), len(better))
        if how in BAD:
            found[f"requests_to_roll_back/{how}"] = _spread([float(n) for n in after_s if n is not None])
    return found


def _spread(values: list[float]) -> Interval:
    middle, low, high = np.quantile(values or [np.nan], [0.5, 0.025, 0.975])
    return Interval(float(middle), float(low), float(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="candidates, at least 2; every other one is better")
    parser.add_argument("--records", type=int, default=RECORDS, help="most records until it is promoted")
    parser.add_argument("--json-file", type=Path, help="file for the result")
    args = parser.parse_args()
    with progress_bar() as shown:
        trials = [ended(seed, args.records) for seed in shown.track(range(args.trials), description="candidates")]
    ends = {
        f"{kind}{what}": dict(Counter(getattr(t, name) for t in trials if t.better is (kind == "better")))
        for kind in ("better", "worse")
        for what, name in (("", "end"), (" on live traffic alone", "alone"))
    }
    figures = figures_of(trials, args.records)
    show(figures)
    print(ends)
    if args.json_file:
        write(args.json_file, len(trials), figures, ends=ends)


if __name__ == "__main__":
    main()
