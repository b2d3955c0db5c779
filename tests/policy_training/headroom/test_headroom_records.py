"""Headroom of the router's records, whose truth is known: with shadows, without them, and where they cannot tell."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from draftpick.policy_training.data.dataset import Dataset, DatasetError
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.record_store import RecordStore
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.headroom.estimate import (
    CrossFittedChoice,
    Headroom,
    context_groups,
    cross_fit,
    evaluate_choice,
)
from draftpick.policy_training.headroom.from_logged import evaluate_logged, is_rejected
from draftpick.policy_training.headroom.from_records import Traffic, drawn_costs
from draftpick.policy_training.headroom.verdict import Evidence, reasons_against
from draftpick.router.features.lexical import stored_context
from draftpick.router.online.events import Event
from draftpick.router.records import encode
from draftpick.router.types import Decision, Outcome, Record
from tests.policy_training.bandit import ARMS, COSTS
from tests.policy_training.headroom.test_headroom import drawn, gain_of

Log = Callable[[int], Sequence[float]]
"""The probabilities that the log drew request i from."""


def even(i: int) -> Sequence[float]:
    return (0.25,) * 4


def answer(data: Matrix, i: int, arm: int, p: Sequence[float], reason: str = "policy", load: int = 0) -> Record:
    """Request i of a matrix under an arm, beside `load` others on it, each of which makes a step a tenth longer."""
    assert data.contexts is not None
    tau, half = float(data.acceptance_length[i, arm]), int(data.temperatures[i] > 0)
    tpot_s = float(COSTS.step_s[arm, half]) / tau * (1 + 0.1 * load)
    outcome = Outcome(
        "ok", 200, ttft_s=0.02, tpot_s=tpot_s, prompt_tokens=0, output_tokens=int(data.output_tokens[i]),
        acceptance_length=None if arm == 0 else tau, overhead_s=0.002,
    )  # fmt: skip
    shadow = reason == "shadow"
    decision = Decision(
        ARMS[arm], 1.0 if shadow else p[arm], dict(zip(ARMS, p, strict=True)), "x", "shadow" if shadow else "policy"
    )
    return Record(
        request_id=f"r{i}", attempt=1, time=1000.0 + i, path="/v1/chat/completions", stream=True,
        sampling={"temperature": 0.7 * half, "max_tokens": 64.0}, load={ARMS[arm]: load},
        context=stored_context(data.contexts[i], "features"), decision=decision, outcome=outcome,
    )  # fmt: skip


def log(data: Matrix, p: Log = even, shadows: int = 0, load: int = 0, seed: int = 0) -> list[Record]:
    """Every request once, by its probabilities, and every so-manieth under all other arms, too."""
    rng, made = np.random.default_rng(seed), []
    for i in range(len(data)):
        arm = int(rng.choice(len(ARMS), p=p(i)))
        made.append(answer(data, i, arm, p(i), load=load))
        if shadows and i % shadows == 0:
            made += [answer(data, i, other, p(i), "shadow") for other in range(len(ARMS)) if other != arm]
    return made


def by_shadows(traffic: Traffic) -> tuple[Headroom, Matrix]:
    paired = traffic.paired_matrix()
    assert paired is not None
    assert paired.contexts is not None
    groups = context_groups(paired.contexts)
    choice = cross_fit(
        paired,
        "ridge",
        traffic.costs,
        groups,
        training_rows=lambda held: traffic.impute([paired.prompt_ids[i] for i in held]),
    )
    return evaluate_choice(paired, choice, groups, {}, drawn=traffic.drawn_costs(20, 0)), paired


def by_answers(traffic: Traffic) -> tuple[Headroom, CrossFittedChoice]:
    data = traffic.matrix(traffic.single_answers())
    assert data.contexts is not None
    groups = context_groups(data.contexts)
    choice = cross_fit(
        data,
        "ridge",
        traffic.costs,
        groups,
        training_rows=lambda held: traffic.impute([data.prompt_ids[i] for i in held]),
    )
    return evaluate_logged(traffic, data, choice, groups, {}, worth=0.03, seed=0), choice


# --- with shadows ---


def test_requests_with_shadows_tell_what_all_arms_would_have_taken() -> None:
    data = drawn(600, 1, room=0.7)
    found, paired = by_shadows(Traffic.from_records(log(data, shadows=3)))
    assert len(paired) == 200
    rows = np.asarray([int(i.split("/")[0][1:]) for i in paired.prompt_ids])
    np.testing.assert_allclose(paired.select_arms(ARMS[1:]).time_s, data.time_s[rows, 1:], rtol=0.02)
    whole = gain_of(data).gain.routed
    assert found.verdict == "worth it"
    assert found.gain.routed.low <= whole.value <= found.gain.routed.high
    assert found.gain.oracle is not None


def test_shadows_that_ran_under_less_load_do_not_flatter_the_arms_that_were_not_chosen() -> None:
    data = drawn(600, 1, room=0.0, noise=0.05)
    found, paired = by_shadows(Traffic.from_records(log(data, shadows=3, load=5)))
    assert found.verdict == "not worth it"
    means = paired.select_arms(ARMS).time_s.mean(0)
    np.testing.assert_allclose(means / means[0], data.time_s.mean(0) / data.time_s.mean(0)[0], rtol=0.05)


def test_what_an_arm_did_before_it_changed_is_left_out() -> None:
    records = log(drawn(300, 0, room=0.5))
    traffic = Traffic.from_records(records, [Event(1150.5, "arm_changed", "slower", "math")])
    assert min(m.time for m in traffic.data.measurements if m.arm == "math") > 1150
    assert min(m.time for m in traffic.data.measurements if m.arm == "plain") < 1010


# --- without shadows ---


def test_single_answers_tell_the_gain_within_their_interval() -> None:
    covered, verdicts = 0, []
    for seed in range(5):
        data = drawn(900, seed, room=0.7)
        found, choice = by_answers(Traffic.from_records(log(data, seed=seed)))
        # The same choice, had every arm answered every request.
        whole = gain_of(data.select_arms(sorted(ARMS)), choice).gain.routed
        covered += found.gain.routed.low <= whole.value <= found.gain.routed.high
        verdicts.append(found.verdict)
        assert found.effective is not None
        assert found.effective > 200
        assert (found.supported, found.gain.oracle) == (1.0, None)
    assert covered >= 4
    assert verdicts.count("worth it") >= 4


def test_single_answers_find_no_gain_where_there_is_none() -> None:
    verdicts = [
        by_answers(Traffic.from_records(log(drawn(900, s, room=0.0, noise=0.1), seed=s)))[0].verdict for s in range(5)
    ]
    assert verdicts.count("worth it") == 0


def test_too_few_single_answers_are_refused() -> None:
    found, _ = by_answers(Traffic.from_records(log(drawn(300, 0, room=0.7))))
    assert is_rejected(found)
    assert found.verdict == "cannot tell"
    assert found.needs is not None
    assert 0 < found.needs < 2000
    assert "are needed: set router.explore" in reasons_against(Evidence(found, 0.03))[0]


def test_a_log_that_could_not_have_taken_the_other_arms_is_refused() -> None:
    data = drawn(900, 0, room=0.7)
    best = data.time_s.argmin(1)
    found, _ = by_answers(Traffic.from_records(log(data, lambda i: tuple(np.eye(4)[best[i]]))))
    assert is_rejected(found)
    assert (found.verdict, found.needs) == ("cannot tell", None)
    assert found.supported is not None
    assert found.supported < 0.9
    assert "the logging policy never takes the evaluated choice" in reasons_against(Evidence(found, 0.03))[0]


# --- what cannot be judged ---


def test_engines_with_few_answers_are_left_out_and_told_of() -> None:
    data = drawn(300, 0, room=0.5)
    seldom = Traffic.from_records(log(data, lambda i: (0.33, 0.33, 0.33, 0.01)))
    assert seldom.arms == ("ngram", "plain", "suffix")
    assert 0 < seldom.excluded["math"] < 40
    assert seldom.overhead_s == pytest.approx(0.002)
    with pytest.raises(DatasetError, match=r"fewer than two engines have 40 finished answers .*plain 100"):
        Traffic.from_records(log(data.select_rows(np.arange(100)), lambda i: (1.0, 0.0, 0.0, 0.0)))


def test_records_without_contexts_say_what_is_missing() -> None:
    bare = [replace(one, context=None) for one in log(drawn(60, 0, room=0.5))]
    with pytest.raises(DatasetError, match=r"no record has a context: set router\.featurizer"):
        Traffic.from_records(bare)
    with pytest.raises(DatasetError, match="no usable record"):
        Traffic.from_records([])


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    lines = b"".join(map(encode, log(drawn(200, 0, room=0.5))))
    (tmp_path / "records-1.jsonl").write_bytes(lines[:-20])
    assert len(Traffic.from_records(RecordStore(str(tmp_path)).records()).single_answers().measurements) == 199


def test_other_measurements_would_have_given_other_costs() -> None:
    traffic = Traffic.from_records(log(drawn(400, 0, room=0.5)))
    steps = np.stack([costs.step_s for costs in drawn_costs(traffic.data, traffic.arms, 30, 0)])
    assert steps.shape == (30, 4, 2)
    np.testing.assert_allclose(steps.mean(0), traffic.costs.step_s, rtol=0.05)
    assert drawn_costs(Dataset(traffic.data.measurements[:3]), traffic.arms, 5, 0) == []
    assert isinstance(
        by_shadows(Traffic.from_records(log(drawn(200, 0, room=0.5), shadows=2)))[0].gain.routed, Interval
    )
