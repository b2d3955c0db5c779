"""A retraining makes a gated candidate of records, and the keeper takes it on: on a bandit whose truth is known."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import numpy as np
import pytest

from draftpick.policy_training.data.dataset import Dataset, DatasetError, Measurement
from draftpick.policy_training.data.record_store import RecordStore
from draftpick.policy_training.learners import learner
from draftpick.policy_training.retraining.canary import Limits
from draftpick.policy_training.retraining.controller import RolloutConfig, RolloutController
from draftpick.policy_training.retraining.pipeline import RetrainingPlan, RetrainingResult, by_engine, retrain
from draftpick.router.features.lexical import stored_context
from draftpick.router.online.events import Event
from draftpick.router.policies import read
from draftpick.router.records import encode
from draftpick.router.registry.registry import Registry
from draftpick.router.types import Decision, Outcome, Record, Vector
from tests.policy_training.bandit import ARMS, BEST, COSTS, Bandit

BANDIT = Bandit.draw(2400, seed=5)
PLAN = RetrainingPlan(learner("tau_cost"), "plain")
NOW = time.time() - 60.0  # records of the future would be read as of now


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
        sampling={"temperature": 0.7 * half, "max_tokens": 64.0}, in_flight={},
        context=stored_context(BANDIT.contexts[i], "features"), decision=decision, outcome=outcome,
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
    return [
        policy.arms[int(policy.probabilities(stored_context(v, "features"), everywhere).argmax())] for v in contexts
    ]


def good_share(registry: Registry, id: str) -> float:
    """Share of fresh requests that the policy gives to the arm that is the best of their cluster."""
    fresh = Bandit.draw(200, seed=99)
    best = [ARMS[BEST[cluster]] for cluster in fresh.clusters]
    return float(np.mean([one == other for one, other in zip(chosen(registry, id, fresh.contexts), best, strict=True)]))


def trained(
    tmp_path: Path, records: Sequence[Record], events: Sequence[Event] = (), plan: RetrainingPlan = PLAN
) -> RetrainingResult:
    return retrain(records, events, Registry(tmp_path / "registry"), plan)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry whose first policy serves: trained once, for tests to copy."""
    folder = tmp_path_factory.mktemp("first") / "registry"
    retrain(log(range(2400)), (), Registry(folder), PLAN)
    return folder


@pytest.fixture
def registry(first: Path, tmp_path: Path) -> Registry:
    """A copy of `first`, where `trained` looks for it."""
    return Registry(shutil.copytree(first, tmp_path / "registry"))


def test_the_first_policy_of_a_registry_serves_when_it_passes_its_gate(first: Path) -> None:
    registry = Registry(first)
    assert registry.state().active == "p0001"
    assert good_share(registry, "p0001") > 0.9
    assert registry.report("p0001")["gate"]["passed"]


def test_what_is_no_better_than_the_active_policy_is_refused_with_a_report(registry: Registry, tmp_path: Path) -> None:
    result = trained(tmp_path, log(range(2400), seed=1))
    state = registry.state()
    assert result.action == "refused"
    assert "gain" in result.report["reason"]
    assert state.active == "p0001"
    assert state.candidate is None
    assert state.entry(str(result.id)).stage == "refused"


def replayed(n: int, moved: float = 0.0) -> Dataset:
    """Fresh requests of the bandit, replayed under all arms; their embedding lies so far from where it was."""
    fresh = Bandit.draw(n, seed=31)
    contexts = fresh.contexts.copy()
    contexts[:, :4] += moved * np.roll(np.eye(4), 1, axis=0)[fresh.clusters]
    rows = [
        Measurement(
            f"p{i}", f"cluster-{fresh.clusters[i]}", arm, arm, 0.7 * float(fresh.sampled[i]), 64, source="replay",
            outcome=Outcome(
                "ok", prompt_tokens=30, output_tokens=int(fresh.tokens[i]), acceptance_length=float(fresh.tau[i, a])
            ),
        )
        for i in range(n) for a, arm in enumerate(ARMS)
    ]  # fmt: skip
    return Dataset(tuple(rows), {f"p{i}": {"features": contexts[i]} for i in range(n)})


@pytest.mark.parametrize(("moved", "fails"), [(0.2, []), (6.0, ["rewording"])])
def test_data_in_other_words_and_domains_left_out_are_part_of_the_gate(
    tmp_path: Path, moved: float, fails: list[str]
) -> None:
    plan, done = replace(PLAN, base=replayed(240), reworded=replayed(240, moved)), list[str]()
    result = retrain(log(range(2400)), (), Registry(tmp_path / "registry"), plan, done.append)
    checks = {check["name"]: check["passed"] for check in result.report["gate"]["checks"]}
    assert {"rewording", "left_out_domain"} <= set(checks)
    assert [name for name, passed in checks.items() if not passed] == fails
    assert result.action == ("refused" if fails else "promoted")
    assert result.report["not_made"] == {}
    assert "without cluster-3" in done


def test_checks_that_were_not_made_are_named_with_the_reason(first: Path, tmp_path: Path) -> None:
    bare = Registry(first).report("p0001")
    shadowed = retrain(log(range(400), 4), (), Registry(tmp_path / "shadowed"), PLAN).report
    assert "--paraphrased-data" in bare["not_made"]["rewording"]
    assert "no request was measured under all" in bare["not_made"]["left_out_domain"]
    assert list(shadowed["not_made"]) == ["rewording"]
    again = trained(tmp_path, log(range(2400)), plan=replace(PLAN, base=replayed(20))).report
    assert "3 must" in again["not_made"]["left_out_domain"]


def test_an_arm_that_changed_is_learned_anew_and_the_candidate_goes_on_its_way(
    registry: Registry, tmp_path: Path
) -> None:
    """After the event the arm `math` takes four times as long: the old policy still trusts it, shadows show it."""
    slow = {"math": 4.0}
    after = [
        replace(r, outcome=replace(r.outcome, tpot_s=slow.get(r.decision.arm, 1.0) * (r.outcome.tpot_s or 0)))
        for r in log(range(300, 1200), shadows=3)
    ]
    event = Event(NOW + 2.99, "arm_changed", "engine math: slower", "math")
    result = trained(tmp_path, [*log(range(300)), *after], [event])
    assert result.action == "candidate", result.report["reason"]
    assert any(name.startswith("before_change:math") for name in result.report["dropped"])
    of_math = BANDIT.contexts[BANDIT.clusters == 2][:40]
    assert chosen(registry, str(result.id), of_math).count("math") < 4


def test_an_arm_without_records_keeps_what_the_active_policy_knows_of_it(registry: Registry, tmp_path: Path) -> None:
    no_suffix = [r for r in log(range(2400), seed=3) if r.decision.arm != "suffix"]
    result = trained(tmp_path, no_suffix)
    assert set(read(registry.folder(str(result.id))).arms) == set(ARMS)
    assert good_share(registry, str(result.id)) > 0.85


def test_an_arm_that_is_new_and_records_of_other_features_are_no_hindrance(tmp_path: Path) -> None:
    old = [r for r in log(range(2400)) if r.decision.arm != "math"]
    retrain(old, (), Registry(tmp_path / "registry"), replace(PLAN, require_significance=False))
    other = [replace(r, context=stored_context(r.context.vector[:5], "others")) for r in log(range(50)) if r.context]
    result = trained(
        tmp_path, [*other, *log(range(2400), seed=4, shadows=6)], plan=replace(PLAN, require_significance=False)
    )
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
    told = Event(NOW, "policy_rolled_back", "p0002: rolled back", policy="p")
    for _ in range(2):
        store.append_event(told)
    assert store.events() == [told, told]


def test_of_older_segments_nothing_is_read_once_there_are_enough_records() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({f"/many/records-{i:02}.jsonl": b"".join(map(encode, log(range(10 * i, 10 * i + 10)))) for i in range(40)})
    found = RecordStore("memory://many", max_records=100).records()
    assert (len(found), found[-1].request_id) == (160, "r399")


@pytest.mark.parametrize("url", ["memory://nothing", "nosuch://x"])
def test_a_store_that_cannot_be_read_is_an_error_that_names_it(url: str) -> None:
    with pytest.raises(DatasetError, match=url.split(":", maxsplit=1)[0]):
        RecordStore(url).records()


OLD, NEW = 1, 2
"""The arms that the active policy and the candidate of `canary` give every request."""


def tried(
    names: Sequence[str], n: int, share: float, at: float, slower: float = 1.0, failing: float = 0.0, seed: int = 0
) -> list[Record]:
    """n requests, of which the second policy decides a share: on its arm they take `slower` times as long."""
    rng, made = np.random.default_rng(seed), []
    sure = [{name: float(arm == place) for place, name in enumerate(ARMS)} for arm in (OLD, NEW)]
    for i in range(n):
        new = int(rng.random() < share)
        one = record(i % 900, (OLD, NEW)[new], names[new], at=at + i / 1e6)
        decision = replace(
            one.decision, propensity=1.0, probabilities=sure[new],
            other_policy_probabilities={names[1 - new]: sure[1 - new]}, policy_share=share if new else 1.0 - share,
        )  # fmt: skip
        outcome = replace(one.outcome, tpot_s=0.01 * float(rng.lognormal(0, 0.1)) * (slower if new else 1.0))
        failed = new and rng.random() < failing
        made.append(replace(one, decision=decision, outcome=Outcome("engine_error") if failed else outcome))
    return made


Canary = Callable[..., tuple[RolloutController, Registry, list[str]]]


@pytest.fixture(scope="module")
def two(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `first` with a second policy: for tests to copy."""
    folder = Path(shutil.copytree(first, tmp_path_factory.mktemp("two") / "registry"))
    retrain(log(range(2400), seed=2), (), Registry(folder), replace(PLAN, seed=7))
    return folder


@pytest.fixture
def canary(two: Path, tmp_path: Path) -> Canary:
    """Makes a registry with a candidate at 50 % that takes `slower` times the active policy's time; their records."""

    def start(slower: float, failing: float = 0.0) -> tuple[RolloutController, Registry, list[str]]:
        registry, said = Registry(shutil.copytree(two, tmp_path / "registry")), list[str]()
        id = registry.add(registry.folder("p0002"), {"reason": "test"}, "test")
        registry.set_canary_share(id, 0.5, "test", start=True)
        names = [registry.state().policies[one].policy for one in ("p0001", id)]
        earlier = [record(i, OLD, names[0], at=NOW - 200 + i / 10) for i in range(200)]
        records = [*earlier, *tried(names, 1600, 0.5, time.time(), slower, failing)]
        store = RecordStore(put(tmp_path / "records", records))
        config = RolloutConfig((0.5,), Limits(min_requests=100, max_requests=10_000), 10_000)
        return RolloutController(store, registry, PLAN, config, said.append), registry, said

    return start


def told(keeper: RolloutController) -> list[str]:
    """Kinds of events."""
    return [event.kind for event in keeper.store.events()]


def test_a_candidate_that_is_faster_serves_all_requests_in_the_end(canary: Canary) -> None:
    keeper, registry, said = canary(slower=0.8)
    keeper.step()
    state = registry.state()
    assert (state.active, state.previous) == ("p0003", "p0001")
    assert "serves all" in said[-1]
    assert told(keeper) == ["policy_promoted"]
    assert state.candidate is not None
    assert (state.candidate.id, state.candidate.stage, state.candidate.share) == ("p0001", "holdout", 0.1)


@pytest.mark.parametrize(("slower", "failing"), [(1.3, 0.0), (1.0, 0.2)])
def test_a_candidate_that_is_slower_or_fails_is_refused(canary: Canary, slower: float, failing: float) -> None:
    keeper, registry, said = canary(slower, failing)
    keeper.step()
    state = registry.state()
    assert (state.active, state.candidate) == ("p0001", None)
    assert state.entry("p0003").stage == "refused"
    assert "rejected at 50%" in said[-1]
    assert told(keeper) == ["candidate_rejected"]


def test_a_candidate_of_which_nothing_is_sure_waits(canary: Canary) -> None:
    keeper, registry, said = canary(slower=1.0)
    keeper.step()
    assert registry.state().candidate is not None
    assert said == []


def promoted(canary: Canary, tmp_path: Path, n: int, **after: float) -> tuple[RolloutController, Registry, list[str]]:
    """A policy that was promoted, and n requests since, of which the one before decides a tenth."""
    keeper, registry, said = canary(slower=0.8)
    keeper.step()
    state = registry.state()
    names = [state.policies[one].policy for one in ("p0001", "p0003")]
    # Of requests that take what they took before the promotion, on either arm.
    records = tried(names, n, 0.9, time.time(), **{"slower": 0.8, **after})  # type: ignore[arg-type]
    put(tmp_path / "records", records, "records-2.jsonl")
    return keeper, registry, said


@pytest.mark.parametrize(
    ("after", "why"), [({"slower": 1.3}, "saves -"), ({"failing": 0.1}, "fails in"), ({}, "")], ids=str
)
def test_a_promoted_policy_that_goes_bad_is_rolled_back(
    canary: Canary, tmp_path: Path, after: dict[str, float], why: str
) -> None:
    keeper, registry, said = promoted(canary, tmp_path, 3000, **after)
    keeper.step()
    state = registry.state()
    if not after:
        assert state.active == "p0003"
        assert state.candidate is not None
        return
    assert (state.active, state.candidate, state.entry("p0003").stage) == ("p0001", None, "refused")
    assert f"rolled back ({why}" in said[-1]
    assert state.history[-1].reason.startswith(why)
    assert told(keeper) == ["policy_promoted", "policy_rolled_back"]


def test_the_keeper_trains_when_something_changed_and_enough_records_came_since(tmp_path: Path) -> None:
    registry, said = Registry(tmp_path / "registry"), list[str]()
    records = log(range(400), shadows=4)
    store = RecordStore(put(tmp_path / "records", records))
    keeper = RolloutController(store, registry, PLAN, RolloutConfig(min_new_records=500), said.append)
    keeper.step()
    assert said == []  # 400 records of clients are too few
    put(tmp_path / "records", log(range(400, 2400)), "records-2.jsonl")
    keeper.step()
    assert "promoted" in said[0]
    replace(keeper, config=replace(keeper.config, interval_s=3600.0)).step()
    assert len(said) == 1
    assert datetime.now(UTC) - registry.state().history[-1].time < timedelta(minutes=1)


def test_the_arms_of_a_pool_are_one_choice_to_an_estimate() -> None:
    arms = ["plain", "pool/a", "pool/b"]
    pi = np.asarray([[0.1, 0.7, 0.2], [0.1, 0.7, 0.2], [1.0, 0.0, 0.0]])
    found = by_engine(pi, np.asarray([2, 0, 1]), arms)
    np.testing.assert_allclose(found, [[0.1, 0.0, 0.9], [0.1, 0.7, 0.2], [1.0, 0.0, 0.0]])
