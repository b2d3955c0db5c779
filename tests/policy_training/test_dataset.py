"""Measurements: nothing is lost on disk, what is left out is counted, times compare the same number of tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_training.dataset import SCHEMA, DatasetError, Measurement, load, matrix, save
from policy_training.workloads import Prompt
from router.types import Outcome, Status

PROMPT = Prompt("edit-1", "edit", "Rewrite this secret.", 0.7, 64)
OK = Outcome("ok", 200, ttft_s=0.5, tpot_s=0.1, e2e_s=1.4, prompt_tokens=5, output_tokens=10, acceptance_length=2.0)

seconds = st.none() | st.floats(0, 1e6)
counts = st.none() | st.integers(0, 2**31)
outcomes = st.builds(
    Outcome, st.sampled_from(get_args(Status)), counts, seconds, seconds, seconds, counts, counts, seconds, seconds
)
measurements = st.builds(
    Measurement, st.text(), st.text(), st.text(), st.text(), st.floats(0, 2), st.integers(1, 2**31), outcomes
)


def measured(prompt_id: str, label: str, outcome: Outcome = OK, **changes: Any) -> Measurement:
    prompt = replace(PROMPT, id=prompt_id)
    return Measurement.of(prompt, label, label, replace(outcome, **changes))


@given(st.lists(measurements, max_size=4))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, written: list[Measurement]) -> None:
    path = tmp_path_factory.getbasetemp() / "runs" / "train.jsonl"
    save(path, written)
    assert load(path) == written


def test_one_line_a_measurement_with_its_schema_and_without_the_text(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    save(path, [measured("a", "plain"), measured("a", "ngram")])
    lines = path.read_bytes().splitlines()
    assert [orjson.loads(line)["schema"] for line in lines] == [SCHEMA, SCHEMA]
    assert b"secret" not in path.read_bytes()


def test_empty_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    save(path, [measured("a", "plain")])
    path.write_bytes(b"\n" + path.read_bytes() + b"  \n")
    assert load(path) == [measured("a", "plain")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "no measurement"),
        (b"\xff", "no measurement"),
        (b"[1]", "no measurement"),
        (b'"text"', "no measurement"),
        (b"{}", "no measurement: 'schema'"),
        (b'{"schema": 1}', "no measurement: 'outcome'"),
        (b'{"schema": 1, "outcome": {"status": "ok"}}', "missing .* 'prompt_id'"),
        (b'{"schema": 1, "outcome": {"status": "ok", "unknown": 1}}', "unexpected .* 'unknown'"),
        (b'{"schema": 1, "outcome": "ok"}', "no measurement"),
        (b'{"schema": 2}', "schema 2, this version reads 1"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "train.jsonl"
    save(path, [measured("a", "plain")])
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(DatasetError, match=rf"train\.jsonl:3: .*{problem}"):
        load(path)


@pytest.mark.parametrize("name", ["missing.jsonl", ""])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"cannot be read: (No such file|Is a directory)") as caught:
        load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_matrix_holds_prompts_in_order_of_appearance_and_arms_in_order_of_the_labels() -> None:
    data = matrix([measured(i, arm) for i, arm in [("b", "x"), ("a", "y"), ("a", "x"), ("b", "y")]], ["y", "x"])
    assert len(data) == 2
    assert data.prompt_ids == ("b", "a")
    assert data.arms == ("y", "x")
    assert data.kinds == ("edit", "edit")
    assert data.temperatures.tolist() == [0.7, 0.7]
    assert data.output_tokens.tolist() == [[10, 10], [10, 10]]
    assert data.dropped == {}
    assert data.contexts is None


def test_drops_are_counted_by_reason_and_arm() -> None:
    data = matrix(
        [
            *(measured("whole", arm) for arm in ("x", "y")),
            *(measured(i, "x") for i in ("missing-1", "missing-2")),
            *(measured("unknown", arm) for arm in ("x", "z")),
            *(measured("failed", arm, status=status) for arm, status in [("x", "engine_error"), ("y", "ok")]),
            *(measured("cut", arm, status=status) for arm, status in [("x", "ok"), ("y", "broken")]),
            *(measured("short", arm, tpot_s=tpot_s) for arm, tpot_s in [("x", 0.1), ("y", None)]),
            *(measured("empty", arm, ttft_s=None) for arm in ("x", "y")),
        ],
        ["x", "y"],
    )
    assert data.prompt_ids == ("whole",)
    assert data.dropped == {"missing:y": 3, "engine_error:x": 1, "broken:y": 1, "too_short:y": 1, "too_short:x": 1}


def test_a_label_that_nobody_asked_for_drops_nothing() -> None:
    data = matrix([measured("a", arm) for arm in ("x", "y", "policy")], ["x", "y"])
    assert data.arms == ("x", "y")
    assert data.dropped == {}


def test_no_usable_prompt_says_why() -> None:
    measurements = [measured("a", "x"), measured("b", "x"), measured("b", "y", status="timeout")]
    with pytest.raises(DatasetError, match=r"under all of \['x', 'y'\] .*'missing:y': 1.*'timeout:y': 1"):
        matrix(measurements, ["x", "y"])
    with pytest.raises(DatasetError, match="no prompt was measured"):
        matrix([], [])


def test_times_of_equal_lengths_are_the_measured_ones() -> None:
    data = matrix([measured("a", "x"), measured("a", "y", ttft_s=0.3, tpot_s=0.2)], ["x", "y"])
    np.testing.assert_allclose(data.time_s, [[0.5 + 0.1 * 9, 0.3 + 0.2 * 9]])


def test_times_are_those_of_the_median_length() -> None:
    lengths = {"x": 5, "y": 11, "z": 40}
    same = [measured("a", arm, output_tokens=n, e2e_s=0.5 + 0.1 * (n - 1)) for arm, n in lengths.items()]
    data = matrix(same, list(lengths))
    assert data.output_tokens.tolist() == [[5, 11, 40]]
    np.testing.assert_allclose(data.time_s, [[0.5 + 0.1 * 10] * 3])


def test_an_engine_that_reports_no_acceptance_has_length_one() -> None:
    data = matrix([measured("a", "x"), measured("a", "y", acceptance_length=None)], ["x", "y"])
    assert data.acceptance_length.tolist() == [[2.0, 1.0]]
