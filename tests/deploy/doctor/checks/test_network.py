"""Who can reach what."""

from pathlib import Path

import pytest

from tests.deploy.doctor.ward import PLAIN, fleet, found, one


@pytest.mark.parametrize(("host", "level"), [("127.0.0.1", None), ("node", "note"), ("0.0.0.0", "warning")])
def test_where_engines_listen(tmp_path: Path, host: str, level: str | None) -> None:
    findings = found(fleet(tmp_path, engine_host=host), "engine_host")
    assert [finding.level for finding in findings] == ([level] if level else [])


def test_keys_of_an_open_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRAFTPICK_API_KEYS", raising=False)
    monkeypatch.delenv("DRAFTPICK_ADMIN_KEYS", raising=False)
    assert one(found(fleet(tmp_path), "keys", host="0.0.0.0")).level == "problem"
    assert not found(fleet(tmp_path), "keys")
    monkeypatch.setenv("DRAFTPICK_API_KEYS", "dp-something")
    assert not found(fleet(tmp_path), "keys", host="0.0.0.0")
    (tmp_path / "keys.yaml").write_text("nothing: here\n")
    broken = fleet(tmp_path, router={"keys": {"file": str(tmp_path / "keys.yaml")}})
    assert one(found(broken, "keys")).where == "router.keys.file"


def test_pages_that_keys_reach(tmp_path: Path) -> None:
    assert one(found(fleet(tmp_path, router={"paths": ["*"]}), "paths")).where == "router.paths"
    developing = {**PLAIN, "deployment": {"env": {"VLLM_SERVER_DEV_MODE": "1"}}}
    assert one(found(fleet(tmp_path, developing), "paths")).level == "warning"
    assert not found(fleet(tmp_path), "paths")


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("http://10.0.0.7:8000", "note"),
        ("http://me:secret@10.0.0.7:8000", "warning"),
        ("https://10.0.0.7", None),
        ("http://127.0.0.1:8000", None),
    ],
)
def test_what_goes_over_the_network(tmp_path: Path, url: str, level: str | None) -> None:
    findings = found(fleet(tmp_path, PLAIN, {"name": "remote", "url": url}), "plain_http")
    assert [finding.level for finding in findings] == ([level] if level else [])
    assert "secret" not in str(findings)
