"""Routing compared with every single arm, over the last requests, by what the router has measured.

The time that arm b would have taken for a request is its measured time if b served it, else its predicted time times
exp(level of b). The level is the mean of log(measured / predicted) over the last answers of b. It is needed for
requests that the policy sends elsewhere, so answers of b to such requests (explored, or shadows: a random choice among
them) count 20 times. This is a direct estimate whose model is corrected by randomised answers. Errors in an arm's level
cancel, errors by text enter as variance; importance weights by request would need hundreds of explored answers.

All is in logarithms, weighted by the request's time, and per output token, without load.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_UNSELECTED = 20.0
"""Weight of an answer to a request for which the policy preferred another arm."""
_MIN_EFFECTIVE = 10.0
"""Effective number of answers from which an arm's level is known."""
_DEFAULT_ERRORS = 3.0
"""Standard errors by which a better default arm must save time."""
_MIN_DEVIATION = 0.1
"""Minimum standard deviation of a residual: a few equal ones do not make a level certain."""


class ArmComparison:
    """Keeps the last `window` requests, and as many residuals of every arm."""

    def __init__(self, arms: int, window: int) -> None:
        self._log_s, self._own = np.zeros((window, arms)), np.zeros((window, 3))
        self._residuals = np.zeros((arms, window, 2))
        self._answers, self.requests = [0] * arms, 0

    @property
    def window(self) -> int:
        """Number of requests that it keeps."""
        return len(self._own)

    def observe(self, arm: int, residual: float, preferred: bool, weight: float = 1.0) -> None:
        """Add log(measured / predicted) of an answer. `preferred`: whether the policy preferred its arm; `weight`: of
        the answer's API key."""
        weight *= 1.0 if preferred else _UNSELECTED
        self._residuals[arm, self._answers[arm] % self.window] = weight, residual
        self._answers[arm] += 1

    def add_request(self, arm: int, residual: float, predicted_s: Floats, tokens: float) -> None:
        """Add a request that the policy sent to the arm it prefers. `predicted_s` [arms]: per token, without load;
        `tokens`: of its answer, times the weight of its API key."""
        at = self.requests % self.window
        self._log_s[at] = np.log(predicted_s)
        self._own[at] = arm, residual, tokens * predicted_s[arm]
        self.requests += 1

    def clear_requests(self) -> None:
        """Forget the requests; levels stay."""
        self.requests = 0

    def reset_arm(self, arm: int) -> None:
        """Forget an arm's answers, after a change of it, and all requests."""
        self._answers[arm] = 0
        self.clear_requests()

    def level(self, arm: int) -> tuple[float, float] | None:
        """Mean residual of an arm and its variance; None if it is not known."""
        weights, residuals = self._residuals[arm, : min(self._answers[arm], self.window)].T
        total, squares = float(weights.sum()), float(weights @ weights)
        if squares == 0 or total * total / squares < _MIN_EFFECTIVE:
            return None
        mean = float(weights @ residuals) / total
        spread = float(np.square(weights) @ np.square(residuals - mean))
        return mean, max(spread, _MIN_DEVIATION**2 * squares) / total**2

    def losses(self) -> tuple[Floats, Floats]:
        """Mean log (time as routed / time under the arm) and its standard error, each [arms]; 0 and infinite for arms
        whose level is not known."""
        rows = min(self.requests, self.window)
        log_s, (arm, residual, weight) = self._log_s[:rows], self._own[:rows].T
        taken = log_s[np.arange(rows), arm.astype(int)] + residual
        mean, error = np.zeros(log_s.shape[1]), np.full(log_s.shape[1], np.inf)
        for b in range(len(mean)) if rows else ():
            if (known := self.level(b)) is None:
                continue
            other = arm != b
            lost = np.where(other, taken - log_s[:, b] - known[0], 0.0)
            total = weight.sum()
            mean[b] = weight @ lost / total
            by_request = np.square(weight) @ np.square(lost - mean[b]) / total**2
            error[b] = np.sqrt(by_request + known[1] * (weight @ other / total) ** 2)
        return mean, error

    def best_arm(self, default: int) -> int:
        """The arm of the least total time over the requests; `default` unless another is surely faster."""
        rows = min(self.requests, self.window)
        levels, own = [self.level(arm) for arm in range(self._log_s.shape[1])], self._own[:rows, 2]
        if not rows or (base := levels[default]) is None:
            return default
        best, least = default, 0.0
        for arm, known in enumerate(levels):
            if known is None or arm == default:
                continue
            each = self._log_s[:rows, arm] - self._log_s[:rows, default]
            mean = float(own @ each / own.sum())
            spread = float(np.square(own) @ np.square(each - mean)) / own.sum() ** 2
            saved = mean + known[0] - base[0]
            if saved + _DEFAULT_ERRORS * np.sqrt(spread + known[1] + base[1]) < 0 and saved < least:
                best, least = arm, saved
        return best
