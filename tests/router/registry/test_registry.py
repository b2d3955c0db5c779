"""The registry of policies: what may follow what, two writers, kills and damage."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftpick.router.errors import PolicyRejected
from draftpick.router.policies import artifact, read
from draftpick.router.registry.registry import (
    POLICIES,
    REPORT,
    STATE,
    Candidate,
    Registry,
    RegistryState,
    is_registry,
)
from tests.deploy.artefact import write_policy

ROOT = Path(__file__).parents[3]
REPORT_OF_A_RUN = {"reason": "5,000 new requests", "gates": {"held_out": True, "gain": 0.04}}


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "artefact")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry for `three` to copy."""
    folder = tmp_path_factory.mktemp("three")
    registry = Registry(folder / "registry")
    for number in (1, 2, 3):
        id = registry.add(write_policy(folder / f"a{number}", dimension=number), {}, "job")
        if number < 3:
            registry.promote(id, "job")
    return registry.path


@pytest.fixture
def three(made: Path, tmp_path: Path) -> Registry:
    """p0001 was active, p0002 is, p0003 was added."""
    return Registry(shutil.copytree(made, tmp_path / "registry", dirs_exist_ok=True))


def stages(registry: Registry) -> dict[str, str]:
    return {id: entry.stage for id, entry in registry.state().policies.items()}


def candidate_of(registry: Registry) -> Candidate:
    candidate = registry.state().candidate
    assert candidate is not None
    return candidate


def refusal(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(PolicyRejected) as caught:
        call(*arguments, **options)
    return str(caught.value)


@contextmanager
def unchanged(registry: Registry) -> Iterator[None]:
    before = (registry.path / STATE).read_bytes()
    yield
    assert (registry.path / STATE).read_bytes() == before


def damage(registry: Registry, id: str) -> None:
    """One byte of the arrays is another; whoever is not root has to make the file writable first."""
    path = registry.folder(id) / artifact.ARRAYS
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


# --- the way of a policy ---


def test_nothing_is_an_empty_registry(registry: Registry) -> None:
    state = registry.state()
    assert (state.revision, state.active, state.candidate, state.policies) == (0, None, None, {})
    assert not is_registry(registry.path)
    assert not registry.path.exists()


def test_a_policy_is_added(registry: Registry, artefact: Path) -> None:
    id = registry.add(artefact, REPORT_OF_A_RUN, "job")
    state = registry.state()
    assert id == "p0001"
    assert is_registry(registry.path)
    assert (state.active, state.candidate, state.revision) == (None, None, 1)
    assert (state.policies[id].stage, state.policies[id].policy) == ("shadow", read(artefact).id)
    assert registry.report(id) == REPORT_OF_A_RUN
    for name in (artifact.MANIFEST, artifact.ARRAYS):
        assert (registry.folder(id) / name).read_bytes() == (artefact / name).read_bytes()


def test_from_shadow_to_active(three: Registry) -> None:
    before = time.time()
    three.start_shadow("p0003", "job")
    candidate = candidate_of(three)
    assert (candidate.id, candidate.stage, candidate.share) == ("p0003", "shadow", 0)
    three.set_canary_share("p0003", 0.1, "guard", "no worse")
    candidate = candidate_of(three)
    assert (candidate.id, candidate.stage, candidate.share) == ("p0003", "canary", 0.1)
    assert stages(three)["p0003"] == "canary"
    assert before <= candidate.since <= time.time()
    three.promote("p0003", "guard", "held at 100 %")
    state = three.state()
    assert (state.active, state.previous, state.candidate) == ("p0003", "p0002", None)
    assert stages(three) == {"p0001": "retired", "p0002": "retired", "p0003": "active"}
    assert three.active_folder() == three.folder("p0003")


def test_the_policy_before_keeps_a_share_for_a_while(three: Registry) -> None:
    three.set_canary_share("p0003", 0.5, "guard", start=True)
    revision = three.state().revision
    three.promote("p0003", "guard", "proven", holdout=0.1)
    state, held = three.state(), candidate_of(three)
    assert (state.active, state.previous, state.revision) == ("p0003", "p0002", revision + 1)
    assert (held.id, held.stage, held.share) == ("p0002", "holdout", 0.1)
    assert stages(three) == {"p0001": "retired", "p0002": "holdout", "p0003": "active"}
    three.end_holdout("guard", "no harm")
    assert (three.state().previous, three.state().candidate, stages(three)["p0002"]) == ("p0002", None, "retired")
    with unchanged(three):
        assert refusal(three.end_holdout, "guard") == "there is no holdout (draftpick policies list)"
        assert "in [0, 1), not 1" in refusal(three.promote, "p0002", "guard", holdout=1.0)


def test_a_holdout_ends_when_its_policy_serves_again_or_another_does(three: Registry) -> None:
    three.promote("p0003", "guard", holdout=0.1)
    three.rollback("guard", "errors")
    assert stages(three) == {"p0001": "retired", "p0002": "active", "p0003": "refused"}
    assert three.state().candidate is None
    three.promote("p0001", "guard", holdout=0.1)
    assert candidate_of(three).id == "p0002"
    three.pin("p0003", "person")
    assert (three.state().candidate, stages(three)["p0002"]) == (None, "retired")


def test_a_candidate_keeps_when_it_began_through_its_stages(three: Registry) -> None:
    three.set_canary_share("p0003", 0.1, "guard", start=True)
    first = candidate_of(three)
    three.set_canary_share("p0003", 0.5, "guard")
    assert candidate_of(three).began == first.began == first.since < candidate_of(three).since
    three.start_shadow("p0003", "job")
    three.set_canary_share("p0003", 0.1, "guard")
    assert candidate_of(three).began == candidate_of(three).since


def test_another_candidate_retires_the_first(three: Registry, artefact: Path) -> None:
    three.start_shadow("p0003", "job")
    other = three.add(artefact, {}, "job")
    three.start_shadow(other, "job")
    assert stages(three)["p0003"] == "retired"
    assert candidate_of(three).id == other


def test_a_candidate_that_begins_again_is_in_shadow(three: Registry) -> None:
    three.start_shadow("p0003", "job")
    three.set_canary_share("p0003", 0.5, "job", "")
    three.start_shadow("p0003", "job")
    assert (candidate_of(three).stage, candidate_of(three).share) == ("shadow", 0)


def test_a_canary_at_once(three: Registry, artefact: Path) -> None:
    three.start_shadow("p0003", "job")
    other = three.add(artefact, {}, "job")
    revision = three.state().revision
    three.set_canary_share(other, 0.25, "person", start=True)
    assert stages(three)["p0003"] == "retired"
    assert stages(three)[other] == "canary"
    assert three.state().revision == revision + 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_policy_is_refused(three: Registry, begun: bool) -> None:
    if begun:
        three.start_shadow("p0003", "job")
        three.set_canary_share("p0003", 0.1, "job", "")
    three.reject("p0003", "guard", "slower by 8 %")
    assert three.state().candidate is None
    assert stages(three)["p0003"] == "refused"
    assert three.state().active == "p0002"


def test_a_refused_policy_comes_back_by_pin_alone(three: Registry) -> None:
    three.reject("p0003", "guard", "slower")
    for call in (three.start_shadow, three.promote):
        assert refusal(call, "p0003", "job") == ("p0003 was rejected (to use it anyway: draftpick policies pin p0003)")
    three.pin("p0003", "person")
    assert three.state().active == "p0003"


def test_rollback_goes_back_once(three: Registry) -> None:
    three.start_shadow("p0003", "job")
    three.rollback("guard", "errors")
    state = three.state()
    assert (state.active, state.previous, state.candidate) == ("p0001", None, None)
    assert stages(three) == {"p0001": "active", "p0002": "refused", "p0003": "refused"}
    with unchanged(three):
        assert "no previous policy to go back to (draftpick policies promote ID)" in refusal(three.rollback, "guard")


def test_rollback_to_what_is_the_candidate(three: Registry) -> None:
    three.start_shadow("p0001", "job")
    three.rollback("guard", "errors")
    assert (three.state().active, three.state().candidate) == ("p0001", None)


def test_nothing_goes_back_to_a_refused_policy(three: Registry) -> None:
    three.start_shadow("p0001", "job")
    three.reject("p0001", "guard", "slower")
    assert three.state().previous is None


def test_a_pinned_policy_stays(three: Registry) -> None:
    three.pin("p0001", "person")
    assert (three.state().active, three.state().pinned, three.state().previous) == ("p0001", True, "p0002")
    three.start_shadow("p0003", "job")
    told = "p0001 is pinned (draftpick policies unpin)"
    with unchanged(three):
        assert refusal(three.set_canary_share, "p0003", 0.1, "job", "") == told
        assert refusal(three.promote, "p0003", "job") == told
        assert refusal(three.rollback, "guard") == told
    three.reject("p0003", "guard", "slower")
    three.pin("p0002", "person")
    assert (three.state().active, three.state().pinned) == ("p0002", True)
    three.unpin("person")
    three.promote("p0001", "job")
    assert (three.state().active, three.state().pinned) == ("p0001", False)


def test_a_pinned_policy_does_not_hinder_adding(three: Registry, artefact: Path) -> None:
    three.pin("p0001", "person")
    three.start_shadow(three.add(artefact, {}, "job"), "job")
    assert stages(three)["p0004"] == "shadow"


def test_a_change_that_changes_nothing_is_none(three: Registry) -> None:
    three.pin("p0002", "person")
    with unchanged(three):
        three.pin("p0002", "person")
        assert three.prune(5) == []


def test_every_change_is_told(three: Registry) -> None:
    three.start_shadow("p0003", "job")
    three.set_canary_share("p0003", 0.1, "guard", "no worse")
    three.reject("p0003", "guard", "slower")
    three.rollback("guard", "errors")
    state = three.state()
    assert [(one.action, one.policy, one.by, one.reason) for one in state.history[-4:]] == [
        ("begin", "p0003", "job", ""),
        ("advance", "p0003", "guard", "share 0.1: no worse"),
        ("refuse", "p0003", "guard", "slower"),
        ("rollback", "p0001", "guard", "errors"),
    ]
    assert state.revision == len(state.history) == 9


def test_the_history_is_bounded(registry: Registry, artefact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftpick.router.registry.registry.HISTORY", 20)
    registry.add(artefact, {}, "job")
    for _ in range(20):
        registry.start_shadow("p0001", "job")
    state = registry.state()
    assert (len(state.history), state.revision) == (20, 21)
    assert {one.action for one in state.history} == {"begin"}


# --- what is refused ---


def test_what_is_not_there(three: Registry) -> None:
    told = "unknown policy 'p003' (did you mean 'p0003'? see: draftpick policies list)"
    calls = (three.start_shadow, three.promote, three.pin, three.reject)
    with unchanged(three):
        assert {refusal(call, "p003", "job") for call in calls} == {told}
        assert refusal(three.set_canary_share, "p003", 0.1, "job", "") == told
        assert refusal(three.state().entry, "p003") == told


@pytest.mark.parametrize("id", ["", "..", "p0001/../..", "/etc", "p1", "p0001\n"])
def test_what_is_no_id_leads_to_no_folder(three: Registry, id: str) -> None:
    assert "is not a policy id (ids are like p0001" in refusal(three.folder, id)


def test_what_is_active_neither_rises_nor_is_refused(three: Registry) -> None:
    assert {refusal(call, "p0002", "job") for call in (three.start_shadow, three.promote)} == {
        "p0002 is already active"
    }
    assert refusal(three.reject, "p0002", "job") == (
        "p0002 is active, only a candidate or an added policy can be rejected (draftpick policies rollback)"
    )
    assert "p0001 is retired, only" in refusal(three.reject, "p0001", "job")


def test_only_the_candidate_advances(three: Registry) -> None:
    assert refusal(three.set_canary_share, "p0003", 0.1, "job", "") == (
        "p0003 is not the candidate, which is None (make p0003 the candidate first)"
    )
    three.start_shadow("p0003", "job")
    assert "p0001 is not the candidate, which is p0003" in refusal(three.set_canary_share, "p0001", 0.1, "job", "")


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_a_canary_has_a_share(three: Registry, share: float) -> None:
    three.start_shadow("p0003", "job")
    assert "must be in (0, 1]" in refusal(three.set_canary_share, "p0003", share, "job", "")


def test_there_is_nothing_to_serve_or_unpin(registry: Registry, artefact: Path) -> None:
    registry.add(artefact, {}, "job")
    assert "has no active policy (draftpick policies promote ID)" in refusal(registry.active_folder)
    assert "no policy is pinned" in refusal(registry.unpin, "person")
    assert "no previous policy" in refusal(registry.rollback, "person")


def test_what_is_no_policy_is_not_added(registry: Registry, artefact: Path) -> None:
    (artefact / artifact.ARRAYS).write_bytes(b"")
    assert str(artefact) in refusal(registry.add, artefact, {}, "job")
    assert not registry.path.exists()


@pytest.mark.parametrize("report", [{"gain": float("nan")}, {"gain": np.float32(1)}, {"when": Path()}])
def test_what_is_no_json_is_no_report(registry: Registry, artefact: Path, report: dict[str, Any]) -> None:
    assert f"the report on {artefact} is not JSON" in refusal(registry.add, artefact, report, "job")
    assert list((registry.path / POLICIES).iterdir()) == []
    assert registry.state().revision == 0


# --- what was added stays as it is ---


def test_an_artefact_is_a_copy_that_cannot_be_written(registry: Registry, artefact: Path) -> None:
    id = registry.add(artefact, REPORT_OF_A_RUN, "job")
    before = read(registry.folder(id)).id
    write_policy(artefact, dimension=7)
    assert read(registry.folder(id)).id == before
    assert sorted(path.name for path in registry.folder(id).iterdir()) == sorted(
        (artifact.MANIFEST, artifact.ARRAYS, REPORT)
    )
    assert stat.S_IMODE(registry.folder(id).stat().st_mode) == 0o555
    assert {stat.S_IMODE(path.stat().st_mode) for path in registry.folder(id).iterdir()} == {0o444}


def test_a_linked_artefact_is_copied_whole(registry: Registry, artefact: Path) -> None:
    moved = artefact.with_name("elsewhere")
    artefact.rename(moved)
    artefact.mkdir()
    for path in moved.iterdir():
        (artefact / path.name).symlink_to(path)
    id = registry.add(artefact, {}, "job")
    assert not any(path.is_symlink() for path in registry.folder(id).iterdir())


def test_a_damaged_artefact_does_not_rise(three: Registry) -> None:
    damage(three, "p0003")
    with unchanged(three):
        for call in (three.start_shadow, three.promote, three.pin):
            told = refusal(call, "p0003", "job")
            assert told.startswith("p0003 is damaged: ")
            assert "its sha256 differs" in told
            assert told.endswith("(add it again)")


def test_a_candidate_that_was_damaged_since_gets_no_larger_share(three: Registry) -> None:
    three.start_shadow("p0003", "job")
    damage(three, "p0003")
    with unchanged(three):
        assert "p0003 is damaged" in refusal(three.set_canary_share, "p0003", 0.5, "job", "")


def test_a_damaged_previous_policy_is_not_gone_back_to(three: Registry) -> None:
    damage(three, "p0001")
    with unchanged(three):
        assert "p0001 is damaged" in refusal(three.rollback, "guard")


def test_another_policy_in_the_folder_does_not_rise(three: Registry) -> None:
    folder = three.folder("p0003")
    folder.chmod(0o755)
    for name in (artifact.MANIFEST, artifact.ARRAYS):
        (folder / name).unlink()
        (folder / name).write_bytes((three.folder("p0001") / name).read_bytes())
    one, three_ = three.state().policies["p0001"].policy, three.state().policies["p0003"].policy
    assert f"its folder contains {one}, not {three_}" in refusal(three.promote, "p0003", "job")


def test_a_report_that_is_gone(three: Registry) -> None:
    three.folder("p0003").chmod(0o755)
    (three.folder("p0003") / REPORT).unlink()
    assert "the report of p0003 is not readable" in refusal(three.report, "p0003")


# --- what is old ---


def test_old_policies_are_removed(registry: Registry, tmp_path: Path) -> None:
    for number in range(1, 8):
        registry.add(write_policy(tmp_path / "a", dimension=number), {}, "job")
    registry.promote("p0003", "job")
    registry.promote("p0004", "job")
    for id in ("p0001", "p0002", "p0005", "p0006"):
        registry.reject(id, "guard")
    assert registry.prune(2) == ["p0001", "p0002"]
    assert list(stages(registry)) == ["p0003", "p0004", "p0005", "p0006", "p0007"]
    assert sorted(path.name for path in (registry.path / POLICIES).iterdir()) == list(stages(registry))
    assert registry.state().history[-1].reason == "p0001, p0002"
    registry.rollback("guard")
    assert registry.add(tmp_path / "a", {}, "job") == "p0008"


def test_the_candidate_and_the_previous_policy_are_never_old(three: Registry, artefact: Path) -> None:
    three.reject("p0003", "guard")
    four = three.add(artefact, {}, "job")
    three.start_shadow("p0001", "job")
    three.reject(four, "guard")
    assert three.prune(1) == ["p0003"]
    assert set(stages(three)) == {"p0001", "p0002", four}


def test_one_old_policy_stays_so_that_no_id_is_given_twice(three: Registry) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1"):
        three.prune(0)


def test_what_a_crash_left_is_cleared(three: Registry, artefact: Path) -> None:
    policies = three.path / POLICIES
    (old := policies / ".add-old").mkdir()
    (new := policies / ".add-new").mkdir()
    (policies / "p0004").mkdir()
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    assert three.add(artefact, {}, "job") == "p0005"
    assert (old.exists(), new.exists()) == (False, True)
    three.prune(1)
    assert not (policies / "p0004").exists()
    assert (policies / "p0001").exists()


# --- the file ---


def damaged(three: Registry, change: Any) -> str:
    path = three.path / STATE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    told = refusal(three.state)
    assert told.startswith(f"{path}: field ")
    assert told.endswith("(fix it, or restore a backup of the file)")
    with unchanged(three):
        assert refusal(three.start_shadow, "p0003", "job") == told
    return told


@pytest.mark.parametrize("name", ["schema", "revision", "active", "previous", "pinned", "candidate", "policies"])
def test_a_missing_field_is_named(three: Registry, name: str) -> None:
    assert f"field '{name}': Field required" in damaged(three, lambda content: content.pop(name))


CANARY = {"id": "p0003", "stage": "canary", "share": 0.1, "since": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "field 'schema': Input should be 1"),
        ({"schema": "1"}, "field 'schema'"),
        ({"revision": "3"}, "field 'revision': Input should be a valid integer"),
        ({"revision": -1}, "field 'revision'"),
        ({"pinned": 1}, "field 'pinned': Input should be a valid boolean"),
        ({"surplus": 1}, "field 'surplus': Extra inputs"),
        ({"active": "../p0001"}, "field 'active': String should match"),
        ({"active": "p0009"}, "field 'active' names p0009, which is not in `policies`"),
        ({"active": "p0001"}, "field 'active' is p0001, but the stage of ['p0002'] is active"),
        ({"active": None}, "field 'active' is None"),
        ({"previous": "p0009"}, "field 'previous' names p0009"),
        ({"candidate": {**CANARY, "id": "p0009"}}, "field 'candidate' names p0009"),
        ({"candidate": CANARY}, "field 'candidate.stage' differs from 'policies.p0003.stage'"),
        ({"candidate": {**CANARY, "share": 1.5}}, "field 'candidate.share': Input should be less than or equal to 1"),
        ({"candidate": {**CANARY, "share": float("nan")}}, "field 'candidate.share'"),
        ({"candidate": {**CANARY, "since": float("inf")}}, "field 'candidate.since'"),
        ({"candidate": {"id": "p0003"}}, "field 'candidate.stage': Field required"),
        ({"policies": {"p1": {}}}, "field 'policies.p1."),
        ({"history": [{"time": "yesterday"}]}, "field 'history.0.time'"),
        ({"history": None}, "field 'history'"),
    ],
)
def test_a_wrong_field_is_named(three: Registry, changes: dict[str, Any], message: str) -> None:
    assert message in damaged(three, lambda content: content.update(changes))


def test_what_is_pinned_is_active(registry: Registry, artefact: Path) -> None:
    registry.add(artefact, {}, "job")
    assert "field 'pinned' is true" in damaged(registry, lambda content: content.update(pinned=True))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_what_is_no_state_is_refused(three: Registry, data: bytes) -> None:
    (three.path / STATE).write_bytes(data)
    assert str(three.path / STATE) in refusal(three.state)
    with unchanged(three):
        assert "(fix it, or restore a backup of the file)" in refusal(three.promote, "p0003", "job")


def test_a_state_that_cannot_be_read(three: Registry) -> None:
    (three.path / STATE).unlink()
    (three.path / STATE).mkdir()
    assert "is not readable" in refusal(three.state)
    assert "is not readable" in refusal(Registry(three.folder("p0001") / artifact.MANIFEST).state)


def test_the_file_is_for_people_and_comes_back(three: Registry) -> None:
    three.start_shadow("p0003", "job")
    text = (three.path / STATE).read_text()
    assert list(json.loads(text)) == [
        *("schema", "revision", "active", "previous", "pinned", "candidate", "policies", "history")
    ]
    assert text.startswith('{\n  "schema": 1,\n  "revision": 6,\n  "active": "p0002",')
    assert RegistryState.model_validate_json(text, strict=True) == three.state()
    assert sorted(path.name for path in three.path.iterdir()) == [".lock", POLICIES, STATE]


# --- crashes ---


def whole(registry: Registry) -> RegistryState:
    """The state, all of whose policies are complete artefacts."""
    state = registry.state()
    for id, entry in state.policies.items():
        assert read(registry.folder(id)).id == entry.policy
    if state.active is not None:
        assert read(registry.active_folder()).id == state.policies[state.active].policy
    return state


@pytest.mark.parametrize("step", range(1, 8))
def test_a_disk_that_fails_at_any_step_leaves_the_old_or_the_new(
    three: Registry, artefact: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    before, calls, really = three.state(), iter(range(1, 100)), os.fsync

    def sync(handle: int) -> None:
        if next(calls) == step:
            raise OSError(28, "No space left on device")
        really(handle)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match="No space left"):
        three.add(artefact, {}, "job")
    monkeypatch.undo()
    state = whole(three)
    assert state == before or state.revision == before.revision + 1
    assert not list((three.path / POLICIES).glob(".add-*"))
    three.promote(three.add(artefact, {}, "job"), "job")
    whole(three)


def busy(path: Path, artefact: Path) -> None:
    """Change a registry in all ways, until killed."""
    registry = Registry(path)
    while True:
        id = registry.add(artefact, {}, "job")
        registry.start_shadow(id, "job")
        registry.set_canary_share(id, 0.5, "job", "")
        registry.promote(id, "job")
        if registry.state().revision % 3 == 0:
            with suppress(PolicyRejected):
                registry.rollback("guard")
        registry.prune(3)


NURSERY = """if True:
    import os, sys
    from pathlib import Path
    from tests.router.registry.test_registry import busy
    for _ in sys.stdin:
        if not (child := os.fork()):
            try:
                busy(Path(sys.argv[1]), Path(sys.argv[2]))
            finally:
                os._exit(1)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def start(code: str, *arguments: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def tell(process: "subprocess.Popen[str]") -> str:
    """Say `go`; the next line of the answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return process.stdout.readline()


def test_a_writer_killed_at_any_moment_leaves_a_whole_registry(registry: Registry, artefact: Path) -> None:
    rng, revisions = random.Random(7), [0]
    registry.promote(registry.add(artefact, {}, "test"), "test")
    with start(NURSERY, registry.path, artefact) as nursery:
        for number in range(10):
            child, before = int(tell(nursery)), registry.state().revision
            time.sleep(rng.uniform(0.005, 0.08))
            while number == 0 and registry.state().revision == before:  # one writer at least has begun to write
                time.sleep(0.01)
            os.kill(child, signal.SIGKILL)
            assert nursery.stdout is not None
            assert int(nursery.stdout.readline()) == -signal.SIGKILL
            revisions.append(whole(registry).revision)
            assert registry.state().active is not None
            id = registry.add(artefact, {}, "test")
            registry.promote(id, "test")
            assert registry.state().active == id
            assert whole(registry).revision == revisions[-1] + 2
        nursery.communicate()
    assert revisions == sorted(set(revisions))
    assert revisions[-1] > 2 * 10  # those of the killed writers are among them
    registry.prune(1)
    assert {path.name for path in (registry.path / POLICIES).glob("p*")} == set(stages(registry))


WRITER = """if True:
    import sys
    import time
    from pathlib import Path
    from draftpick.router.registry.registry import Registry
    registry = Registry(Path(sys.argv[1]))
    print("ready", flush=True)
    sys.stdin.readline()
    for i in range(25):
        time.sleep(0.02)  # the other one comes in between, on a busy machine too
        if i % 2:
            registry.start_shadow(id, sys.argv[3])
        else:
            id = registry.add(Path(sys.argv[2]), {"reason": str(i)}, sys.argv[3])
            print(id, flush=True)
"""


def test_two_writers_lose_nothing(registry: Registry, artefact: Path) -> None:
    seen = {0}
    with start(WRITER, registry.path, artefact, "one") as one, start(WRITER, registry.path, artefact, "other") as other:
        writers = (one, other)
        assert [writer.stdout and writer.stdout.readline() for writer in writers] == ["ready\n"] * 2
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        while any(writer.poll() is None for writer in writers):
            seen.add(registry.state().revision)
        added = [id for writer in writers for id in writer.communicate()[0].split()]
    state = whole(registry)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert state.revision == len(state.history) == 50
    assert Counter((change.by, change.action) for change in state.history) == {
        **{("one", "add"): 13, ("other", "add"): 13},
        **{("one", "begin"): 12, ("other", "begin"): 12},
    }
    assert len(added) == len(set(added)) == 26
    assert sorted(added) == sorted(state.policies) == [f"p{number:04}" for number in range(1, 27)]
    assert state.candidate is not None
    turns = [change.by for change in state.history]
    assert sum(a != b for a, b in pairwise(turns)) > 1, "the writers did not meet"
    assert len(seen) > 2
