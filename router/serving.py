"""The policies in service: the active one, and a candidate that decides a share of the requests while it is judged."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from router.config import RouterConfig
from router.events import Event
from router.online import Online
from router.policies.base import Policy
from router.policies.simple import FixedPolicy
from router.sections import ExplorationConfig
from router.types import Context, Decision, LoadTerms, Outcome

_KEPT_EVENTS = 200
Loads = Callable[[Sequence[str]], LoadTerms | None]
"""What load adds now on each of these arms."""


@dataclass(frozen=True, slots=True)
class Served:
    """A policy, what is learned of it online, and the engine that serves while it is put aside."""

    policy: Policy
    online: Online
    stand_in: FixedPolicy | None

    def decide(
        self,
        context: Context | None,
        eligible: Sequence[str],
        rng: np.random.Generator,
        explore: float,
        exploration: ExplorationConfig,
        loads: Loads | None = None,
    ) -> Decision:
        """Draw an arm. Raises what the policy raises."""
        if self.stand_in is not None and self.online.put_aside:
            return self.stand_in.decide(context, eligible, rng, explore)
        load = loads(self.policy.arms) if loads is not None and self.policy.heeds_load else None
        return self.policy.decide(context, eligible, rng, explore, self.online.shifts, exploration, load)

    def understands(self, context: Context | None) -> bool:
        """Whether a context is of the features that it was made for: another policy may have served meanwhile."""
        return context is not None and context.featurizer == self.policy.featurizer

    def own(self, context: Context | None, decision: Decision) -> Decision | None:
        """A decision with what this policy expects; None where it expects nothing. Raises what the policy raises."""
        if not self.understands(context) or decision.arm not in self.policy.arms:
            return None
        if decision.policy == self.policy.id:
            return decision
        load = reordered(decision.load, tuple(decision.probabilities), self.policy.arms)
        forecast = self.policy.weigh(context, np.ones(len(self.policy.arms), bool), load=load)[1]
        return None if forecast is None else replace(decision, predicted_tpot_s=forecast.tpot_s)


def reordered(load: LoadTerms | None, arms: Sequence[str], wanted: Sequence[str]) -> LoadTerms | None:
    """Load by `arms` as load by the arms `wanted`; None where it says nothing of one of these."""
    if load is None or tuple(arms) == tuple(wanted):
        return load
    if not set(arms) >= set(wanted):
        return None
    at = [arms.index(arm) for arm in wanted]
    columns = load.stretch, load.price, load.wait_s, load.known_tokens, load.read_price
    return LoadTerms(*([values[i] for i in at] for values in columns))  # type: ignore[arg-type]


class Serving:
    """Decides. `explore`: the share of `RouterConfig.explore`, which may change; `events`: the last that happened."""

    def __init__(
        self, config: RouterConfig, policy: Policy, heard: Callable[[Event], None] = lambda event: None
    ) -> None:
        """`heard` is called with every event."""
        self._config, self._heard = config, heard
        self.explore = config.explore
        self.events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self.unwritten: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._active = self._serve(policy, {})
        self._candidate: Served | None = None
        self.share = 0.0

    @property
    def policy(self) -> Policy:
        """The active one."""
        return self._active.policy

    @property
    def candidate(self) -> Policy | None:
        """The one that is judged, which decides the share `share` of the requests."""
        return self._candidate.policy if self._candidate is not None else None

    def use(self, policy: Policy, candidate: Policy | None = None, share: float = 0.0) -> None:
        """Take these into service; what was learned of one that serves already is kept, by its id."""
        learned = dict(self.online())
        self._active = self._serve(policy, learned)
        self._candidate = None if candidate is None else self._serve(candidate, learned)
        self.share = share if candidate is not None else 0.0

    def decide(
        self,
        context: Context | None,
        eligible: Sequence[str],
        rng: np.random.Generator,
        explore: float,
        loads: Loads | None = None,
    ) -> Decision:
        """Draw the policy, then the arm; the propensity is that of the arm under the policy that was drawn.

        While two are in service, what the other one would have done is said beside it.
        """
        given = context, eligible, rng, explore, self._config.exploration, loads
        served, other, share = self._active, self._candidate, 1.0 - self.share
        if other is None or not self.share:
            return served.decide(*given)
        if rng.random() < self.share:
            served, other, share = other, served, self.share
        made = served.decide(*given)
        try:
            would = other.decide(*given)
        except Exception:  # a policy may be anybody's code: this one is not needed now
            return replace(made, policy_share=share)
        return replace(made, policy_share=share, beside={would.policy: would.probabilities})

    def named(self, id: str) -> Served:
        """The policy of this id, if it is in service; else the active one."""
        other = self._candidate
        return other if other is not None and other.policy.id == id else self._active

    def kind(self, context: Context | None) -> int:
        """The kind of a request, as the active policy tells kinds apart."""
        return self.policy.bin(context) if self._active.understands(context) else 0

    def saw(
        self,
        context: Context | None,
        kind: int,
        decision: Decision,
        outcome: Outcome,
        in_flight: int,
        stretch: float = 1.0,
    ) -> None:
        """Let both policies learn from a finished answer, whichever decided; its client has it already.

        `kind`: of `kind`; `in_flight`: requests on its arm, itself among them; `stretch`: by how much that made its
        steps longer.
        """
        for served in (self._active, self._candidate):
            if served is None:
                continue
            if served.stand_in is not None and served.stand_in.id == decision.policy:
                served.online.waited()
            elif (own := served.own(context, decision)) is not None:
                bin = kind if served is self._active else served.policy.bin(context)
                served.online.saw(bin, own, outcome, in_flight, stretch)

    def online(self) -> list[tuple[str, Online]]:
        """What is learned of each policy in service, by its id."""
        return [(s.policy.id, s.online) for s in (self._active, self._candidate) if s is not None]

    def tell(self, event: Event) -> None:
        """Keep an event for `/v1/route/events`, and for the file of events."""
        self._heard(event)
        self.events.append(event)
        self.unwritten.append(event)

    def tell_of_arm(self, kind: str, text: str, arm: str) -> None:
        """Keep an event of an arm."""
        self.tell(Event(time.time(), kind, text, arm, self.policy.id))

    def _serve(self, policy: Policy, learned: Mapping[str, Online]) -> Served:
        best = policy.default_arm
        stand_in = FixedPolicy(policy.arms, policy.arms[best]) if best is not None else None
        # An id says what a policy has learned, not its options: the new one decides.
        return Served(policy, learned.get(policy.id) or Online(self._config.online, policy, self.tell), stand_in)
