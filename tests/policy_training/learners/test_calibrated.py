"""The calibrated learner on requests of known and of new sources: coverage, distance, and when it keeps the default."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.folds import group_folds, row_folds, source_groups
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners import learner
from draftpick.policy_training.learners.calibrated import Calibrated, Conformity
from draftpick.policy_training.train import fit, fitted, out_of_source_probabilities, policy_probabilities
from draftpick.policy_training.workloads import GENERATED
from draftpick.router.features.lexical import FEATURES, stored_context
from draftpick.router.policies.base import Policy
from draftpick.router.policies.calibrated import BOUND, CalibratedPolicy
from tests.policy_training.bandit import ARMS, COSTS, SETTING

SOURCES, EACH = 60, 8


@dataclass(frozen=True, slots=True)
class World:
    """Requests of sources: each source has a place among the texts and acceptance lengths of its own, which depend on
    the place in part only."""

    matrix: Matrix

    @classmethod
    def draw(cls, seed: int, own: float = 0.3, told: float = 0.25) -> "World":
        """`told`: how much the place tells of an arm's acceptance length; `own`: how much it does not."""
        rng = np.random.default_rng(seed)
        source = np.repeat(np.arange(SOURCES), EACH)
        places = rng.normal(0, 1, (SOURCES, 6))
        slope = rng.normal(0, told, (6, len(ARMS)))
        log_tau = 0.5 + places @ slope + rng.normal(0, own, (SOURCES, len(ARMS)))
        tau = np.maximum(np.exp(log_tau[source] + rng.normal(0, 0.15, (len(source), len(ARMS)))), 1.0)
        tau[:, 0] = 1.0
        embedding = places[source] + rng.normal(0, 0.15, (len(source), 6))
        n, tokens, sampled = len(source), np.full(len(source), 60.0), rng.random(len(source)) < 0.5
        lexical = np.zeros((n, len(FEATURES)))
        lexical[:, FEATURES.index("temperature")] = 0.7 * sampled
        lexical[:, FEATURES.index("log_max_tokens")] = np.log1p(64) / 10
        contexts = np.concatenate([embedding, lexical], axis=1).astype(np.float32)
        made = Matrix(
            prompt_ids=tuple(f"p{i}" for i in range(n)), kinds=tuple(f"source-{i:02d}" for i in source), arms=ARMS,
            time_s=COSTS.time_s(tau, np.zeros(n), tokens, sampled), acceptance_length=tau,
            acceptance_rate=np.full_like(tau, np.nan), prompt_tokens=np.full(n, 30.0), output_tokens=tokens,
            temperatures=np.asarray(0.7 * sampled, np.float64), dropped={}, featurizer="features", contexts=contexts,
        )  # fmt: skip
        return cls(made)

    def split(self, known: int = 45) -> tuple[Matrix, Matrix]:
        """The requests of the first sources, and of the others."""
        first = np.asarray([int(kind[-2:]) < known for kind in self.matrix.kinds])
        return self.matrix.select_rows(first), self.matrix.select_rows(~first)


@cache
def fitted_once(name: str, seed: int, **world: float) -> Policy:
    """The policy of a learner on the known sources of a world."""
    return fitted(World.draw(seed, **world).split()[0], learner(name), SETTING)


def policy_of(data: Matrix | int) -> CalibratedPolicy:
    """Calibrated on a matrix, or on the known sources of the world of a seed."""
    made = fitted_once("calibrated", data) if isinstance(data, int) else fitted(data, learner("calibrated"), SETTING)
    assert isinstance(made, CalibratedPolicy)
    return made


def covered(policy: CalibratedPolicy, test: Matrix) -> np.ndarray:
    """Whether each arm's time against the default's was within its interval [n, arms but the first and the default]."""
    assert test.contexts is not None
    found = []
    for vector, tau in zip(test.contexts, test.acceptance_length, strict=True):
        context = stored_context(vector, "features")
        error = np.log(policy.tau(context) / tau)
        ratio = np.exp(error - error[policy.default_arm])
        found.append([low <= x <= high for x, (low, high) in zip(ratio, policy.intervals(context), strict=True)])
    arms = [arm for arm in range(1, len(ARMS)) if arm != policy.default_arm]
    return np.asarray(found)[:, arms]


@pytest.mark.parametrize(("sources", "level"), [(8, 0.8), (30, 0.6), (30, 0.9)])
def test_a_bound_covers_what_it_promises_on_a_new_source(sources: int, level: float) -> None:
    """Errors share most of their size with their source, and sources differ in size."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(400):
        sizes = rng.integers(3, 40, sources + 1)
        source = np.repeat(np.arange(sources + 1), sizes)
        own = rng.normal(0, 0.3, sources + 1)[source] + rng.normal(0, 0.1, len(source))
        errors, known = np.stack([np.zeros_like(own), own], axis=1)[:, None], source < sources
        sampled = np.zeros(known.sum(), bool)
        made = Conformity(errors[known], sampled, source[known].astype(str)).quantiles(level, level)
        covered.append((own[~known] <= made[0, 0, 1, BOUND]).mean())
        assert made[0, 0, 0, BOUND] == 0
        assert (made[0] == made[1]).all()  # no sampled request: those of all
    assert level - 0.03 <= np.mean(covered) <= level + 0.1


def test_intervals_cover_what_they_promise_on_sources_that_nobody_has_seen() -> None:
    _, new = World.draw(0).split()
    share = covered(policy_of(0), new).mean()
    assert 0.72 <= share < 0.95


def test_more_coverage_is_asked_for_and_given() -> None:
    known, new = World.draw(3).split()
    narrow, wide = (
        covered(fitted(known, Calibrated(coverage=coverage), SETTING), new).mean()  # type: ignore[arg-type]
        for coverage in (0.5, 0.9)
    )
    assert narrow < wide
    assert wide > 0.85


def test_new_sources_are_farther_than_known_ones() -> None:
    known, new = World.draw(1).split()
    policy = policy_of(1)
    assert known.contexts is not None
    assert new.contexts is not None
    near, far = (
        np.asarray([policy.is_far(stored_context(v, "features")) for v in contexts]).mean()
        for contexts in (known.contexts, new.contexts)
    )
    assert near < 0.1
    assert far > 0.25


def lost(name: str, seed: int, **world: float) -> float:
    """Total time on new sources over that of the best arm of the known ones."""
    known, new = World.draw(seed, **world).split()
    routed = (policy_probabilities(fitted_once(name, seed, **world), new) * new.time_s).sum()
    return float(routed / new.time_s[:, known.time_s.sum(0).argmin()].sum())


def test_where_a_place_tells_nothing_of_new_sources_little_is_lost() -> None:
    assert lost("calibrated", 1, told=0.0) <= 1.06


def test_where_a_place_tells_much_most_of_the_gain_is_kept() -> None:
    assert 1 - lost("calibrated", 0) >= 0.9 * (1 - lost("tau_cost", 0))


def test_the_default_is_the_best_arm_of_the_data_and_not_the_settings() -> None:
    known, _ = World.draw(0).split()
    manifest, _ = fit(known, learner("calibrated"), replace(SETTING, default="plain"))
    assert manifest["options"]["default"] == ARMS[int(known.time_s.sum(0).argmin())]


def test_one_source_alone_calibrates_by_random_folds() -> None:
    known, _ = World.draw(0).split()
    policy = policy_of(replace(known, kinds=("only",) * len(known)))
    assert covered(policy, known).mean() > 0.75


def test_sources_are_those_of_the_prompts_and_tasks_where_they_are_unknown() -> None:
    data = replace(World.draw(0).matrix.select_rows(np.arange(3)), kinds=("qa", "qa", "code"))
    assert source_groups(data) == ("qa", "qa", "code")
    assert source_groups(replace(data, sources=("wiki", "", GENERATED))) == ("wiki", "qa", "code")


def test_out_of_source_no_policy_has_seen_a_source_that_it_decides() -> None:
    """Two sources, whose contexts are alike and whose fastest arms differ: each is decided by what the other taught."""
    known, _ = World.draw(0).split()
    n = len(known) // 2
    tau = np.ones_like(known.acceptance_length[: 2 * n])
    tau[:n, 1], tau[n:, 2] = 3.0, 3.0
    data = replace(
        known.select_rows(np.arange(2 * n)), acceptance_length=tau, sources=("one",) * n + ("two",) * n,
        time_s=COSTS.time_s(tau, np.zeros(2 * n), np.full(2 * n, 60.0), np.zeros(2 * n, bool)),
    )  # fmt: skip
    found = out_of_source_probabilities(data, learner("best_fixed"), SETTING)
    assert (found[:n].argmax(1) == 2).all()
    assert (found[n:].argmax(1) == 1).all()
    with pytest.raises(DatasetError, match="of one source"):
        out_of_source_probabilities(replace(data, sources=("one",) * 2 * n), learner("best_fixed"), SETTING)


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_are_of_equal_size_and_keep_groups_together(folds: int) -> None:
    groups = [f"g{i % 23}" for i in range(400)]
    by_group, by_row = group_folds(groups, folds, 0), row_folds(400, folds, 0)
    for fold in (by_group, by_row):
        sizes = Counter(fold.tolist())
        assert sorted(sizes) == list(range(folds))
        assert max(sizes.values()) - min(sizes.values()) <= 20
    assert len({(group, fold) for group, fold in zip(groups, by_group.tolist(), strict=True)}) == 23
    assert group_folds(["a", "a", "b"], 5, 0).tolist() in ([0, 0, 1], [1, 1, 0])
