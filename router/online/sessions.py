"""What the router remembers of a session, the turns of one conversation or agent that a client names.

Two things come of it: the replica of the last turn counts as having read it, as far as the conversation has grown
(beside `draftpick.router.request.prefix_index`, which knows longer bodies by their bytes), and what the last turns
accepted, by drafter, shifts what is expected of the next one. No text is kept, not even the session's name.
"""

import hashlib
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from draftpick.engines.replicas import Replica, ReplicaTable
from draftpick.router.config.sections import SessionsConfig
from draftpick.router.openai_request import CHARS_PER_TOKEN, Request
from draftpick.router.policies.pool_arms import drafter_name
from draftpick.router.types import Accepted, Outcome, Placement, Turn, acceptance_by_arm

_MIN_TOKENS = 4
_TURN_WEIGHT, _KEPT = 8.0, 0.5
"""Most drafts that one turn is worth, and what is left of earlier ones after it: together at most 16 drafts."""


@dataclass(slots=True)
class Session:
    """The memory of one session.

    `url`: address of the replica that answered the last turn, empty before the first; `messages` and `known_bytes`: of
    the conversation that it has read; `turns`: that were answered; `accepted`: by drafter; `used_at`: by the clock.
    """

    id: str
    url: str = ""
    messages: int = 0
    known_bytes: int = 0
    turns: int = 0
    accepted: dict[str, Accepted] = field(default_factory=dict)
    used_at: float = 0.0

    def cached_prefix(self, request: Request, known: Mapping[str, int]) -> Mapping[str, int]:
        """Return `known`, bytes of a request that replicas have read, with those of the last turn, if it goes on."""
        if not self.url or request.turns <= self.messages:
            return known
        read = min(self.known_bytes, len(request.body))
        return {**known, self.url: max(read, known.get(self.url, 0))}

    def placed(self, turn: Turn, url: str, replicas: ReplicaTable, tried: Collection[Replica]) -> Turn:
        """Return a turn with what it finds at the replica at `url`. `tried`: replicas that failed it before."""
        placement: Placement = "kept" if url == self.url else "moved" if self.url else "new"
        if placement == "moved" and not any(
            one.url == self.url and one.usable and one not in tried
            for there in replicas.by_arm.values()
            for one in there
        ):
            placement = "fresh"
        return replace(turn, placement=placement)

    def observe(self, request: Request, url: str, arm: str, outcome: Outcome) -> None:
        """Remember an answered turn."""
        self.turns += 1
        self.url, self.messages = url, request.turns
        self.known_bytes = len(request.body) + CHARS_PER_TOKEN * (outcome.output_tokens or 0)
        if request.num_answers > 1 or outcome.prediction is not None:  # as in `draftpick.router.request.learning`
            return
        for name, tau, tokens in acceptance_by_arm(arm, outcome):
            if tau is None or (tokens or 0) < _MIN_TOKENS:
                continue
            drafter, weight = drafter_name(name), min((tokens or 0) / tau, _TURN_WEIGHT)
            before = self.accepted.get(drafter, Accepted(0.0, 0.0))
            kept = _KEPT * before.weight
            mean = (kept * before.log_tau + weight * math.log(max(tau, 1.0))) / (kept + weight)
            self.accepted[drafter] = Accepted(mean, kept + weight)


class Sessions:
    """The latest sessions of each API key: no key finds another's, and none displaces those of one that has fewer."""

    def __init__(
        self,
        config: SessionsConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        keep_prefixes: bool = True,
    ) -> None:
        """`keep_prefixes`: whether turns are drawn to the replica of the last one."""
        self._config, self._clock, self._keep_prefixes = config or SessionsConfig(), clock, keep_prefixes
        self._secret = os.urandom(16)
        self._by_key: dict[str, OrderedDict[str, Session]] = {}
        self._num_sessions = 0

    def __len__(self) -> int:
        return self._num_sessions

    def begin(
        self, name: str, key: str, request: Request, cached_prefix: Mapping[str, int]
    ) -> tuple[Session | None, Turn | None, Mapping[str, int]]:
        """Return the session of a request, the turn that it is, not placed yet, and where its prefix is cached, of
        which `cached_prefix` is known; no session if none are kept."""
        if not self._config.max_sessions:
            return None, None, cached_prefix
        session = self._find(name, key)
        turn = Turn(session.id, session.turns + 1, "new", request.tool_results, request.after_tool)
        return session, turn, session.cached_prefix(request, cached_prefix) if self._keep_prefixes else cached_prefix

    def known(self, name: str, key: str) -> Session | None:
        """Return a session without beginning a turn; None if it is not known."""
        of_key = self._by_key.get(key)
        return None if of_key is None else of_key.get(self._id(name, key))

    def _id(self, name: str, key: str) -> str:
        """Our id of a session: a digest under a secret of this router, so that nobody guesses the name from records."""
        return hashlib.blake2b(f"{key}\0{name}".encode(errors="replace"), digest_size=8, key=self._secret).hexdigest()

    def _find(self, name: str, key: str) -> Session:
        """The session of an API key by its client's name for it, or a new one."""
        id = self._id(name, key)
        now, known = self._clock(), self._by_key.setdefault(key, OrderedDict())
        self._forget_old(known, now - self._config.ttl_s)
        session = known.pop(id, None)
        if session is None:
            session = Session(id)
            self._num_sessions += 1
        known[id], session.used_at = session, now
        if self._num_sessions > self._config.max_sessions:
            max(self._by_key.values(), key=len).popitem(last=False)
            self._num_sessions -= 1
        return session

    def _forget_old(self, known: OrderedDict[str, Session], until: float) -> None:
        while known and next(iter(known.values())).used_at < until:
            known.popitem(last=False)
            self._num_sessions -= 1
