"""The router: its policy, its limits, its records."""

from pathlib import Path
from typing import Any

import pytest

from draftpick.router.policies import artifact
from tests.deploy.artefact import write_policy
from tests.deploy.doctor.ward import GIB, PLAIN, SUFFIX, fleet, found, model, one


def test_policies_that_the_fleet_cannot_use(tmp_path: Path) -> None:
    for router, level, what in [
        ({"policy": str(write_policy(tmp_path / "others", ["plain", "math"]))}, "problem", "was made for the engines"),
        ({"policy": str(tmp_path / "none")}, "problem", "not a readable policy"),
        ({"policy": "fixed"}, "note", "every request goes to plain"),
        ({"policy": "uniform"}, "warning", "drawn at random"),
    ]:
        finding = one(found(fleet(tmp_path, router=router), "policy"))
        assert finding.level == level
        assert what in finding.what


def test_a_registry_that_has_no_policy_yet(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    assert one(found(fleet(tmp_path, router={"policy": str(tmp_path / "registry")}), "policy")).level == "note"


def test_the_shipped_policy_is_for_the_shipped_target(tmp_path: Path) -> None:
    target = model(tmp_path / "target", {"a": 0})
    config = fleet(tmp_path, router={"policy": "embedded"}, target={"name": "mine", "source": target})
    assert "another model" in one(found(config, "policy")).what
    assert not found(fleet(tmp_path, router={"policy": "embedded"}), "policy")


def policy_with(path: Path, featurizer: str, **provenance: Any) -> str:
    manifest, arrays = artifact.read(write_policy(path / "first", ["plain", "suffix"]))
    made = {**manifest, "featurizer": featurizer, "provenance": provenance}
    artifact.write(path / "policy", made, arrays)
    return str(path / "policy")


def test_a_policy_of_other_features(tmp_path: Path) -> None:
    path = policy_with(tmp_path, "static-128-abc+lexical-v0")
    assert one(found(fleet(tmp_path, router={"policy": path}), "policy")).where == "router.featurizer"
    shipped = fleet(tmp_path, router={"policy": "embedded", "featurizer": "none"})
    assert one(found(shipped, "policy")).where == "router.featurizer"


def test_an_old_policy_and_one_of_few_requests(tmp_path: Path) -> None:
    old = policy_with(tmp_path, "x", created="2020-01-01T00:00:00+00:00", requests=50)
    findings = found(fleet(tmp_path, router={"policy": old}), "policy_age")
    assert "trained on 50 requests" in findings[1].what
    assert "days ago" in findings[0].what
    new = policy_with(tmp_path / "new", "x", created="2999-01-01T00:00:00+00:00", requests=5000)
    assert not found(fleet(tmp_path, router={"policy": new}), "policy_age")
    assert not found(fleet(tmp_path, router={"policy": "embedded"}), "policy_age")


def test_a_registry_that_learns_nothing_new(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    registry = {"policy": str(tmp_path / "registry")}
    for off in ({"exploration": {"rate": 0}}, {"online": {"correction": {"enabled": False}}}):
        assert one(found(fleet(tmp_path, router={**registry, **off}), "learning")).where == "router.exploration.rate"
    assert not found(fleet(tmp_path, router=registry), "learning")
    assert not found(fleet(tmp_path, router={**registry, "exploration": {"rate": 0.03}}), "learning")
    assert (
        one(found(fleet(tmp_path, router={"shadow": {"sample_rate": 0.5}}), "learning")).where
        == "router.shadow.sample_rate"
    )
    assert one(found(fleet(tmp_path, router={"seed": 1}), "learning")).where == "router.seed"


def test_places_of_router_and_engines(tmp_path: Path) -> None:
    few = {"max_num_seqs": 16}
    blind = {"load": {"enabled": False}}
    finding = one(found(fleet(tmp_path, engine_kwargs=few, router=blind), "limits"))
    assert finding.where == "router.admission.max_in_flight_per_replica"
    bounded = {**blind, "admission": {"max_in_flight_per_replica": 16}}
    assert not found(fleet(tmp_path, engine_kwargs=few, router=bounded), "limits")
    assert not found(fleet(tmp_path, engine_kwargs=few), "limits")
    narrow = {"admission": {"max_in_flight_per_replica": 16, "max_in_flight": 8}}
    assert (
        one(found(fleet(tmp_path, engine_kwargs=few, router=narrow), "limits")).where
        == "router.admission.max_in_flight"
    )


def test_options_of_ray_serve(tmp_path: Path) -> None:
    router = {"deployment_options": {"max_ongoing_requests": 100}}
    assert one(found(fleet(tmp_path, router=router), "serve_options")).level == "warning"
    bounded = {**SUFFIX, "deployment": {"options": {"max_ongoing_requests": 5}}}
    assert one(found(fleet(tmp_path, PLAIN, bounded), "serve_options")).level == "note"
    scaled = {**SUFFIX, "deployment": {"options": {"autoscaling_config": {"max_replicas": 4}}}}
    assert one(found(fleet(tmp_path, PLAIN, scaled), "serve_options")).level == "problem"
    assert not found(fleet(tmp_path), "serve_options")


def test_where_records_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one(found(fleet(tmp_path, router={"records": {}}), "records")).level == "note"
    (tmp_path / "file").write_text("")
    inside = fleet(tmp_path, router={"records": {"dir": str(tmp_path / "file" / "records")}})
    assert one(found(inside, "records")).level == "problem"
    for free, level in ((2**20, "warning"), (2 * GIB, "note"), (2**50, None)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: type("Usage", (), {"free": free}))
        assert [one.level for one in found(fleet(tmp_path), "records")] == ([level] if level else [])


def test_fields_under_their_former_names(tmp_path: Path) -> None:
    lines = ["router.explore is now called router.exploration.rate"]
    finding = one(found(fleet(tmp_path), "former_fields", former_fields=lines))
    assert (finding.level, finding.where, finding.what) == ("warning", "router.explore", lines[0])
    assert finding.cure == "write router.exploration.rate"
    assert not found(fleet(tmp_path), "former_fields")
