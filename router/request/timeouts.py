"""Whose timeout it is: the client's, that of an engine without progress, or that of an answer which is merely long."""

import math
from collections.abc import Mapping
from typing import TypedDict

from draftpick.engines.replicas import Lease, ReplicaTable
from draftpick.router.request.meter import Meter
from draftpick.router.request.state import RequestState

_HASTY = 0.9
"""An attempt with less of the configured time has less than an engine is given."""
_AMPLE = 0.5
"""Share of the time of an attempt in which a short answer is complete at the usual speed."""
_PREFILL = 0.125
"""Time of a prompt token, at most, relative to an output token."""


class Circumstances(TypedDict):
    """Of an attempt without a complete answer: see `draftpick.router.request.verdict.judge_error`."""

    hasty: bool
    alive: bool
    slow: bool


class Timeouts:
    """`response_timeout_s`: what an engine is given; see `draftpick.engines.http.client.EngineClient`."""

    def __init__(self, replicas: ReplicaTable, response_timeout_s: Mapping[bool, float]) -> None:
        self._replicas, self._response_timeout_s = replicas, response_timeout_s

    def circumstances(self, state: RequestState, lease: Lease, meter: Meter, within_s: float | None) -> Circumstances:
        """`within_s`: the time that the attempt had; None: what an engine is given."""
        given_s = self._response_timeout_s[state.client_request.request.stream]
        return {
            "hasty": within_s is not None and within_s < _HASTY * given_s,
            "alive": lease.replica.answered_within(meter.elapsed_s()),
            "slow": self._is_slow(state, lease, meter),
        }

    def _is_slow(self, state: RequestState, lease: Lease, meter: Meter) -> bool:
        """True if a replica whose answer takes too long is at fault, not the answer's length or its reader.

        It reports its load, and no progress; or others usually need less than half of the time for such a request.
        """
        replica, request = lease.replica, state.client_request.request
        if meter.arrivals is not None and meter.arrivals.first_pause is not None:
            return False
        if replica.report is not None and not replica.answered_within(meter.elapsed_s()):
            return True
        if request.max_tokens is None:
            return False
        others = {one for there in self._replicas.by_engine.values() for one in there} - state.tried
        usual_s = min((one.tpot_s for one in others if one.num_times), default=math.inf)
        tokens = request.max_tokens * request.num_answers + request.approximate_prompt_tokens * _PREFILL
        return usual_s * tokens < _AMPLE * meter.elapsed_s()
