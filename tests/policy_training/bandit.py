"""A synthetic bandit: in each cluster of contexts one arm is known to be the fastest, and every policy's value is."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.logged_feedback import LoggedFeedback
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.learners.base import LearnerSetting
from draftpick.router.features.lexical import FEATURES

ARMS = ("plain", "ngram", "suffix", "math")
TAU = np.asarray(
    [
        [1.0, 3.0, 1.3, 1.2],
        [1.0, 1.2, 2.5, 1.4],
        [1.0, 1.2, 1.3, 3.5],
        [1.0, 1.05, 1.0, 1.1],
    ]
)
"""Mean acceptance length by cluster and arm."""
COSTS = Costs(ARMS, np.outer([0.010, 0.013, 0.013, 0.014], [1.0, 1.1]), np.full(4, 0.02), np.zeros(4))
BEST = (COSTS.step_s[:, 0] / TAU).argmin(1)
"""The fastest arm of each cluster: 1, 2, 3, 0."""
SETTING = LearnerSetting("plain", COSTS)
_EMBEDDED = 8


@dataclass(frozen=True, slots=True)
class Bandit:
    """Contexts [n, 18], acceptance lengths and times [n, 4], clusters [n]. Requests differ in length."""

    contexts: npt.NDArray[np.float32]
    tau: npt.NDArray[np.float64]
    time_s: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    sampled: npt.NDArray[np.bool_]
    clusters: npt.NDArray[np.int64]

    @classmethod
    def draw(cls, n: int, seed: int) -> "Bandit":
        rng = np.random.default_rng(seed)
        clusters = rng.integers(0, len(TAU), n)
        sampled = rng.random(n) < 0.5
        tokens = rng.integers(20, 64, n).astype(np.float64)
        tau = np.maximum(TAU[clusters] * rng.lognormal(0, 0.1, (n, len(ARMS))), 1.0)
        tau[:, 0] = 1.0
        embedding = 3 * np.eye(len(TAU), _EMBEDDED)[clusters] + rng.normal(0, 0.5, (n, _EMBEDDED))
        lexical = np.zeros((n, len(FEATURES)))
        lexical[:, FEATURES.index("temperature")] = 0.7 * sampled
        lexical[:, FEATURES.index("log_max_tokens")] = np.log1p(64) / 10
        lexical[:, FEATURES.index("log_chars")] = np.log1p(rng.integers(40, 400, n)) / 10
        contexts = np.concatenate([embedding, lexical], axis=1).astype(np.float32)
        return cls(contexts, tau, COSTS.time_s(tau, np.zeros(n), tokens, sampled), tokens, sampled, clusters)

    def __len__(self) -> int:
        return len(self.clusters)

    def share_of_possible(self, chosen: npt.NDArray[np.int64]) -> float:
        """Seconds that the chosen arms save against the first arm, over those that the best arms save."""
        saved = self.time_s[:, [0]] - self.time_s
        return float(saved[np.arange(len(self)), chosen].sum() / saved.max(1).sum())

    def matrix(self) -> Matrix:
        """The same as the matrix that learners and judges read; a cluster is a kind."""
        return Matrix(
            prompt_ids=tuple(f"p{i}" for i in range(len(self))),
            kinds=tuple(f"cluster-{c}" for c in self.clusters),
            arms=ARMS,
            time_s=self.time_s,
            acceptance_length=self.tau,
            acceptance_rate=np.full_like(self.time_s, np.nan),
            prompt_tokens=np.full(len(self), 30.0),
            output_tokens=self.tokens,
            temperatures=0.7 * self.sampled,
            dropped={},
            featurizer="features",
            contexts=self.contexts,
        )

    def reward(self) -> npt.NDArray[np.float64]:
        """Rewards in [0, 1] of all arms: 1 less the seconds a token takes over the most that any does."""
        per_token = self.time_s / self.tokens[:, None]
        return np.asarray(1 - per_token / (COSTS.step_s.max() + 0.01))

    def logged(self, seed: int, sharpness: float = 1.0) -> LoggedFeedback:
        """Decisions of a logging policy that knows a little: softmax of noise, drawn anew for each request."""
        rng = np.random.default_rng(seed)
        weights = np.exp(sharpness * rng.normal(size=(len(self), len(ARMS))))
        p = 0.8 * weights / weights.sum(1, keepdims=True) + 0.2 / len(ARMS)
        arm = (p.cumsum(1) > rng.random((len(self), 1))).argmax(1)
        rows = np.arange(len(self))
        return LoggedFeedback(arm, self.reward()[rows, arm], p[rows, arm])
