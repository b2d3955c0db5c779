"""Records as training data: what is left out is counted, a thin log makes a policy, and its worth is estimated."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.from_records import (
    _residual_correction,
    by_time,
    contexts_of,
    dataset_of,
    from_records,
    impute_missing_arms,
    logged_feedback,
    paired_rows,
    random_arm_rows,
    separate_requests,
)
from draftpick.policy_training.data.record_store import RecordStore
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.ope import estimate_all, reward_model
from draftpick.policy_training.learners import learner
from draftpick.policy_training.retraining.pipeline import changed_since
from draftpick.policy_training.train import fitted, policy_probabilities
from draftpick.router.features.lexical import stored_context
from draftpick.router.online.events import Event
from draftpick.router.records import encode
from draftpick.router.types import Decision, LoadTerms, Outcome, Record
from tests.policy_training.bandit import ARMS, BEST, COSTS, SETTING, Bandit

BANDIT = Bandit.draw(600, seed=2)
LOG = BANDIT.logged(0)


def record(number: int, **changes: object) -> Record:
    arm = int(LOG.arm[number])
    tau, tokens, half = float(BANDIT.tau[number, arm]), int(BANDIT.tokens[number]), int(BANDIT.sampled[number])
    outcome = Outcome(
        "ok", 200, ttft_s=0.02, tpot_s=float(COSTS.step_s[arm, half]) / tau, prompt_tokens=30, output_tokens=tokens,
        acceptance_length=None if arm == 0 else tau,
    )  # fmt: skip
    p = dict.fromkeys(ARMS, 0.25)
    made = Record(
        request_id=f"r{number}", attempt=1, time=float(number), path="/v1/chat/completions", stream=True,
        sampling={"temperature": 0.7 * half, "max_tokens": 64.0}, in_flight={"plain": 1},
        context=stored_context(BANDIT.contexts[number], "features"),
        decision=Decision(ARMS[arm], float(LOG.propensity[number]), p, "uniform"), outcome=outcome,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def write(folder: Path, records: list[Record]) -> Path:
    (folder / "records-1.jsonl").write_bytes(b"".join(map(encode, records)))
    return folder


def test_finished_answers_come_in_order_of_time_and_the_rest_is_counted(tmp_path: Path) -> None:
    good = [record(i) for i in range(4)]
    bad = [
        replace(record(4), outcome=Outcome("timeout")),
        replace(record(5), context=None),
        replace(record(6), decision=replace(record(6).decision, reason="pinned")),
        replace(record(7), outcome=replace(record(7).outcome, tpot_s=None)),
    ]
    data = from_records(write(tmp_path, [*bad, *good[::-1]]))
    assert [m.prompt_id for m in data.measurements] == [f"r{i}/1" for i in range(4)]
    assert data.measurements[0].propensity == pytest.approx(float(LOG.propensity[0]))
    assert data.measurements[0].in_flight == 2
    names = [ARMS[int(LOG.arm[i])] for i in range(4, 8)]
    reasons = ("timeout", "no_context", "pinned", "too_short")
    assert data.dropped == {f"{reason}:{name}": 1 for reason, name in zip(reasons, names, strict=True)}
    assert data.featurizers == ["features"]


def test_a_clients_id_for_many_requests_makes_no_request_of_them() -> None:
    drawn = [record(i, request_id="session", time=float(i)) for i in range(40)]
    shadow = replace(record(41), request_id="session", decision=replace(record(41).decision, reason="shadow"))
    data = dataset_of([*drawn, shadow, record(50)])
    assert len(data.contexts) == len({m.prompt_id for m in data.measurements}) == 41
    assert not np.isfinite(paired_rows(data, random_arm_rows(data), ARMS)).any()


def test_several_answers_to_one_request_are_not_learned_from() -> None:
    data = dataset_of([record(0), record(1, sampling={"temperature": 0.0, "n": 4.0})])
    assert [m.prompt_id for m in data.measurements] == ["r0/1"]
    assert data.dropped == {f"several_answers:{ARMS[int(LOG.arm[1])]}": 1}


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, r"contains no records-\*\.jsonl"), (b"", "no usable record"), (b"{}\n", "no usable record")],
)
def test_a_folder_without_records_is_refused(tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "records-1.jsonl").write_bytes(content)
    with pytest.raises(DatasetError, match=problem):
        from_records(tmp_path)


def test_damaged_lines_are_skipped_and_counted_by_segment(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segment, store = tmp_path / "records-1.jsonl", RecordStore(str(tmp_path))
    segment.write_bytes(encode(record(1)) + b"\0" * 9 + b"\n" + b"[" * 9999 + b"\n" + encode(record(2)))
    assert [one.request_id for one in store.records()] == ["r1", "r2"]
    with segment.open("ab") as more:
        more.write(b"{}\n" + encode(record(3)))
    assert len(store.records()) == 3
    assert store.damaged == {str(segment): 3}
    assert [one.getMessage().split(": ")[1].split()[0] for one in caplog.records] == ["2", "3"]


def test_a_change_told_by_a_clock_that_is_ahead_hides_no_later_records() -> None:
    ahead = Event(time.time() + 86_400, "arm_changed", "", "a")
    assert changed_since([ahead])["a"] <= time.time()
    made = dataset_of([record(i) for i in range(10)], {})
    assert len(by_time(made, 0.6, since=time.time() + 86_400)[1].measurements) == len(
        by_time(made, 0.6, since=time.time())[1].measurements
    )


def test_a_thin_log_makes_a_good_policy_whose_worth_is_estimated(tmp_path: Path) -> None:
    data = from_records(write(tmp_path, [record(i) for i in range(600)]))
    earlier, later = by_time(data, 0.75)
    assert (len(earlier.measurements), len(later.measurements)) == (450, 150)
    costs = Costs.fit(earlier, ARMS)
    np.testing.assert_allclose(costs.step_s, COSTS.step_s, rtol=0.01)
    full = impute_missing_arms(earlier, ARMS, "features", costs)
    policy = fitted(full, learner("tau_cost"), replace(SETTING, costs=costs))
    fresh = Bandit.draw(300, seed=9)
    found = policy_probabilities(policy, fresh.matrix())
    assert (found.argmax(1) == BEST[fresh.clusters]).mean() > 0.9

    seen = logged_feedback(later, ARMS)
    contexts = contexts_of(later, "features")
    rows = np.arange(450, 600)
    pi = np.eye(4)[BEST[BANDIT.clusters[rows]]]
    per_token = COSTS.step_s.T[BANDIT.sampled[rows].astype(int)] / BANDIT.tau[rows]
    truth = -float((pi * per_token).sum(1).mean())
    found_value = estimate_all(seen, pi, reward_model(contexts, seen, 4))["dr"].value
    assert found_value.low <= truth <= found_value.high


def test_a_shadow_has_no_propensity_and_pairs_need_all_arms() -> None:
    own, other = record(0), record(1)
    shadows = [
        replace(own, attempt=1, decision=Decision(arm, 1.0, {arm: 1.0}, "uniform", "shadow"))
        for arm in ARMS
        if arm != own.decision.arm
    ]
    data = dataset_of([own, *shadows, other])
    rows = random_arm_rows(data)
    assert [m.prompt_id for m in rows.measurements] == ["r0/1", "r1/1"]
    paired = paired_rows(data, rows, ARMS)
    assert np.isfinite(paired[0]).all()
    assert np.isnan(paired[1]).all()
    first, *rest = data.measurements
    untimed = replace(data, measurements=(replace(first, outcome=replace(first.outcome, tpot_s=None)), *rest))
    assert np.isnan(paired_rows(untimed, rows, ARMS)[0]).any()


def test_an_improbable_answer_weighs_at_most_ten_times_a_certain_one() -> None:
    data = dataset_of([record(i) for i in range(400)])
    rare, *others = (m for m in data.measurements if m.arm == "math")
    rare = replace(rare, propensity=1e-6, outcome=replace(rare.outcome, acceptance_length=1000.0))
    usual = [m for m in data.measurements if m.arm != "math"]
    full = impute_missing_arms(replace(data, measurements=(rare, *others, *usual)), ARMS, "features", COSTS)
    assert np.median(full.acceptance_length[:, ARMS.index("math")]) < 10


def test_the_unit_of_a_feature_does_not_matter() -> None:
    data = dataset_of([record(i) for i in range(300)])
    units = np.where(np.arange(len(BANDIT.contexts[0])) % 2, 100.0, 1.0).astype(np.float32)
    rescaled = {id: {name: units * vector + 7.0 for name, vector in one.items()} for id, one in data.contexts.items()}
    found, same = (
        impute_missing_arms(replace(data, contexts=contexts), ARMS, "features", COSTS).acceptance_length
        for contexts in (data.contexts, rescaled)
    )
    np.testing.assert_allclose(found, same, rtol=1e-3)


def test_an_arm_that_was_hardly_taken_is_named(tmp_path: Path) -> None:
    rows = [i for i in range(200) if LOG.arm[i] != 3] + [i for i in range(200) if LOG.arm[i] == 3][:5]
    data = from_records(write(tmp_path, [record(i) for i in rows]))
    with pytest.raises(
        DatasetError, match=r"arm 'math' has 5 records: at least 20 are needed \(increase exploration\)"
    ):
        impute_missing_arms(data, ARMS, "features", COSTS)
    with pytest.raises(DatasetError, match="no record has a context of 'others'"):
        impute_missing_arms(data, ARMS, "others", COSTS)


def test_what_a_step_costs_is_that_of_a_request_alone() -> None:
    """Records under load have longer steps, which the router knows of, and does not learn as the engine's own."""
    context = stored_context(np.zeros(2, np.float32), "f")
    made = []
    for i in range(40):
        stretch = 1.0 + i % 4
        load = LoadTerms([1.0, stretch], [1.0, stretch], [0.0, 0.0], [0, 0], [1.0, 1.0])
        decision = Decision("math", 1.0, {"plain": 0.0, "math": 1.0}, "p", load=load)
        outcome = Outcome("ok", 200, 1.5, 0.01 * stretch, 2.0, 10, 20, acceptance_length=2.0, queue_s=1.0)
        made.append(Record(f"r{i}", 1, float(i), "/", False, {"temperature": 0.0}, {}, context, decision, outcome))
    costs = Costs.fit(dataset_of(made), ["math"])
    assert costs.step_s[0, 0] == pytest.approx(0.02)
    assert costs.start_s[0] == pytest.approx(0.5)


def test_no_key_is_most_of_the_training_data() -> None:
    keys = ["greedy", "greedy", "greedy", "modest"]
    made = [record(i % 600, request_id=f"r{i}", time=float(i), key=keys[i % 4]) for i in range(2400)]
    shadows = [replace(one, decision=replace(one.decision, reason="shadow")) for one in made[:100]]
    data = dataset_of([*made, *shadows])
    rows = [int(m.prompt_id[1:-2]) for m in random_arm_rows(data).measurements]
    counts = {name: sum(keys[i % 4] == name for i in rows) for name in set(keys)}
    assert counts["modest"] == 600
    assert 600 <= counts["greedy"] <= 900
    assert sum(data.dropped.values()) == 2500 - len(data.measurements)
    assert {name.split(":")[0] for name in data.dropped} == {"key_share"}
    assert {m.prompt_id for m in data.measurements if m.propensity is None} <= {f"r{i}/1" for i in rows}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sampling": {"n": 1.0}}, None),
        ({"sampling": {"n": 1.5}}, "several_answers"),
        ({"sampling": None}, None),
        ({"attempt": 2}, None),
        ({"outcome": {"status": "broken"}}, "broken"),
        ({"outcome": {"ttft_s": None}}, "too_short"),
        ({"outcome": {"tpot_s": None}}, "too_short"),
        ({"outcome": {"output_tokens": None}}, "too_short"),
        ({"outcome": {"output_tokens": 0}}, "too_short"),
        ({"outcome": {"output_tokens": 1}}, None),
        ({"outcome": {"tpot_s": 0.0}}, "impossible"),
        ({"outcome": {"tpot_s": -0.01}}, "impossible"),
        ({"outcome": {"ttft_s": -0.01}}, "impossible"),
        ({"outcome": {"output_tokens": 2**40}}, "impossible"),
        ({"outcome": {"prompt_tokens": -1}}, "impossible"),
        ({"outcome": {"acceptance_length": 0.0}}, "impossible"),
        ({"decision": {"probabilities": {"other": 1.0}}}, "impossible"),
        ({"decision": {"load": LoadTerms([1.0], [1.0], [0.0], [0], [1.0])}}, "impossible"),
        ({"context": stored_context(np.zeros(3, np.float32), "features")}, "context_size"),
        ({"decision": {"propensity": 1.0}}, None),
        ({"decision": {"propensity": 1e-9}}, None),
        ({"decision": {"propensity": 0.0}}, "no_propensity"),
        ({"decision": {"propensity": -0.5}}, "no_propensity"),
        ({"decision": {"propensity": 1.01}}, "no_propensity"),
        ({"decision": {"reason": "resumed"}}, "resumed"),
        ({"decision": {"reason": "fallback"}}, "fallback"),
        ({"decision": {"reason": "shadow"}}, None),
        ({"context": stored_context(np.asarray([0.0, np.nan]), "features")}, "context_not_finite"),
        ({"context": stored_context(np.asarray([0.0, np.inf]), "features")}, "context_not_finite"),
    ],
    ids=str,
)
def test_a_record_is_left_out_for_a_reason(changes: dict[str, Any], reason: str | None) -> None:
    given = {name: replace(getattr(record(1), name), **of) if isinstance(of, dict) and name != "sampling" else of
             for name, of in changes.items()}  # fmt: skip
    data = dataset_of([record(0), record(2), record(1, **given)])
    assert len(data.measurements) == (3 if reason is None else 2)
    assert data.dropped == ({} if reason is None else {f"{reason}:{record(1).decision.arm}": 1})


def test_a_measurement_says_what_was_asked_for_and_under_which_load() -> None:
    load = LoadTerms([1.5] * 4, [1.0] * 4, [0.0] * 4, [0] * 4, [1.0] * 4)
    decision = replace(record(0).decision, load=load)
    asked = record(0, attempt=2, sampling={"temperature": 0.3, "max_completion_tokens": 9.0}, decision=decision)
    usual = record(1, sampling={}, in_flight={"plain": 2, "math": 3})
    one, other = dataset_of([asked, usual]).measurements
    assert (one.prompt_id, one.task, one.source) == ("r0/2", "traffic", "record")
    assert (one.temperature, one.max_tokens, one.in_flight, one.slowdown) == (0.3, 9, 2, 1.5)
    assert (other.temperature, other.max_tokens, other.in_flight, other.slowdown) == (1.0, 0, 6, 1.0)
    assert (one.label, one.arm, one.time) == (asked.decision.arm, asked.decision.arm, 0.0)


def test_answers_before_a_change_of_their_arm_are_outdated() -> None:
    arm = record(3).decision.arm
    rows = [record(i) for i in range(40)]
    data = dataset_of(rows, {arm: 3.0})
    earlier = sum(one.decision.arm == arm for one in rows[:3])
    assert data.dropped == ({f"before_change:{arm}": earlier} if earlier else {})
    assert "r3/1" in {m.prompt_id for m in data.measurements}
    assert len(dataset_of(rows, {arm: 3.5}).measurements) == len(data.measurements) - 1


@pytest.mark.parametrize(
    ("share", "since", "earlier"),
    [(0.6, 0.0, 6), (0.5, 4.0, 7), (0.5, 3.9, 7), (0.0, 4.0, 5), (1.0, 4.0, 10), (0.25, 1.0, 4)],
)
def test_the_later_records_begin_after_a_share_of_those_since_a_time(share: float, since: float, earlier: int) -> None:
    data = dataset_of([record(i) for i in range(10)])
    first, second = by_time(data, share, since)
    assert [m.time for m in (*first.measurements, *second.measurements)] == list(range(10))
    assert len(first.measurements) == earlier
    assert first.contexts is second.contexts is data.contexts


def test_a_reward_is_the_negative_time_per_token() -> None:
    drawn, shadow = record(0), record(1, decision=replace(record(1).decision, reason="shadow"))
    found = logged_feedback(dataset_of([drawn, shadow]), ARMS)
    assert found.arm.tolist() == [ARMS.index(drawn.decision.arm)]
    assert found.reward.tolist() == [-(drawn.outcome.tpot_s or 0.0)]
    assert found.propensity.tolist() == [drawn.decision.propensity]


def test_other_features_are_left_out() -> None:
    data = dataset_of([record(0), record(1, context=stored_context(np.ones(3, np.float32), "others"))])
    assert [m.prompt_id for m in random_arm_rows(data, "others").measurements] == ["r1/1"]
    assert [m.prompt_id for m in random_arm_rows(data).measurements] == ["r0/1", "r1/1"]
    assert contexts_of(random_arm_rows(data, "others"), "others").tolist() == [[1.0, 1.0, 1.0]]


def test_what_was_observed_is_kept_and_the_rest_predicted() -> None:
    data = dataset_of([record(i) for i in range(120)])
    full = impute_missing_arms(data, ARMS, "features", COSTS)
    for row, m in enumerate(data.measurements):
        assert full.acceptance_length[row, ARMS.index(m.arm)] == pytest.approx(m.outcome.acceptance_length or 1.0)
    assert (full.acceptance_length >= 1.0).all()
    assert np.isnan(full.acceptance_rate).all()
    assert (full.kinds[0], full.featurizer, full.prompt_tokens[0]) == ("traffic", "features", 30.0)
    assert full.output_tokens[0] == data.measurements[0].outcome.output_tokens
    assert full.temperatures.tolist() == [m.temperature for m in data.measurements]
    sampled = full.temperatures > 0
    per_token = full.time_s / full.output_tokens[:, None] * full.acceptance_length
    for half in (False, True):  # each costs what its own steps cost
        steps = np.median(per_token[sampled == half], 0)
        np.testing.assert_allclose(steps, COSTS.step_s[:, int(half)], rtol=0.1)


def test_few_residuals_are_shrunk_to_nothing() -> None:
    """Ten equal ones lose a half, a hundred hardly anything."""
    z = np.zeros((200, 2))
    for number, expected in ((10, 0.5), (19, 19 / 29), (100, 1.0)):
        found = _residual_correction(z, np.arange(number), np.ones(number), np.ones(number))
        np.testing.assert_allclose(found, expected, rtol=0.12 if number == 100 else 1e-6)


def test_who_repeats_an_id_has_several_requests() -> None:
    shadow = replace(record(9), decision=replace(record(9).decision, reason="shadow"))
    given = [record(0, request_id="x"), record(1, request_id="x"), record(2, request_id="x", attempt=2),
             replace(shadow, request_id="x"), replace(shadow, request_id="y"), record(3, request_id="y")]  # fmt: skip
    assert [(one.request_id, one.attempt) for one in separate_requests(given)] == [
        ("x#1", 1), ("x#2", 1), ("x", 2), ("y", 1), ("y", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("number", "enough"), [(19, False), (20, True)])
def test_an_arm_needs_twenty_answers(number: int, enough: bool) -> None:
    of_arm = [i for i in range(600) if LOG.arm[i] == 3]
    others = [i for i in range(200) if LOG.arm[i] != 3]
    data = dataset_of([record(i) for i in sorted([*others, *of_arm[:number]])])
    if enough:
        assert len(impute_missing_arms(data, ARMS, "features", COSTS).prompt_ids) == len(others) + 20
    else:
        with pytest.raises(DatasetError, match="'math' has 19 records"):
            impute_missing_arms(data, ARMS, "features", COSTS)
