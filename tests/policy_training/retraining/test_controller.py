"""When the controller trains, and what it does with a candidate: on records and a registry in memory."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from draftpick.policy_training.learners import learner
from draftpick.policy_training.retraining import controller as tested
from draftpick.policy_training.retraining.canary import Limits, Step
from draftpick.policy_training.retraining.controller import RolloutConfig, RolloutController
from draftpick.policy_training.retraining.pipeline import RetrainingPlan
from draftpick.router.online.events import Event
from draftpick.router.registry.state import EMPTY, Candidate, HistoryEntry, RegistryEntry, RegistryState, Stage
from draftpick.router.types import Decision, Outcome, Reason, Record

NOW = time.time()


def records(n: int, at: float, reason: Reason = "policy") -> list[Record]:
    """n records, one a second, the last at a time before now."""
    decision = Decision("a", 1.0, {"a": 1.0}, "old", reason)
    return [
        Record(f"r{i}", 1, NOW - at - (n - 1 - i), "/v1/completions", False, {}, {}, None, decision, Outcome("ok"))
        for i in range(n)
    ]


def event(at: float, kind: str = "inputs_changed", policy: str | None = None) -> Event:
    return Event(NOW - at, kind, "other requests", policy=policy)


@dataclass
class Store:
    """Records and events in memory."""

    kept: Sequence[Record] = ()
    told: list[Event] = field(default_factory=list)

    def records(self, since: float = 0.0) -> list[Record]:
        return [one for one in self.kept if one.time > since]

    def events(self, since: float = 0.0) -> list[Event]:
        return [one for one in self.told if one.time > since]

    def append_event(self, one: Event) -> None:
        self.told.append(one)


class Registry:
    """A state, and the changes that were asked for."""

    path = Path("nowhere")

    def __init__(self, state: RegistryState) -> None:
        self.now, self.changes = state, list[tuple[Any, ...]]()

    def state(self) -> RegistryState:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **more: self.changes.append((name, *args, *more.values()))


def moment(ago_s: float) -> datetime:
    return datetime.fromtimestamp(NOW - ago_s, UTC)


def state(
    stage: Literal["shadow", "canary", "holdout"] | None = None,
    *,
    share: float = 0.1,
    since: float = 100.0,
    began: float | None = None,
    created: float = 500.0,
    history: Sequence[tuple[str, float, str]] = (),
    **changes: Any,
) -> RegistryState:
    """`p0002` is active after `p0001`, which is the candidate in a holdout; else `p0003` is. Times in seconds ago."""
    id = "p0001" if stage == "holdout" else "p0003"
    stages: dict[str, Stage] = {"p0001": "retired", "p0002": "active", "p0003": "shadow"}
    if stage is not None:
        stages[id] = stage
    candidate = stage and Candidate(
        id=id, stage=stage, share=share, since=NOW - since, began=None if began is None else NOW - began
    )
    entries = {
        one: RegistryEntry(stage=of, policy=f"policy {one}", created=moment(created)) for one, of in stages.items()
    }
    made = [
        HistoryEntry(time=moment(ago_s), action=action, policy=policy, by="test", reason="")
        for action, ago_s, policy in history
    ]
    given = {"active": "p0002", "previous": "p0001", "candidate": candidate, "policies": entries, "history": made}
    return EMPTY.model_copy(update={**given, **changes})


NOTHING = EMPTY
PROMOTED = [("add", 500.0, "p0002"), ("promote", 300.0, "p0002")]
LOST = event(50, "safe_mode_entered", "policy p0002")
CONFIG = RolloutConfig(stages=(0.1, 0.5), limits=Limits(max_requests=40), min_new_records=10, holdout_requests=20)


@dataclass
class World:
    """A controller, what it trained, and what it said."""

    controller: RolloutController
    registry: Registry
    store: Store
    trained: list[int]
    said: list[str]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts a controller whose trainings only count their records."""

    def made(now: RegistryState, kept: Sequence[Record] = (), events: Sequence[Event] = (), **config: Any) -> World:
        registry, store, trained, said = Registry(now), Store(kept, list(events)), list[int](), list[str]()

        def train(given: Sequence[Record], *_: object) -> Any:
            trained.append(len(given))
            return type("Result", (), {"id": "p0009", "action": "candidate", "report": {"reason": "gains"}})

        monkeypatch.setattr(tested, "retrain", train)
        monkeypatch.setattr("draftpick.policy_training.retraining.controller.time.time", lambda: NOW)
        parts: Any = (store, registry, RetrainingPlan(learner("tau_cost"), "plain"))
        controller = RolloutController(*parts, replace(CONFIG, **config), said.append)
        return World(controller, registry, store, trained, said)

    return made


# --- when it trains ---


@pytest.mark.parametrize(
    ("now", "kept", "events", "trains"),
    [
        (NOTHING, records(10, 1), [], True),
        (NOTHING, records(9, 1), [], False),
        *((NOTHING, records(20, 1, reason), [], False) for reason in ("shadow", "pinned", "fallback", "resumed")),
        # With an active policy an event is needed, after its promotion, and records since.
        (state(history=PROMOTED), records(200, 1), [], False),
        (state(history=PROMOTED), records(200, 1), [event(50)], True),
        (state(history=PROMOTED), records(10, 1), [event(50)], True),
        (state(history=PROMOTED), records(9, 1), [event(50)], False),
        (state(history=PROMOTED), records(200, 1), [event(301)], False),
        (state(history=PROMOTED), records(200, 1), [event(50, "arm_quarantined")], False),
        (state(history=PROMOTED), records(200, 1), [event(50), event(5)], False),  # the last one counts
        # A training after the event was of records before it.
        (state(history=[*PROMOTED, ("add", 5.0, "p0003")]), records(200, 1), [event(50)], False),
        (state(history=[*PROMOTED, ("add", 30.0, "p0003")]), records(200, 1), [event(50)], True),
        (state(history=[*PROMOTED, ("rollback", 30.0, "p0001")]), records(200, 1), [event(50)], True),
    ],
)
def test_it_trains_after_an_event_once_enough_requests_came(
    start: Any, now: RegistryState, kept: list[Record], events: list[Event], trains: bool
) -> None:
    world = start(now, kept, events)
    world.controller.step()
    assert world.trained == ([len(kept)] if trains else [])
    assert world.said == (["p0009: candidate (gains)"] if trains else [])
    assert world.registry.changes == []


@pytest.mark.parametrize(("interval_s", "trains"), [(499.9, True), (500.1, False), (None, False)])
def test_it_trains_in_intervals_without_an_event(start: Any, interval_s: float | None, trains: bool) -> None:
    world = start(state(history=PROMOTED), records(3, 1), interval_s=interval_s)
    world.controller.step()
    assert bool(world.trained) is trains


def test_it_trains_again_when_its_records_are_an_interval_old(start: Any) -> None:
    world = start(NOTHING, records(20, 50), interval_s=1000.0)
    world.controller.step()
    world.controller.step()
    assert world.trained == [20]
    world.store.kept = [*world.store.kept, *records(9, 1)]
    world.controller.step()
    assert world.trained == [20]  # of those that came since, there are too few
    for interval_s, trained in ((50.1, [20]), (49.9, [20, 29])):  # since the last of the records, not the training
        replace(world.controller, config=replace(CONFIG, interval_s=interval_s)).step()
        assert world.trained == trained


def test_a_training_without_records_is_not_repeated_at_once(start: Any) -> None:
    world = start(NOTHING, interval_s=1000.0)
    world.controller.train()
    world.store.kept = records(20, 1)
    world.controller.step()
    assert world.trained == [0]


# --- what it does with a candidate ---


@pytest.mark.parametrize(
    ("now", "events", "kept", "ended"),
    [
        (state("canary"), [event(400)], records(10, 1), "rejected"),
        (state("canary"), [event(501)], records(10, 1), ""),  # it knows of it
        (state("canary"), [event(400)], records(9, 1), ""),
        (state("canary"), [event(400), event(5)], records(10, 1), ""),
        (state("holdout"), [event(50)], records(10, 1), "ended"),
        (state("holdout"), [event(400)], records(10, 1), ""),  # from before the holdout
    ],
)
def test_a_candidate_from_before_a_change_makes_room(
    start: Any, now: RegistryState, events: list[Event], kept: list[Record], ended: str
) -> None:
    world, why = start(now, kept, events), "engines or traffic have changed since"
    world.controller.step()
    changes = {"rejected": [("reject", "p0003", "keeper", why)], "ended": [("end_holdout", "keeper", why)], "": []}
    assert world.registry.changes == changes[ended]
    assert world.said == ([f"p0003: rejected at 10% ({why})"] if ended == "rejected" else [])


def test_a_shadow_becomes_a_canary_of_the_first_stage(start: Any) -> None:
    world = start(state("shadow"))
    world.controller.step()
    assert world.registry.changes == [("set_canary_share", "p0003", 0.1, "keeper")]
    assert world.said == ["p0003: decides 10% of the requests"]
    shadow = start(state("shadow", history=PROMOTED), events=[LOST])  # what the active one loses is not asked then
    shadow.controller.step()
    assert [change[0] for change in shadow.registry.changes] == ["set_canary_share"]
    assert world.trained == []


class Trial(str):
    """Data of a canary; `swapped` are those of its holdout."""

    def swapped(self) -> str:
        return f"swapped {self}"


def with_verdict(
    monkeypatch: pytest.MonkeyPatch, action: Literal["advance", "hold", "roll_back"], seen: list[Any]
) -> None:
    """All evaluations of a canary say so; what they were asked goes to `seen`."""
    step = Step(action, (), "by so much")

    def evaluate(*given: object, **more: object) -> Step:
        seen.append((*given, more))
        return step

    monkeypatch.setattr(tested, "canary_experiment", lambda records, began, policy: (Trial(policy), began))
    monkeypatch.setattr(tested, "evaluate_stage", evaluate)
    monkeypatch.setattr(tested, "evaluate_holdout", evaluate)


@pytest.mark.parametrize(
    ("action", "share", "changes", "event_kinds"),
    [
        ("advance", 0.1, [("set_canary_share", "p0003", 0.5, "keeper", "by so much")], []),
        ("advance", 0.05, [("set_canary_share", "p0003", 0.1, "keeper", "by so much")], []),
        ("advance", 0.5, [("promote", "p0003", "keeper", "by so much", 0.1)], ["policy_promoted"]),
        ("hold", 0.5, [], []),
        ("hold", 0.1, [], []),
        ("roll_back", 0.1, [("reject", "p0003", "keeper", "by so much")], ["candidate_rejected"]),
        ("roll_back", 0.5, [("reject", "p0003", "keeper", "by so much")], ["candidate_rejected"]),
    ],
)
def test_a_canary_goes_on_by_its_stages_or_back(
    start: Any, monkeypatch: pytest.MonkeyPatch, action: Any, share: float, changes: list[Any], event_kinds: list[str]
) -> None:
    seen = list[Any]()
    with_verdict(monkeypatch, action, seen)
    world = start(state("canary", share=share, since=100, began=200))
    world.controller.step()
    assert world.registry.changes == changes
    assert [one.kind for one in world.store.told] == event_kinds
    assert all(one.policy == "policy p0003" and one.text in world.said for one in world.store.told)
    next_share = {0.05: 0.1, 0.1: 0.5, 0.5: 1.0}[share]
    more = {"since": NOW - 100, "next_share": next_share, "limits": CONFIG.limits}
    assert seen == [("policy p0003", NOW - 200, more)]


@pytest.mark.parametrize(("share", "n", "rejected"), [(0.5, 79, False), (0.5, 80, True), (0.1, 399, False)])
def test_a_canary_that_no_router_uses_is_given_up(start: Any, share: float, n: int, rejected: bool) -> None:
    """After as many requests as would have brought it `max_requests` of its own."""
    world = start(state("canary", share=share, since=1000, created=2000), [*records(n, 1), *records(99, 1, "shadow")])
    world.controller.step()
    assert world.registry.changes == ([("reject", "p0003", "keeper", "routers do not use it")] if rejected else [])


@pytest.mark.parametrize(
    ("action", "n", "changes"),
    [
        ("hold", 19, []),
        ("hold", 20, [("end_holdout", "keeper", "no harm in 20 requests")]),
        ("hold", 21, [("end_holdout", "keeper", "no harm in 21 requests")]),
        ("roll_back", 20, [("rollback", "keeper", "by so much")]),
        (None, 20, [("end_holdout", "keeper", "no harm in 20 requests")]),  # nothing to compare
    ],
)
def test_a_holdout_ends_in_time_or_by_going_back(
    start: Any, monkeypatch: pytest.MonkeyPatch, action: Any, n: int, changes: list[Any]
) -> None:
    seen = list[Any]()
    if action is not None:
        with_verdict(monkeypatch, action, seen)
    world = start(state("holdout"), records(n, 1))
    world.controller.step()
    assert world.registry.changes == changes
    assert [one.kind for one in world.store.told] == (["policy_rolled_back"] if action == "roll_back" else [])
    assert seen == ([] if action is None else [("swapped policy p0001", NOW - 100, CONFIG.limits, {})])


def test_a_pinned_policy_is_left_in_place(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_verdict(monkeypatch, "roll_back", [])
    lost = event(5, "safe_mode_entered", "policy p0002")
    world = start(state("holdout", history=PROMOTED, pinned=True), records(30, 1), [lost], min_new_records=100)
    world.controller.step()
    assert world.registry.changes == []


@pytest.mark.parametrize(
    ("now", "events", "back"),
    [
        (state(history=PROMOTED), [LOST], True),
        (state("holdout", history=PROMOTED), [LOST], True),
        (state("canary", history=PROMOTED), [LOST], False),  # another one is on its way
        (state(history=PROMOTED, previous=None), [LOST], False),
        (state(history=PROMOTED[:1]), [LOST], False),
        (state(history=[*PROMOTED, ("promote", 200.0, "p0001")]), [LOST], False),  # somebody went back by hand
        (state(history=[("promote", 400.0, "p0001"), *PROMOTED]), [LOST], True),
        (state(history=PROMOTED), [replace(LOST, time=NOW - 301)], False),  # before the promotion
        (state(history=PROMOTED), [replace(LOST, policy="policy p0001")], False),  # a straggler of the old one
        (state(history=PROMOTED), [replace(LOST, policy="policy p0009")], False),
        (state(history=PROMOTED), [replace(LOST, policy=None)], False),
        (state(history=PROMOTED), [event(60), LOST], False),  # what has changed needs another policy
        (state(history=PROMOTED), [event(60, "arm_quarantined"), LOST], True),
        (state(history=PROMOTED), [LOST, event(10)], True),
        (state(history=[*PROMOTED, ("unpin", 20.0, "p0002")]), [LOST], True),
        (state(history=PROMOTED), [], False),
    ],
)
def test_a_loss_that_routers_report_brings_the_previous_policy_back(
    start: Any, now: RegistryState, events: list[Event], back: bool
) -> None:
    world = start(now, events=events)
    world.controller.step()
    assert world.registry.changes == ([("rollback", "keeper", "other requests")] if back else [])
    assert world.said == (["p0002: rolled back (other requests)"] if back else [])
    if back:
        assert (world.store.told[-1].kind, world.store.told[-1].policy) == ("policy_rolled_back", "policy p0002")


def test_as_configured_by_default() -> None:
    made = RolloutConfig()
    assert (made.stages, made.min_new_records, made.interval_s) == ((0.01, 0.1, 0.5), 500, None)
    assert (made.holdout, made.holdout_requests) == (0.1, 4000)
    limits = made.limits
    assert (limits.margin, limits.max_p99_ratio, limits.min_requests, limits.max_requests) == (0.02, 1.25, 50, 4000)
    assert limits.alpha == 0.05
