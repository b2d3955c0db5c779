"""Policies on disk: whole or not at all, and every damage refused with what is wrong."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.errors import PolicyRejected
from draftpick.router.policies import artifact, read
from tests.router.config.test_former_fields import upgrading
from tests.router.policies.test_policies import ARMS, weights

MANIFEST: dict[str, Any] = {"kind": "mlp", "arms": list(ARMS), "featurizer": "lexical", "options": {}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    artifact.write(tmp_path / "policy", MANIFEST, weights())
    return tmp_path / "policy"


SCHEMA_1 = Path(__file__).parent / "schema_1"
"""A policy of the last release."""


def change_manifest(folder: Path, **changes: Any) -> None:
    """Replace fields of a manifest; None removes one."""
    path = folder / artifact.MANIFEST
    manifest = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in manifest.items() if value is not None}))


def change_arrays(folder: Path, data: bytes) -> None:
    """Replace the arrays, and make the manifest describe them."""
    (folder / artifact.ARRAYS).write_bytes(data)
    change_manifest(folder, arrays_sha256=hashlib.sha256(data).hexdigest())


def refusal(folder: Path) -> str:
    with pytest.raises(PolicyRejected) as caught:
        read(folder)
    return str(caught.value)


def test_manifest_and_arrays_come_back(folder: Path) -> None:
    manifest, arrays = artifact.read(folder)
    assert MANIFEST.items() <= manifest.items()
    assert manifest["schema"] == artifact.SCHEMA
    assert {name: array.tolist() for name, array in arrays.items()} == {k: v.tolist() for k, v in weights().items()}


def test_an_artefact_of_schema_1_is_read_in_the_names_of_today() -> None:
    on_disk = json.loads((SCHEMA_1 / artifact.MANIFEST).read_text())
    manifest, arrays = artifact.read(SCHEMA_1)
    assert (on_disk["schema"], manifest["schema"]) == (1, 2)
    assert (on_disk["options"]["regressor"], manifest["options"]["regressor"]) == ("home_kernel", "domain_kernel")
    assert manifest["provenance"]["tasks"] == on_disk["provenance"]["kinds"]
    assert manifest["provenance"]["training_domains"] == on_disk["provenance"]["homes"]
    assert not set(artifact.SCHEMA_1_ARRAYS) & set(arrays)
    assert {"domain_centres", "domain_arms", "margin_weights"} <= set(arrays)
    assert read(SCHEMA_1).id == f"tau_cost:{on_disk['arrays_sha256'][:8]}"


def test_the_changelog_lists_every_name_that_changed() -> None:
    lines = set(upgrading())
    tables = {
        "arrays.": artifact.SCHEMA_1_ARRAYS,
        "options.regressor: ": artifact.SCHEMA_1_REGRESSORS,
        "provenance.": artifact.SCHEMA_1_PROVENANCE,
    }
    for prefix, names in tables.items():
        assert {f"  - `{prefix}{old}` -> `{prefix}{new}`" for old, new in names.items()} <= lines


def test_an_artefact_of_schema_1_decides_alike_as_schema_2(tmp_path: Path) -> None:
    manifest, arrays = artifact.read(SCHEMA_1)
    artifact.write(tmp_path / "again", manifest, arrays)
    old, new = read(SCHEMA_1), read(tmp_path / "again")
    vectors = np.random.default_rng(0).normal(0, 0.3, (8, len(arrays["mean"]))).astype(np.float32)
    taus = old.acceptance_lengths(vectors)
    assert taus is not None
    assert taus.tolist() == new.acceptance_lengths(vectors).tolist()  # type: ignore[union-attr]


@given(st.dictionaries(st.text("abc", min_size=1), st.lists(st.floats(width=32), max_size=5), max_size=4))
def test_any_arrays_come_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, list[float]]) -> None:
    arrays = {name: np.array(one, np.float32) for name, one in values.items()}
    path = tmp_path_factory.mktemp("any") / "policy"
    artifact.write(path, MANIFEST, arrays)
    found = artifact.read(path)[1]
    assert {name: array.tobytes() for name, array in found.items()} == {k: v.tobytes() for k, v in arrays.items()}


def test_the_same_policy_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    artifact.write(tmp_path / "again", MANIFEST, dict(reversed(weights().items())))
    for name in (artifact.MANIFEST, artifact.ARRAYS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_writing_again_replaces_and_leaves_nothing_behind(folder: Path) -> None:
    artifact.write(folder, MANIFEST, weights(seed=1))
    assert artifact.read(folder)[1]["w1"].tolist() == weights(seed=1)["w1"].tolist()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_identity_of_a_policy_follows_its_arrays(folder: Path) -> None:
    before = read(folder).id
    artifact.write(folder, MANIFEST, weights(seed=1))
    assert read(folder).id != before


def test_options_reach_the_policy(tmp_path: Path) -> None:
    artifact.write(tmp_path / "p", {**MANIFEST, "options": {"greedy": True, "floor": 0.1, "other": 1}}, weights())
    assert read(tmp_path / "p").arms == ARMS


# --- refusals ---


@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.ARRAYS])
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert "is not a readable policy" in refusal(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "is not a readable policy" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b""])
def test_a_manifest_that_is_no_json_is_refused(folder: Path, data: bytes) -> None:
    (folder / artifact.MANIFEST).write_bytes(data)
    assert "is not a readable policy" in refusal(folder)


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_a_manifest_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / artifact.MANIFEST).write_text(text)
    assert "has schema" in refusal(folder)


@pytest.mark.parametrize("schema", [0, 3, "1", None])
def test_another_schema_is_refused(folder: Path, schema: Any) -> None:
    change_manifest(folder, schema=schema)
    assert f"has schema {schema!r}, this version reads 2 and 1" in refusal(folder)


@pytest.mark.parametrize("field", ["kind", "arms", "featurizer", "arrays_sha256"])
@pytest.mark.parametrize("value", [None, 3])
def test_a_missing_or_wrong_field_is_refused(folder: Path, field: str, value: Any) -> None:
    change_manifest(folder, **{field: value})
    assert f"field {field!r} is missing or not a" in refusal(folder)


def test_an_unknown_kind_is_refused_with_the_nearest(folder: Path) -> None:
    change_manifest(folder, kind="mpl")
    assert "unknown kind of policy 'mpl' (did you mean 'mlp'? known: calibrated, fixed, mlp" in refusal(folder)


def test_arrays_that_the_manifest_does_not_describe_are_refused(folder: Path) -> None:
    path = folder / artifact.ARRAYS
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert "its sha256 differs" in refusal(folder)


@pytest.mark.parametrize("size", [0, 4, 100])
def test_arrays_that_are_cut_off_are_refused(folder: Path, size: int) -> None:
    change_arrays(folder, (folder / artifact.ARRAYS).read_bytes()[:size])
    assert "is damaged" in refusal(folder)


def test_a_missing_array_is_refused(tmp_path: Path) -> None:
    arrays = {name: array for name, array in weights().items() if name not in ("w2", "scale")}
    artifact.write(tmp_path / "p", MANIFEST, arrays)
    assert refusal(tmp_path / "p") == "arrays are missing: scale, w2"


@pytest.mark.parametrize(
    ("name", "shape"),
    [("scale", (2,)), ("w1", (3, 4)), ("w2", (5, 4)), ("w3", (5, 3)), ("b3", (3,)), ("b2", (4,)), ("w1", (15,))],
)
def test_a_wrong_shape_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    artifact.write(tmp_path / "p", MANIFEST, {**weights(), name: np.zeros(shape, np.float32)})
    assert "has shape" in refusal(tmp_path / "p")


def test_other_numbers_of_arms_in_manifest_and_arrays_are_refused(tmp_path: Path) -> None:
    artifact.write(tmp_path / "p", {**MANIFEST, "arms": ["a", "b"]}, weights())
    assert "array w3 has shape (5, 4), expected (5, 2) (h2, arms)" in refusal(tmp_path / "p")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["mean", "scale", "w2", "b3"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    arrays = weights()
    arrays[name].flat[0] = value
    artifact.write(tmp_path / "p", MANIFEST, arrays)
    assert "not finite" in refusal(tmp_path / "p")


class Planted:
    """What a pickle could do when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def test_a_pickle_is_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    change_arrays(folder, pickle.dumps(Planted(tmp_path / "planted")))
    assert "is damaged" in refusal(folder)
    assert not (tmp_path / "planted").exists()
