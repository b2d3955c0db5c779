"""The matrix: what is left out is counted, and times compare the same number of tokens."""

import numpy as np
import pytest

from draftpick.policy_training.data.dataset import Contexts, Dataset, DatasetError, Measurement
from draftpick.policy_training.data.matrix import Matrix, matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.router.types import Outcome
from tests.policy_training.data.test_dataset import measured


def of(measurements: list[Measurement], labels: list[str], contexts: Contexts | None = None, **more: object) -> Matrix:
    return matrix(Dataset(tuple(measurements), contexts or {}), labels, **more)  # type: ignore[arg-type]


def test_requests_come_in_order_of_appearance_and_arms_in_order_of_the_labels() -> None:
    data = of([measured(i, arm) for i, arm in [("b", "x"), ("a", "y"), ("a", "x"), ("b", "y")]], ["y", "x"])
    assert len(data) == 2
    assert data.prompt_ids == ("b", "a")
    assert data.arms == ("y", "x")
    assert data.kinds == ("edit", "edit")
    assert data.temperatures.tolist() == [0.7, 0.7]
    assert data.output_tokens.tolist() == [10, 10]
    assert data.prompt_tokens.tolist() == [5, 5]
    assert data.dropped == {}
    assert data.contexts is None


def test_drops_are_counted_by_reason_and_arm() -> None:
    data = of(
        [
            *(measured("whole", arm) for arm in ("x", "y")),
            *(measured(i, "x") for i in ("missing-1", "missing-2")),
            *(measured("unknown", arm) for arm in ("x", "z")),
            *(measured("failed", arm, status=status) for arm, status in [("x", "engine_error"), ("y", "ok")]),
            *(measured("cut", arm, status=status) for arm, status in [("x", "ok"), ("y", "broken")]),
            *(measured("short", arm, tpot_s=tpot_s) for arm, tpot_s in [("x", 0.1), ("y", None)]),
            *(measured("empty", arm, ttft_s=None) for arm in ("x", "y")),
            *(measured("nan", arm, tpot_s=tpot_s) for arm, tpot_s in [("x", 0.1), ("y", np.nan)]),
        ],
        ["x", "y"],
    )
    assert data.prompt_ids == ("whole",)
    assert data.dropped == {
        **{"missing:y": 3, "engine_error:x": 1, "broken:y": 1, "too_short:y": 1, "too_short:x": 1},
        "not_finite:y": 1,
    }


def test_contexts_of_the_featurizer_are_there_or_their_lack_is_counted() -> None:
    contexts = {
        "a": {"f": np.zeros(2, np.float32)},
        "b": {"g": np.zeros(2, np.float32)},
        "c": {"f": np.asarray([np.nan, 0], np.float32)},
    }
    data = of([measured(i, arm) for i in "abc" for arm in ("x", "y")], ["x", "y"], contexts, featurizer="f")
    assert data.prompt_ids == ("a",)
    assert data.contexts is not None
    assert data.contexts.shape == (1, 2)
    assert data.dropped == {"no_context": 1, "context_not_finite": 1}


def test_a_label_that_nobody_asked_for_drops_nothing() -> None:
    data = of([measured("a", arm) for arm in ("x", "y", "policy")], ["x", "y"])
    assert data.arms == ("x", "y")
    assert data.dropped == {}


def test_no_usable_request_says_why() -> None:
    measurements = [measured("a", "x"), measured("b", "x"), measured("b", "y", status="timeout")]
    with pytest.raises(DatasetError, match=r"under all of \['x', 'y'\] .*'missing:y': 1.*'timeout:y': 1"):
        of(measurements, ["x", "y"])
    with pytest.raises(DatasetError, match="no request was measured"):
        of([], [])


def test_times_of_equal_lengths_are_the_measured_ones() -> None:
    data = of([measured("a", "x"), measured("a", "y", ttft_s=0.3, tpot_s=0.2)], ["x", "y"])
    np.testing.assert_allclose(data.time_s, [[0.5 + 0.1 * 9, 0.3 + 0.2 * 9]])


def test_times_are_those_of_the_median_length() -> None:
    lengths = {"x": 5, "y": 11, "z": 40}
    same = [measured("a", arm, output_tokens=n, e2e_s=0.5 + 0.1 * (n - 1)) for arm, n in lengths.items()]
    data = of(same, list(lengths))
    assert data.output_tokens.tolist() == [11]
    np.testing.assert_allclose(data.time_s, [[0.5 + 0.1 * 10] * 3])


def test_an_engine_that_reports_no_acceptance_has_length_one() -> None:
    data = of([measured("a", "x"), measured("a", "y", acceptance_length=None)], ["x", "y"])
    assert data.acceptance_length.tolist() == [[2.0, 1.0]]


def test_part_of_a_matrix_keeps_its_columns() -> None:
    data = of([measured(i, arm) for i in "abcd" for arm in ("x", "y")], ["x", "y"])
    part = data.select_rows(np.asarray([2, 0]))
    assert part.prompt_ids == ("c", "a")
    assert part.time_s.shape == (2, 2)
    assert data.select_rows(np.asarray([True, False, False, True])).prompt_ids == ("a", "d")


def test_of_several_measurements_the_means_count() -> None:
    taus, times = (1.0, 3.0), (0.03, 0.01)
    several = [measured("p", "x", acceptance_length=tau, tpot_s=t) for tau, t in zip(taus, times, strict=True)]
    failed = measured("p", "x", status="timeout")
    data = of([*several, failed, measured("p", "y")], ["x", "y"])
    assert len(data) == 1
    assert data.acceptance_length[0, 0] == pytest.approx(1.5)  # two tokens in 1 + 1/3 steps
    alone = of([measured("p", "x", tpot_s=0.02), measured("p", "y")], ["x", "y"])
    assert data.time_s[0, 0] == pytest.approx(alone.time_s[0, 0])


# --- costs ---


def timed(arm: str, tau: float, step_s: float, prompt_tokens: int, number: int, temperature: float) -> Measurement:
    made = measured(
        f"p{number}", arm, acceptance_length=tau, tpot_s=step_s / tau, ttft_s=0.1 + 0.001 * prompt_tokens,
        prompt_tokens=prompt_tokens,
    )  # fmt: skip
    return Measurement(made.prompt_id, made.task, arm, arm, temperature, 64, made.outcome)


def test_costs_are_steps_and_a_line_of_first_tokens() -> None:
    live = [
        timed(arm, tau, step * (1.2 if t else 1.0), 10 * n, n, t)
        for arm, step, tau in (("x", 0.03, 1.5), ("y", 0.04, 3.0))
        for n in range(6)
        for t in (0.0, 0.7)
    ]
    costs = Costs.fit(Dataset(tuple(live)), ["y", "x"])
    np.testing.assert_allclose(costs.step_s, [[0.04, 0.048], [0.03, 0.036]])
    np.testing.assert_allclose(costs.start_s, 0.1)
    np.testing.assert_allclose(costs.per_token_s, 0.001)
    seconds = costs.time_s(np.asarray([[3.0, 1.5]]), np.asarray([20.0]), np.asarray([31.0]), np.asarray([True]))
    np.testing.assert_allclose(seconds, [[0.12 + 30 * 0.016, 0.12 + 30 * 0.024]])
    again = Costs.from_json(costs.as_json())
    np.testing.assert_allclose(again.select(["x"]).step_s, [[0.03, 0.036]])


def test_a_prompt_is_never_read_before_it_comes() -> None:
    """Where the line through first tokens, 1 ms a token less 20, would begin below 0."""
    live = [
        measured(f"p{tokens}", "x", ttft_s=0.001 * tokens - 0.02, prompt_tokens=tokens, tpot_s=0.03)
        for tokens in (30, 40, 50, 60)
    ]
    costs = Costs.fit(Dataset(tuple(live)), ["x"])
    assert costs.start_s == pytest.approx([0.0])
    assert 0 < costs.per_token_s[0] < 0.001


def test_a_machine_that_is_slower_for_some_requests_favours_no_arm() -> None:
    slow = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    live = [timed(arm, 2.0, step * slow[n], 10, n, 0.0) for arm, step in (("x", 0.03), ("y", 0.04)) for n in range(9)]
    # x was measured once more, on a quick request.
    costs = Costs.fit(Dataset((*live, timed("x", 2.0, 0.03, 10, 10, 0.0))), ["x", "y"])
    assert costs.step_s[1, 0] / costs.step_s[0, 0] == pytest.approx(4 / 3)


def test_costs_say_what_they_lack() -> None:
    live = [timed("x", 2.0, 0.03, 10, n, 0.0) for n in range(6)]
    with pytest.raises(DatasetError, match="arm 'y' has 0 timed measurements: at least 4"):
        Costs.fit(Dataset(tuple(live)), ["x", "y"])
    greedy = Costs.fit(Dataset(tuple(live)), ["x"])
    np.testing.assert_allclose(greedy.step_s, [[0.03, 0.03]])
    with pytest.raises(DatasetError, match="no costs of z"):
        greedy.select(["z"])
    np.testing.assert_allclose(greedy.select(["pool/x", "x"]).step_s, [[0.03, 0.03]] * 2)
    with pytest.raises(DatasetError, match="invalid costs"):
        Costs.from_json({"arms": ["x"]})


def test_replayed_requests_get_their_times_from_the_costs() -> None:
    live = [timed(arm, 2.0, 0.03, 10, n, 0.0) for arm in ("x", "y") for n in range(6)]
    costs = Costs.fit(Dataset(tuple(live)), ["x", "y"])

    def outcome(tau: float) -> Outcome:
        return Outcome("ok", prompt_tokens=5, output_tokens=10, acceptance_length=tau)

    replayed = [
        Measurement("r", "edit", arm, arm, 0.0, 64, outcome(tau), source="replay")
        for arm, tau in (("x", 1.5), ("y", 3.0))
    ]
    data = of([*live, *replayed], ["x", "y"], costs=costs)
    assert len(data) == 7
    np.testing.assert_allclose(data.time_s[-1], costs.start_s + 5 * costs.per_token_s + 9 * 0.03 / np.asarray([1.5, 3]))
    with pytest.raises(DatasetError, match="'untimed:x': 1"):
        of(replayed, ["x", "y"])
