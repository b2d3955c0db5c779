"""Predictions of answers (OpenAI's `prediction`): which engines draft from them, and what is expected of it."""

from collections.abc import Mapping
from dataclasses import replace

from draftpick.engines.arms import drafter_of, engine_of
from draftpick.engines.pool.forecast import Forecast
from draftpick.engines.pool.prediction import XARG
from draftpick.router.types import Outcome

_PRIOR_SHARE, _PRIOR_TOKENS = 0.7, 500.0
"""Share of a prediction that is assumed to come, and the predicted tokens that this is worth."""
_UNSEEN = _PRIOR_SHARE * _PRIOR_TOKENS, _PRIOR_TOKENS
_WINDOW_TOKENS = 20_000.0
"""Older predictions count less."""
_WORTH = 0.3
"""Least share at which engines that draft from predictions are preferred."""
_LENGTH = 8
"""Length of a draft for which acceptance is forecast."""


class Predictions:
    """What earlier predictions of each API key had accepted: one client's say nothing of another's.

    `copying`: arms by engine that draft from a prediction.
    """

    def __init__(self, copying: Mapping[str, frozenset[str]]) -> None:
        self._copying = {engine: arms for engine, arms in copying.items() if arms}
        self._seen: dict[str, tuple[float, float]] = {}

    def share(self, key: str) -> float:
        """Return the share of a key's predicted tokens that is expected in an answer."""
        accepted, tokens = self._seen.get(key, _UNSEEN)
        return accepted / tokens

    def engines(self, key: str) -> frozenset[str]:
        """Return the engines that are preferred for a request with a prediction: none if those of its key seldom come
        true."""
        return frozenset(self._copying) if self.share(key) >= _WORTH else frozenset()

    def engine_args(self, arm: str, prediction: str) -> dict[str, str]:
        """Return what the engine of an arm gets of a prediction in `vllm_xargs`: nothing unless it drafts from it."""
        return {XARG: prediction} if engine_of(arm) in self._copying else {}

    def forecast(self, arm: str, forecast: Forecast, key: str) -> Forecast:
        """Return a pool's forecast for a request with a prediction."""
        tau = sum(self.share(key) ** i for i in range(_LENGTH + 1))
        names = [name for one in self._copying.get(engine_of(arm), ()) if (name := drafter_of(one)) is not None]
        return replace(forecast, tau=forecast.tau | {name: max(tau, forecast.tau.get(name, 1.0)) for name in names})

    def observe(self, outcome: Outcome, key: str) -> None:
        """Learn what a prediction of a key had accepted."""
        if (told := outcome.prediction) is None:
            return
        tokens = told.accepted + told.rejected
        kept = max(0.0, 1.0 - tokens / _WINDOW_TOKENS)
        accepted, seen = self._seen.get(key, _UNSEEN)
        self._seen[key] = kept * accepted + told.accepted, kept * seen + tokens
