"""What a run of the loop came to: its time against the best policy in hindsight, what it noticed, and its policies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from draftpick.policy_training.data.contexts import contexts
from draftpick.router.features.lexical import stored_context
from draftpick.router.online.events import Event
from draftpick.router.policies.base import Policy
from draftpick.router.registry.registry import RegistryState
from draftpick.router.router import static_featurizer
from draftpick.router.types import Record
from tests.bench.loop.world import ARMS, Floats, Happening, Traffic

WINDOW, _RECOVERED = 100, 1.08


@dataclass(frozen=True, slots=True)
class Run:
    """What clients saw of request i: its arm (-1: none), when it was sent, and whether it failed."""

    arm: np.ndarray
    sent: np.ndarray
    errors: int
    e2e_s: np.ndarray


@dataclass(frozen=True, slots=True)
class Loop:
    """One run of the whole loop: what was asked, what clients saw, and what it left behind."""

    made: Traffic
    seen: Run
    frozen: Policy
    events: list[Event]
    state: RegistryState
    records: list[Record]
    said: list[str]


def choices(policy: Policy, made: Traffic) -> np.ndarray:
    """What a policy would have chosen, without anything that it learned on the way."""
    featurizer = static_featurizer()
    vectors = contexts([featurizer], made.prompts)
    everywhere = np.ones(len(ARMS), bool)
    rows = [
        policy.probabilities(stored_context(vectors[p.id][featurizer.id], featurizer.id), everywhere)
        for p in made.prompts
    ]
    return np.asarray([policy.arms.index(ARMS[0]) if not row.any() else int(row.argmax()) for row in rows])


def noticed(story: Sequence[Happening], run: Run, events: Sequence[Event]) -> dict[str, float]:
    """Requests between a happening and the first event that tells of it; infinite where none does."""
    found = {}
    for i, happening in enumerate(story[1:], 1):
        end = story[i + 1].at if i + 1 < len(story) else len(run.sent)
        began, until = run.sent[happening.at], run.sent[end - 1]
        own = [
            e.time for e in events
            if e.kind in happening.noticed_by and happening.arm in (None, e.arm) and began <= e.time <= until + 1.0
        ]  # fmt: skip
        found[happening.name] = float((run.sent < own[0]).sum() - happening.at) if own else float("inf")
    return found


def recovered(story: Sequence[Happening], taken: Floats, best: Floats) -> dict[str, float]:
    """Requests after which a window's time is near the best again; infinite where it never is."""
    kernel = np.ones(WINDOW)
    found = {}
    for i, happening in enumerate(story[1:], 1):
        end = story[i + 1].at if i + 1 < len(story) else len(taken)
        ratio = np.convolve(taken[happening.at : end], kernel, "valid") / np.convolve(
            best[happening.at : end], kernel, "valid"
        )
        near = np.flatnonzero(ratio <= _RECOVERED)
        found[happening.name] = float(near[0]) if len(near) else float("inf")
    return found


def taken_s(loop: Loop) -> Floats:
    """What requests took by the engines' own specification; a failed one takes what the slowest would."""
    made, arm = loop.made, loop.seen.arm
    return np.where(arm >= 0, made.seconds[np.arange(len(arm)), arm], made.seconds.max(1))


def figures(loop: Loop, story: Sequence[Happening]) -> dict[str, float]:
    """All that is reported of one run."""
    made, seen, taken = loop.made, loop.seen, taken_s(loop)
    best = made.seconds.min(1)
    of_frozen = made.seconds[np.arange(len(best)), choices(loop.frozen, made)]
    told, well = noticed(story, seen, loop.events), recovered(story, taken, best)
    return {
        "time_vs_hindsight": float(taken.sum() / best.sum()),
        "frozen_vs_hindsight": float(of_frozen.sum() / best.sum()),
        "best_fixed_vs_hindsight": float(made.seconds.sum(0).min() / best.sum()),
        "frozen_vs_loop": float(of_frozen.sum() / taken.sum()),
        "notice_requests_max": max(told.values()),
        "client_errors": float(seen.errors),
        "events": float(len(loop.events)),
        **learned_from(loop),
        **policies(loop),
        **{f"notice_requests/{name}": value for name, value in told.items()},
        **{f"recover_requests/{name}": value for name, value in well.items()},
    }


def figures_alone(loop: Loop) -> dict[str, float]:
    """Of a run without corrections."""
    found = {
        "time_vs_hindsight": float(taken_s(loop).sum() / loop.made.seconds.min(1).sum()),
        "client_errors": float(loop.seen.errors),
        **policies(loop),
    }
    return {f"without_corrections/{name}": value for name, value in found.items()}


def learned_from(loop: Loop) -> dict[str, float]:
    """Shares of the requests that went to another arm than the likeliest, to learn; that all arms answered again."""
    made = [r.decision for r in loop.records if r.decision.reason == "policy"]
    shadows = {r.request_id for r in loop.records if r.decision.reason == "shadow"}
    explored = [one.probabilities[one.arm] < max(one.probabilities.values()) for one in made]
    return {"explored_share": float(np.mean(explored)), "shadowed_share": len(shadows) / len(made)}


def policies(loop: Loop) -> dict[str, float]:
    """What became of candidates, and what they truly saved, over all requests that one of them was tried on."""
    made = [change.action for change in loop.state.history if change.by == "keeper"]
    ours, theirs = np.asarray(list(tried_s(loop)) or [(0.0, 0.0)]).sum(0)
    entered = sum(change.action == "add" for change in loop.state.history) - 1
    return {
        "candidates": float(entered),
        "promotions": float(made.count("promote")),
        "rolled_back": float(made.count("rollback")),
        "candidates_save": float(1.0 - ours / theirs) if theirs else 0.0,
    }


def tried_s(loop: Loop) -> Iterator[tuple[float, float]]:
    """Of each request while a candidate was tried: seconds that it and the active policy would truly have taken."""
    ids = {one.policy: id for id, one in loop.state.policies.items()}
    for record in loop.records:
        made, name = record.decision, (record.client_request_id or "").removeprefix("loop-")
        if made.reason != "policy" or not made.other_policy_probabilities or not name.isdecimal():
            continue
        both = {made.policy: made.probabilities, **made.other_policy_probabilities}
        if len(both) == 2 and set(both) <= set(ids):  # the later one is the candidate
            active, candidate = sorted(both, key=lambda policy: ids[policy])
            seconds = dict(zip(ARMS, loop.made.seconds[int(name)], strict=True))
            ours, theirs = (sum(p * seconds[arm] for arm, p in both[id].items()) for id in (candidate, active))
            yield ours, theirs
