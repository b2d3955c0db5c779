"""Which drafter each request of a batch uses in its next step, and how many of its tokens are verified: those with the
most expected tokens per expected second of the whole batch, by acceptance and costs measured on this engine.

A step: drafts of model-free drafters are offered; `choose_heads` says for which requests a head is worth its passes,
`extends` whether it is worth another token; `allocate` chooses among all drafts. No draft at all is always possible.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from draftpick.engines.arms import NONE
from draftpick.engines.pool.acceptance import LEVELS, Acceptance, OwnAcceptance, worth_of
from draftpick.engines.pool.costs import Costs
from draftpick.engines.pool.forecast import Forecast
from draftpick.engines.pool.request import PoolRequest

_MODEL_FREE_PRIOR = 0.4
"""Assumed acceptance rate of a copied token, at any confidence."""


@dataclass(frozen=True, slots=True)
class DrafterTraits:
    """`length`: greatest draft length; `is_head`: drafts by passes of a model, whose costs count."""

    length: int
    is_head: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """Drafted tokens to verify by request, and the tokens expected of the step in `seconds`."""

    lengths: list[int]
    tokens: float
    seconds: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class Controller:
    """Decides for one engine."""

    def __init__(self, drafters: Mapping[str, DrafterTraits], costs: Costs) -> None:
        self.drafters = dict(drafters)
        self.costs = costs
        self._shared = {name: _both_modes(traits) for name, traits in drafters.items()}
        self._rate = self._slope = 0.0
        self._batch: tuple[int, bool] = (0, False)

    @property
    def heads(self) -> list[str]:
        return [name for name, traits in self.drafters.items() if traits.is_head]

    def start(self, sampled: bool, forecast: Forecast | None = None) -> PoolRequest:
        """Create the state of a request."""
        own = {name: OwnAcceptance(self._shared[name][sampled]) for name in self.drafters}
        return PoolRequest(own, sampled, forecast)

    def leave_out(self, name: str) -> None:
        """Use a drafter no longer."""
        self.drafters.pop(name, None)

    def choose_heads(self, requests: Sequence[PoolRequest]) -> dict[str, list[int]]:
        """Return the places of the requests that each head should draft for, given what was offered so far."""
        self._batch = len(requests), any(request.sampled for request in requests)
        chains = [self._best_chain(request) for request in requests]
        plan = self._plan(requests, [chain for _, chain in chains])
        self._rate = plan.rate
        self._slope = self._slope_at(len(requests) + sum(plan.lengths))
        price = self._rate * self._slope
        known = [worth_of(chain, price) for _, chain in chains]
        left = [i for i, request in enumerate(requests) if request.room]
        chosen: dict[str, list[int]] = {}
        while left:
            heads = [name for name in self.heads if name not in chosen]
            offers = [(*self._head_rows(name, requests, left, known, price), name) for name in heads]
            value, rows, name = max(offers, default=(0.0, [], ""))
            if value <= 0:
                break
            chosen[name] = rows
            left = [i for i in left if i not in rows]
        return chosen

    def _head_rows(
        self, name: str, requests: Sequence[PoolRequest], left: Sequence[int], known: Sequence[float], price: float
    ) -> tuple[float, list[int]]:
        """Return the tokens that a head gains beyond its passes and its drafts' verification, if it drafts for those
        requests that gain most, and these; `known`: what each request's best draft is worth already."""
        gains = []
        for i in left:
            own = requests[i].own.get(name)
            if own is not None:
                worth = own.shared.worth(price) * own.gain() / own.shared.gain()
                gains.append((gain_of_choice(worth, known[i]) * requests[i].weight, i))
        gains.sort(reverse=True)
        extends = max(0.0, self._shared[name][self._batch[1]].drafted() - 1)
        best, value = (0.0, 0), 0.0
        for n, (gain, _) in enumerate(gains, 1):
            value += gain
            net = value - self._rate * (self.costs.read.seconds(n) + extends * self.costs.extend.seconds(n))
            best = max(best, (net, n))
        return best[0], [i for _, i in gains[: best[1]]]

    def choose_reads(
        self, head: str, requests: Sequence[PoolRequest], unread: Sequence[int], runs_anyway: bool
    ) -> list[int]:
        """Return the places of the requests whose `unread` tokens a head that rests there should read in this step.

        Requests share a pass: they wait for each other, unless one waits for long or the head `runs_anyway`.
        """
        shares = [count / request.check(head) for request, count in zip(requests, unread, strict=True)]
        due = sum(share >= 1 for share in shares)
        if not runs_anyway and 2 * due < len(requests) and max(shares, default=0) < 2:
            return []
        return [i for i, share in enumerate(shares) if share >= 0.5] if due or runs_anyway else []

    def extends(self, request: PoolRequest, head: str, levels: Sequence[int], rows: int) -> bool:
        """Return whether a head should draft another token after those of these confidences; `rows`: requests that
        share the pass."""
        own = request.own.get(head)
        if own is None or len(levels) >= min(request.room, own.shared.length):
            return False
        next_rate = own.shared.mean_rate(len(levels))
        survival = own.survival(levels)[-1] * next_rate * request.weight
        slope = self._slope if self._batch[0] > 1 else self._slope_at(1 + len(levels))
        return survival > self._rate * (self.costs.extend.seconds(rows) / rows + slope)

    def head_length(self, head: str, requests: Sequence[PoolRequest]) -> int:
        """Return the draft length of a head that drafts all its tokens in one call, for all these requests."""
        shared = self._shared[head][self._batch[1]]
        rows, reached = len(requests), 1.0
        tokens = sum(min(request.own[head].odds(), 1.0) for request in requests if head in request.own)
        for place in range(shared.length):
            reached *= shared.mean_rate(place)
            if tokens * reached <= self._rate * (self.costs.extend.seconds(rows) + rows * self._slope):
                return max(1, place)
        return shared.length

    def allocate(self, requests: Sequence[PoolRequest], spent_s: float = 0.0) -> list[list[int]]:
        """Return the draft of each request; `spent_s`: time that drafting took."""
        self._batch = len(requests), any(request.sampled for request in requests)
        for request in requests:
            for name, proposal in request.proposals.items():
                if self.drafters[name].is_head:
                    request.own[name].shared.note_draft(request.own[name].survival(proposal.levels))
        if len(requests) == 1:
            request = requests[0]
            options = [
                (self._plan(requests, [chain], spent_s), name) for name, chain in self._chains(request).items()
            ] or [(self._plan(requests, [[]], spent_s), NONE)]
            plan, name = max(options, key=lambda option: option[0].rate)
            return [request.choose(name, plan.lengths[0])]
        chains = [self._best_chain(request) for request in requests]
        plan = self._plan(requests, [chain for _, chain in chains], spent_s)
        return [
            request.choose(name, length)
            for request, (name, _), length in zip(requests, chains, plan.lengths, strict=True)
        ]

    def _chains(self, request: PoolRequest) -> dict[str, list[float]]:
        """Return the survival of each offered draft."""
        return {
            name: request.own[name].survival(proposal.levels[: request.room])
            for name, proposal in request.proposals.items()
        }

    def _best_chain(self, request: PoolRequest) -> tuple[str, list[float]]:
        """Return the offered draft with the most expected tokens beyond what their verification costs."""
        price = self._rate * (self._slope if self._batch[0] > 1 else 0.0)
        chains = self._chains(request)
        if not chains:
            return NONE, []
        return max(chains.items(), key=lambda item: worth_of(item[1], price))

    def _plan(self, requests: Sequence[PoolRequest], chains: Sequence[list[float]], spent_s: float = 0.0) -> _Plan:
        """Return how many tokens of each chain to verify: the likeliest of all, as many as maximise the rate."""
        count, sampled = self._batch
        likeliest = sorted(
            ((-survival * request.weight, i) for i, request in enumerate(requests) for survival in chains[i])
        )
        tokens = sum(request.weight for request in requests)
        table = self.costs.verify(count, sampled)
        best = (tokens / (table.seconds(count) + spent_s), 0, tokens)
        for n, (survival, _) in enumerate(likeliest, 1):
            tokens -= survival
            rate = tokens / (table.seconds(count + n) + spent_s)
            if rate > best[0]:
                best = rate, n, tokens
        lengths = [0] * len(requests)
        for _, i in likeliest[: best[1]]:
            lengths[i] += 1
        return _Plan(lengths, best[2], best[2] / best[0])

    def _slope_at(self, count: int) -> float:
        """Seconds of one more verified token in a step of `count`, on average over a few."""
        table, window = self.costs.verify(*self._batch), max(1, self._batch[0] // 2)
        return (table.seconds(count + window) - table.seconds(count)) / window


def gain_of_choice(expected: float, known: float) -> float:
    """Return what the better of two drafts gains over one that gains `known`, if the other's gain is `expected` on
    average and will be known when the choice is made: E[max(X, known)] - known for an exponential X."""
    return expected * math.exp(-known / expected) if expected > 0 else 0.0


def _both_modes(traits: DrafterTraits) -> tuple[Acceptance, Acceptance]:
    """Acceptance of greedy and of sampled requests."""
    prior = [(level + 0.5) / LEVELS for level in range(LEVELS)] if traits.is_head else [_MODEL_FREE_PRIOR] * LEVELS
    return Acceptance(traits.length, prior), Acceptance(traits.length, prior)
