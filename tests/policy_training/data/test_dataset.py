"""Datasets: nothing is lost on disk, no text is kept, what cannot be read is named, interrupted runs go on."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.policy_training.data.data_card import card
from draftpick.policy_training.data.dataset import (
    SCHEMA_2_NAMES,
    Dataset,
    DatasetError,
    DatasetParts,
    Measurement,
    Source,
    load,
    save,
)
from draftpick.policy_training.workloads import Prompt
from draftpick.router.types import Outcome, Status
from tests.router.config.test_former_fields import upgrading

PROMPT = Prompt("edit-1", "edit", "Rewrite this secret.", 0.7, 64)
OK = Outcome("ok", 200, ttft_s=0.5, tpot_s=0.1, e2e_s=1.4, prompt_tokens=5, output_tokens=10, acceptance_length=2.0)

seconds = st.none() | st.floats(0, 1e6)
counts = st.none() | st.integers(0, 2**31 - 1)
outcomes = st.builds(
    Outcome, st.sampled_from(get_args(Status)), counts, seconds, seconds, seconds, counts, counts, seconds, seconds
)
measurements = st.builds(
    Measurement, st.just("p"), st.just("k"), st.text(), st.text(), st.just(0.5), st.just(7), outcomes,
    st.none() | st.booleans(), st.sampled_from(get_args(Source)), st.integers(1, 99), seconds,
    st.dictionaries(st.integers(1, 9), st.floats(1, 9, width=32)),
    st.dictionaries(st.text(), st.floats(0, 1, width=32)), st.floats(0, 1e10),
)  # fmt: skip


def measured(prompt_id: str, label: str, outcome: Outcome = OK, **changes: Any) -> Measurement:
    prompt = replace(PROMPT, id=prompt_id)
    return Measurement.from_prompt(prompt, label, label, replace(outcome, **changes))


@given(st.lists(measurements, max_size=4))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, written: list[Measurement]) -> None:
    path = tmp_path_factory.getbasetemp() / "runs" / "train.parquet"
    vector = np.asarray([0.5, -1.0], np.float32)
    save(path, written, {"p": {"features": vector}})
    found = load(path)
    assert list(found.measurements) == written
    assert not written or found.contexts["p"]["features"].tolist() == [0.5, -1.0]


def test_one_row_a_request_with_a_schema_and_without_the_text(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    save(path, [measured("a", "plain"), measured("b", "plain"), measured("a", "ngram")])
    table = pq.read_table(path)
    assert table["prompt_id"].to_pylist() == ["a", "b"]
    assert table.schema.metadata == {b"draftpick_schema": b"3"}
    assert b"secret" not in path.read_bytes()


def test_several_datasets_are_read_as_one(tmp_path: Path) -> None:
    save(tmp_path / "one" / "part-0.parquet", [measured("a", "plain")], {"a": {"x": np.zeros(2)}})
    save(tmp_path / "two.parquet", [measured("a", "ngram")], {"a": {"y": np.ones(1)}})
    found = load(tmp_path / "one", tmp_path / "two.parquet")
    assert [m.label for m in found.measurements] == ["plain", "ngram"]
    assert found.featurizers == ["x", "y"]
    assert found.arms == ["ngram", "plain"]


def test_a_dataset_keeps_the_sources_of_its_prompts_and_older_ones_have_none(tmp_path: Path) -> None:
    new, old = tmp_path / "new.parquet", tmp_path / "old.parquet"
    save(new, [Measurement.from_prompt(replace(PROMPT, source="org/set"), "plain", "plain", OK)])
    pq.write_table(pq.read_table(new).drop_columns("prompt_source"), old)
    assert [m.prompt_source for m in load(new, old).measurements] == ["org/set", ""]


def test_a_dataset_of_schema_2_is_read_in_the_names_of_today(tmp_path: Path) -> None:
    old = Path(__file__).parent / "dataset_schema2.parquet"  # written by a version of that schema
    data = load(old)
    replayed, logged = data.measurements
    outcome = Outcome("ok", 200, 0.5, 0.125, 1.5, 5, 9, 2.0, 0.5, 0.0009765625, 0.0625)
    assert replayed == Measurement(
        "edit-1", "edit", "suffix", "suffix", 0.0, 64, outcome, degenerate_repetition=True, source="replay",
        tau_by_length={4: 2.0, 8: 2.5}, alignment={"rouge": 0.5},
    )  # fmt: skip
    assert (logged.task, logged.slowdown, logged.in_flight, logged.propensity) == ("edit", 1.5, 3, 0.25)
    assert data.contexts["edit-1"]["features"].tolist() == [0.5, -1.0]
    save(tmp_path / "new.parquet", data.measurements, data.contexts)
    assert load(tmp_path / "new.parquet").measurements == data.measurements
    assert len(load(old, tmp_path / "new.parquet").measurements) == 4


def test_the_changelog_lists_every_name_that_changed() -> None:
    assert {f"  - `{old}` -> `{new}`" for old, new in SCHEMA_2_NAMES.items()} <= set(upgrading())


def other_schema(path: Path) -> None:
    pq.write_table(pa.table({"prompt_id": ["a"]}), path)


def no_columns(path: Path) -> None:
    pq.write_table(pa.table({"prompt_id": ["a"]}).replace_schema_metadata({"draftpick_schema": "3"}), path)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: None, "is not readable"),
        (lambda path: path.write_bytes(b"no parquet"), "is not a Parquet file"),
        (lambda path: path.write_bytes(b""), "is not a Parquet file"),
        (other_schema, "schema none, this version reads 3, and 2"),
        (no_columns, "missing columns: task, temperature"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, damage: Any, problem: str) -> None:
    damage(tmp_path / "d.parquet")
    with pytest.raises(DatasetError, match=problem) as caught:
        load(tmp_path / "d.parquet")
    assert str(tmp_path / "d.parquet") in str(caught.value)


def test_an_empty_folder_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="contains no Parquet file"):
        load(tmp_path)


def test_parts_grow_and_know_what_they_hold(tmp_path: Path) -> None:
    first = DatasetParts(tmp_path)
    assert first.done == set()
    first.add([measured("a", "plain")], {})
    first.add([measured("b", "plain")], {})
    again = DatasetParts(tmp_path)
    assert again.done == {"a", "b"}
    again.add([measured("c", "plain")], {})
    assert sorted(m.prompt_id for m in load(tmp_path).measurements) == ["a", "b", "c"]
    prompts = [replace(PROMPT, id=i) for i in "abcdef"]
    assert [[p.id for p in part] for part in again.pending(prompts, 2)] == [["c", "d"], ["e", "f"]]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    save(path, [measured("a", "plain")])
    with pytest.raises(pa.ArrowException):
        save(path, [measured("b", "plain", output_tokens="many")])
    assert [m.prompt_id for m in load(path).measurements] == ["a"]


def test_featurizers_are_those_that_contexts_are_of() -> None:
    some = (measured("a", "x"), measured("b", "x"))
    assert Dataset(some, {"a": {"f": np.zeros(1), "g": np.zeros(1)}, "b": {"f": np.zeros(1)}}).featurizers == ["f", "g"]
    assert Dataset(some).featurizers == []


def test_the_card_counts_by_arm_and_kind() -> None:
    some = (
        measured("a", "x"),
        measured("a", "y", status="timeout"),
        replace(measured("b", "x", acceptance_length=4.0), source="replay", temperature=0.0),
    )
    found = card(Dataset(some, dropped={"broken:x": 2}))
    assert (found["requests"], found["dropped"]) == (2, {"broken:x": 2})
    assert found["arms"]["x"] == {
        **{"live": 1, "replay": 1, "record": 0, "failed": 0, "greedy": 1, "sampled": 1},
        **{"mean_tau": 3.0, "mean_tokens": 10.0},
    }
    assert found["arms"]["y"]["failed"] == 1
    assert set(found["kinds"]) == {"edit"}
