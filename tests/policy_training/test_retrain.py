"""A retraining makes a gated candidate of records, and the keeper takes it on: on a bandit whose truth is known."""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import numpy as np
import pytest

from policy_training.dataset import DatasetError
from policy_training.gates import Limits
from policy_training.keeper import Keeper, Rules
from policy_training.learners import learner
from policy_training.record_store import RecordStore
from policy_training.retrain import Plan, Result, retrain
from router.exchange import Exchange
from router.online import Event
from router.policies import read
from router.records import encode
from router.registry import Registry
from router.types import Context, Decision, Outcome, Record, Vector
from tests.policy_training.bandit import ARMS, BEST, COSTS, Bandit

BANDIT = Bandit.draw(2400, seed=5)
PLAN = Plan(learner("tau_cost"), "plain")
NOW = time.time()


def record(i: int, arm: int, policy: str = "uniform", reason: str = "policy", at: float = 0.0) -> Record:
    """Request i of the bandit under an arm."""
    tau, half = float(BANDIT.tau[i, arm]), int(BANDIT.sampled[i])
    outcome = Outcome(
        "ok", 200, ttft_s=0.02, tpot_s=float(COSTS.step_s[arm, half]) / tau, prompt_tokens=30,
        output_tokens=int(BANDIT.tokens[i]), acceptance_length=None if arm == 0 else tau,
    )  # fmt: skip
    shadow = reason == "shadow"
    decision = Decision(
        ARMS[arm], 1.0 if shadow else 0.25, dict.fromkeys(ARMS, 0.25), policy, "shadow" if shadow else "policy"
    )
    return Record(
        request_id=f"r{i}", attempt=1, time=at or NOW + i / 100, path="/v1/chat/completions", stream=True,
        sampling={"temperature": 0.7 * half, "max_tokens": 64.0}, load={},
        context=Context(BANDIT.contexts[i], "features"), decision=decision, outcome=outcome,
    )  # fmt: skip


def log(rows: Sequence[int], shadows: int = 0, seed: int = 0) -> list[Record]:
    """Uniformly drawn arms for these requests, and shadows of every so-manieth."""
    rng, made = np.random.default_rng(seed), []
    for i in rows:
        arm = int(rng.integers(len(ARMS)))
        made.append(record(i, arm))
        if shadows and i % shadows == 0:
            made += [record(i, other, reason="shadow") for other in range(len(ARMS)) if other != arm]
    return made


def put(folder: Path, records: Sequence[Record], name: str = "records-1.jsonl") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"".join(map(encode, records)))
    return str(folder)


def chosen(registry: Registry, id: str, contexts: Sequence[Vector]) -> list[str]:
    """The arms that a policy of the registry gives these requests to."""
    policy, everywhere = read(registry.folder(id)), np.ones(len(ARMS), bool)
    return [policy.arms[int(policy.probabilities(Context(v, "features"), everywhere).argmax())] for v in contexts]


def good_share(registry: Registry, id: str) -> float:
    """Share of fresh requests that the policy gives to the arm that is the best of their cluster."""
    fresh = Bandit.draw(200, seed=99)
    best = [ARMS[BEST[cluster]] for cluster in fresh.clusters]
    return float(np.mean([one == other for one, other in zip(chosen(registry, id, fresh.contexts), best, strict=True)]))


def trained(tmp_path: Path, records: Sequence[Record], events: Sequence[Event] = (), plan: Plan = PLAN) -> Result:
    return retrain(records, events, Registry(tmp_path / "registry"), plan)


def test_the_first_policy_of_a_registry_serves_when_it_passes_its_gate(tmp_path: Path) -> None:
    result = trained(tmp_path, log(range(2400)))
    registry = Registry(tmp_path / "registry")
    assert result.action == "promoted"
    assert registry.state().active == result.id
    assert good_share(registry, str(result.id)) > 0.9
    assert registry.report(str(result.id))["gate"]["passed"]


def test_what_is_no_better_than_the_active_policy_is_refused_with_a_report(tmp_path: Path) -> None:
    trained(tmp_path, log(range(2400)))
    result = trained(tmp_path, log(range(2400), seed=1))
    state = Registry(tmp_path / "registry").state()
    assert result.action == "refused"
    assert "gain" in result.report["reason"]
    assert state.active == "p0001"
    assert state.candidate is None
    assert state.entry(str(result.id)).stage == "refused"


def test_an_arm_that_changed_is_learned_anew_and_the_candidate_goes_on_its_way(tmp_path: Path) -> None:
    """After the event the arm `math` takes four times as long: the old policy still trusts it, shadows show it."""
    trained(tmp_path, log(range(2400)))
    slow = {"math": 4.0}
    after = [
        replace(r, outcome=replace(r.outcome, tpot_s=slow.get(r.decision.arm, 1.0) * (r.outcome.tpot_s or 0)))
        for r in log(range(300, 1200), shadows=3)
    ]
    event = Event(NOW + 2.99, "arm_changed", "engine math: slower", "math")
    result = trained(tmp_path, [*log(range(300)), *after], [event])
    registry = Registry(tmp_path / "registry")
    assert result.action == "candidate", result.report["reason"]
    assert any(name.startswith("before_change:math") for name in result.report["dropped"])
    of_math = BANDIT.contexts[BANDIT.clusters == 2][:40]
    assert chosen(registry, str(result.id), of_math).count("math") < 4


def test_an_arm_without_records_keeps_what_the_active_policy_knows_of_it(tmp_path: Path) -> None:
    trained(tmp_path, log(range(2400)))
    no_suffix = [r for r in log(range(2400), seed=3) if r.decision.arm != "suffix"]
    result = trained(tmp_path, no_suffix)
    registry = Registry(tmp_path / "registry")
    assert set(read(registry.folder(str(result.id))).arms) == set(ARMS)
    assert good_share(registry, str(result.id)) > 0.85


def test_an_arm_that_is_new_and_records_of_other_features_are_no_hindrance(tmp_path: Path) -> None:
    old = [r for r in log(range(2400)) if r.decision.arm != "math"]
    retrain(old, (), Registry(tmp_path / "registry"), replace(PLAN, prove=False))
    other = [replace(r, context=Context(r.context.vector[:5], "others")) for r in log(range(50)) if r.context]
    result = trained(tmp_path, [*other, *log(range(2400), seed=4, shadows=6)], plan=replace(PLAN, prove=False))
    policy = read(Registry(tmp_path / "registry").folder(str(result.id)))
    assert set(policy.arms) == set(ARMS)
    assert policy.featurizer == "features"
    assert result.action == "candidate", result.report["reason"]


def test_too_few_records_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least"):
        trained(tmp_path, log(range(12)))


def test_records_are_read_from_any_store_and_of_a_segment_only_what_was_added() -> None:
    fs, lines = fsspec.filesystem("memory"), [encode(r) for r in log(range(12))]
    fs.pipe({"/logs/records-1.jsonl": b"".join(lines[:5]), "/logs/records-2.jsonl": b"".join(lines[5:9]) + b'{"torn'})
    store = RecordStore("memory://logs")
    assert len(store.records()) == 9
    assert [r.request_id for r in store.records(since=NOW + 0.065)] == ["r7", "r8"]
    read = sum(map(len, lines[:5]))
    fs.pipe("/logs/records-1.jsonl", b"x" * read + lines[11])  # what was read is not read again
    fs.pipe("/logs/records-2.jsonl", b"".join(lines[5:11]))
    assert [r.request_id for r in store.records()] == [f"r{i}" for i in range(12)]
    assert store.events() == []


def test_of_older_segments_nothing_is_read_once_there_are_enough_records() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({f"/many/records-{i:02}.jsonl": b"".join(map(encode, log(range(10 * i, 10 * i + 10)))) for i in range(40)})
    found = RecordStore("memory://many", most=100).records()
    assert (len(found), found[-1].request_id) == (160, "r399")


@pytest.mark.parametrize("url", ["memory://nothing", "nosuch://x"])
def test_a_store_that_cannot_be_read_is_an_error_that_names_it(url: str) -> None:
    with pytest.raises(DatasetError, match=url.split(":", maxsplit=1)[0]):
        RecordStore(url).records()


def canary(tmp_path: Path, slower: float, failing: float = 0.0) -> tuple[Keeper, Registry, list[str]]:
    """A registry with a candidate at 50 % that takes `slower` times the active policy's time, and their records."""
    registry, said = Registry(tmp_path / "registry"), []
    retrain(log(range(2400)), (), registry, PLAN)
    retrain(log(range(2400), seed=2), (), registry, replace(PLAN, seed=7))
    registry.unpin("test") if registry.state().pinned else None
    id = registry.add(registry.folder("p0002"), {"reason": "test"}, "test")
    registry.advance(id, 0.5, "test", begin=True)
    names = [registry.state().policies[one].policy for one in ("p0001", id)]
    rng, began = np.random.default_rng(0), time.time() + 1
    records = [record(i, 1, names[0], at=NOW - 100 + i / 10) for i in range(100)]
    for n in range(1600):
        arm = int(rng.integers(2))
        made = record(n % 900, 1, names[arm], at=began + n / 1000)
        times = float(rng.lognormal(0, 0.1)) * (slower if arm else 1.0)
        outcome = replace(made.outcome, tpot_s=0.01 * times)
        if arm and rng.random() < failing:
            outcome = Outcome("engine_error")
        records.append(replace(made, outcome=outcome))
    store = RecordStore(put(tmp_path / "records", records))
    limits = Limits(min_requests=100, most_requests=10_000)
    return Keeper(store, registry, PLAN, Rules((0.5,), limits, 10_000), said.append), registry, said


def test_a_candidate_that_is_faster_serves_all_requests_in_the_end(tmp_path: Path) -> None:
    keeper, registry, said = canary(tmp_path, slower=0.8)
    keeper.step()
    assert registry.state().active == "p0003"
    assert registry.state().previous == "p0001"
    assert "serves all" in said[-1]


@pytest.mark.parametrize(("slower", "failing"), [(1.3, 0.0), (1.0, 0.2)])
def test_a_candidate_that_is_slower_or_fails_is_refused(tmp_path: Path, slower: float, failing: float) -> None:
    keeper, registry, said = canary(tmp_path, slower, failing)
    keeper.step()
    state = registry.state()
    assert (state.active, state.candidate) == ("p0001", None)
    assert state.entry("p0003").stage == "refused"
    assert "refused at 50%" in said[-1]


def test_a_candidate_of_which_nothing_is_sure_waits(tmp_path: Path) -> None:
    keeper, registry, said = canary(tmp_path, slower=1.0)
    keeper.step()
    assert registry.state().candidate is not None
    assert said == []


def test_a_promoted_policy_that_routers_find_to_lose_is_rolled_back(tmp_path: Path) -> None:
    keeper, registry, said = canary(tmp_path, slower=0.8)
    keeper.step()
    lost = Event(time.time() + 5, "policy_loses", "it loses 7%", "plain", registry.state().policies["p0003"].policy)
    folder = tmp_path / "records" / "online"
    Exchange(folder).write_events([lost])
    keeper.step()
    assert registry.state().active == "p0001"
    assert "rolled back" in said[-1]


def test_the_keeper_trains_when_something_changed_and_enough_records_came_since(tmp_path: Path) -> None:
    registry, said = Registry(tmp_path / "registry"), []
    records = log(range(400), shadows=4)
    store = RecordStore(put(tmp_path / "records", records))
    keeper = Keeper(store, registry, PLAN, Rules(fewest_new=500), said.append)
    keeper.step()
    assert said == []  # 400 records of clients are too few
    put(tmp_path / "records", log(range(400, 2400)), "records-2.jsonl")
    keeper.step()
    assert "promoted" in said[0]
    keeper.step()
    assert len(said) == 1
    assert datetime.now(UTC) - registry.state().history[-1].time < timedelta(minutes=1)
