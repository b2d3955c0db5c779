"""Step time of an engine by batch size, relative to one request: profiled, and learned from answers.

The prior is the engine's profile (`draftpick.engines.profile.profile`), or a default; answers correct it by a smooth
factor of batch size: `log step = profile + level(mode) + bend(batch)`. If all answers have one batch size, level and
bend are not identifiable, and the prior distributes requests. A level that stays far from the profile contradicts it.
"""

import math

import numpy as np
import numpy.typing as npt

from draftpick.engines.profile.profile import MODES, Profile

MAX_BATCH = 512
"""Maximum batch size; larger ones are clipped."""
_BUCKETS = MAX_BATCH.bit_length()
_CENTRES = np.log2(1.5 * 2.0 ** np.arange(_BUCKETS)) * (np.arange(_BUCKETS) > 0)
"""Log centres of the buckets of batch sizes 1, 2 to 3, 4 to 7, ..."""
_GUESSED_GROWTH = 0.03
"""Default growth of a step per request: between accelerators (0.01) and a CPU core (0.04 greedy, 0.14 sampled)."""
_SMOOTHNESS = 3.0
"""Number of answers at which a difference between neighbouring batch sizes (1, 2, 4, ...) is shrunk by half."""
_MEMORY = 200.0
_MAX_RESIDUAL_STEP = 1.0
CONTRADICTION_RATIO, CONTRADICTING_ANSWERS = 1.25, 50
"""Ratio of measured to profiled steps, in either direction, that contradicts a profile, and answers that show it."""
Floats = npt.NDArray[np.float64]


class StepTimeModel:
    """Step times of one engine. `curves[mode][n]`: seconds of a step with n requests over that with one, rising.

    `mode`: one of `MODES`. `max_running`: maximum concurrent requests, if the profile has it. `alone_s`: seconds of a
    step of one request, by mode; all 1 without a profile. `drafter_s`: see `Profile`.
    """

    def __init__(self, profile: Profile | None = None) -> None:
        self._sums = np.zeros((3, len(MODES), _BUCKETS))  # answers; their residuals, and logarithms of sizes
        self._stale = False
        self.use_profile(profile)

    def use_profile(self, profile: Profile | None) -> None:
        """Use this profile; corrections of another one are discarded."""
        self.profile = profile
        self.max_running = profile.max_running if profile is not None else MAX_BATCH
        self.alone_s = [profile.step(1, 0.0, mode) if profile else 1.0 for mode in range(len(MODES))]
        self.drafter_s = profile.drafter_s if profile is not None else {}
        sizes = range(1, MAX_BATCH + 1)
        guess = [1.0 + _GUESSED_GROWTH * (n - 1) for n in sizes]
        self._base = np.log(
            [[profile.step(n, 0.0, mode) for n in sizes] if profile else guess for mode in range(len(MODES))]
        )
        self.forget_answers()
        self._set_curves(_CENTRES, np.zeros(_BUCKETS))

    def forget_answers(self) -> None:
        """Discard what answers have shown."""
        self._sums[:] = 0.0

    @property
    def contradicted(self) -> bool:
        """True if the answers of a mode differ from the profile by `CONTRADICTION_RATIO` on average, over at least
        `CONTRADICTING_ANSWERS` of about the last `_MEMORY` answers of each batch size."""
        if self.profile is None:
            return False
        weights, residuals, _ = self._sums.sum(2)
        enough = weights >= CONTRADICTING_ANSWERS
        return bool((np.abs(residuals[enough] / weights[enough]) > math.log(CONTRADICTION_RATIO)).any())

    def update(self, running: float, mode: int, step_s: float, weight: float = 1.0) -> None:
        """Record an answer's step time with `running` concurrent requests; `refit` applies it. `weight`: of the answer,
        in (0, 1]."""
        if step_s <= 0 or running < 1:
            return
        size = min(round(running), MAX_BATCH)
        residual = math.log(step_s) - float(self._base[mode, size - 1])
        cell = self._sums[:, mode, size.bit_length() - 1]
        if cell[0] >= 1.0:  # clip outliers
            mean = cell[1] / cell[0]
            residual = mean + min(max(residual - mean, -_MAX_RESIDUAL_STEP), _MAX_RESIDUAL_STEP)
        cell *= 1.0 - weight / _MEMORY
        cell += (weight, weight * residual, weight * math.log2(size))
        self._stale = True

    def refit(self) -> None:
        """Recompute the curves if there are new observations."""
        if self._stale:
            self._stale = False
            weights, _, at = self._sums.sum(1)
            self._set_curves(np.where(weights > 0, at / np.maximum(weights, 1e-9), _CENTRES), self._fit_bends())

    def _fit_bends(self) -> Floats:
        """The bend of each size bucket, 0 for the first: ridge least squares over the observations."""
        weights, sums, _ = self._sums
        modes = len(MODES)
        left, right = np.zeros((modes + _BUCKETS, modes + _BUCKETS)), np.zeros(modes + _BUCKETS)
        for mode, bucket in np.argwhere(weights > 0):
            at = [mode, modes + bucket]
            left[np.ix_(at, at)] += weights[mode, bucket]
            right[at] += sums[mode, bucket]
        for bucket in range(1, _BUCKETS):
            at = [modes + bucket - 1, modes + bucket]
            left[np.ix_(at, at)] += _SMOOTHNESS * np.asarray([[1, -1], [-1, 1]])
        left[modes, modes] += 1e6  # the bend of batch size one is 0
        left[range(modes), range(modes)] += 1e-9
        return np.asarray(np.linalg.solve(left, right)[modes:])

    def _set_curves(self, at: Floats, bends: Floats) -> None:
        """Recompute the curves with these bends at these log sizes."""
        curves = np.exp(self._base + np.interp(np.log2(np.arange(1, MAX_BATCH + 1)), at, bends))
        curves = np.maximum.accumulate(curves, axis=1) / curves[:, :1]
        self.curves: list[list[float]] = [[1.0, *row] for row in curves.tolist()]
