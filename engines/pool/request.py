"""One request of a pool: what each drafter proposed, how it was accepted, and what is reported of it at the end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from draftpick.engines.arms import NONE
from draftpick.engines.pool.acceptance import OwnAcceptance
from draftpick.engines.pool.forecast import Forecast
from draftpick.engines.pool.report import DrafterReport

_FIRST_CHECK, _LAST_CHECK = 8, 128
"""Tokens after which a head that rests reads what came and is scored on it; the number doubles each time."""


@dataclass(slots=True)
class Proposal:
    """Drafted tokens and the confidence level of each."""

    tokens: list[int]
    levels: list[int]


class PoolRequest:
    """State of one request. Each step: `observe` what came, `offer` drafts; the controller sets `chosen`.

    `room`: draft tokens that this request can take; `weight`: of its tokens in the batch's.
    """

    __slots__ = ("_checks", "_reports", "_settled", "chosen", "own", "proposals", "room", "sampled", "weight")

    def __init__(self, own: Mapping[str, OwnAcceptance], sampled: bool, forecast: Forecast | None) -> None:
        only = forecast.only if forecast is not None else None
        self.own = {name: one for name, one in own.items() if only in (None, name)}
        self.sampled = sampled
        self.weight = 2.0 if forecast is not None and forecast.objective == "latency" else 1.0
        self.room = 0
        self.proposals: dict[str, Proposal] = {}
        self.chosen: tuple[str, int] = (NONE, 0)
        self._checks: dict[str, int] = {}
        self._reports = {name: DrafterReport() for name in (*own, NONE)}
        self._reports[NONE].tau = 1.0
        self._settled = True
        if forecast is not None:
            for name, tau in forecast.tau.items():
                if name in self.own and forecast.weight:
                    self.own[name].foresee(tau, forecast.weight)

    def observe(self, came: Sequence[int], verified: int) -> None:
        """Learn that the step verified `verified` tokens of the chosen draft, and `came` were generated."""
        if self._settled:
            return  # the first token comes from the prompt: no step of decoding
        for name, proposal in self.proposals.items():
            if name in self.own:
                self.own[name].score(proposal.tokens, proposal.levels, came)
        report = self._reports[self.chosen[0] if verified else NONE]
        report.steps += 1
        report.drafted += verified
        report.accepted += min(verified, len(came) - 1)
        self.proposals = {}
        self._settled = True

    def offer(self, name: str, tokens: list[int], levels: list[int]) -> None:
        """Add a draft for the next step."""
        if tokens and self.room:
            self.proposals[name] = Proposal(tokens[: self.room], levels[: self.room])

    def choose(self, name: str, length: int) -> list[int]:
        """Note what is proposed, and return it."""
        self.chosen = (name, length) if length else (NONE, 0)
        self._settled = False
        return self.proposals[name].tokens[:length] if length else []

    def check(self, head: str) -> int:
        """Return after how many tokens a head that rests should read what came."""
        return self._checks.get(head, _FIRST_CHECK)

    def note_read(self, head: str, drafts: bool) -> None:
        """Note that a head read all tokens, to draft or to be scored."""
        after = _FIRST_CHECK if drafts else 2 * self.check(head)
        self._checks[head] = min(after, _LAST_CHECK)

    def drop(self, name: str) -> None:
        """Leave a drafter out from here on."""
        self.own.pop(name, None)
        self.proposals.pop(name, None)

    def report(self, left_out: Iterable[str] = ()) -> dict[str, Any]:
        """Return the reports by drafter, as plain values."""
        for name in left_out:
            self._reports.setdefault(name, DrafterReport()).left_out = True
        for name, own in self.own.items():
            self._reports[name].scored, self._reports[name].tau = own.scored, own.tau()
        return {name: report.to_fields() for name, report in self._reports.items()}
