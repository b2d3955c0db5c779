"""API keys: which are taken, what they may use of a minute, and files that are wrong."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from draftpick.engines.errors import ConfigError
from draftpick.router.config.sections import KeysConfig
from draftpick.router.errors import Forbidden, RateLimited, Unauthorized
from draftpick.router.http.auth import ANONYMOUS, Keyring, digest, new_key, read_keys, require_scope


def header(authorization: str | None) -> dict[str, str]:
    return {} if authorization is None else {"authorization": authorization}


def write(path: Path, *keys: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(list(keys)))
    return path


def ring(path: Path, *keys: dict[str, Any]) -> Keyring:
    return Keyring(KeysConfig(file=write(path / "keys.yaml", *keys)), {})


def line(name: str, secret: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "sha256": digest(secret), **fields}


def entry(name: str, digit: str = "", **fields: str) -> str:
    """A line of a file of keys, with a digest of one digit: that of the name, if it is one."""
    more = "".join(f", {field}: {value}" for field, value in fields.items())
    return f"- {{name: {name}, sha256: {64 * (digit or name)}{more}}}"


def test_without_keys_anybody_may_ask() -> None:
    keys = Keyring(KeysConfig(), {})
    assert not keys
    assert keys.authenticate(header(None)) is ANONYMOUS


def test_a_known_key_is_taken(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("team", "s1"), line("boss", "s2", scopes=["chat", "admin"]))
    assert keys.authenticate(header("Bearer s1")).name == "team"
    assert keys.authenticate(header("bearer  s2 ")).scopes == ("chat", "admin")


@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic s1", "Digest s1", "s1", "Bearer s1 s1"]
)
def test_anything_else_is_not(tmp_path: Path, sent: str | None) -> None:
    with pytest.raises(Unauthorized):
        ring(tmp_path, line("team", "s1")).authenticate(header(sent))


def test_clients_of_other_apis_have_headers_of_their_own(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("team", "s1"))
    for name in ("x-api-key", "api-key"):
        assert keys.authenticate({name: "s1"}).name == "team"
        assert keys.authenticate({name: "s1", "authorization": "Basic x"}).name == "team"


def test_a_key_expires(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    keys = ring(
        tmp_path,
        line("old", "s1", expires=(now - timedelta(seconds=1)).isoformat()),
        line("new", "s2", expires=(now + timedelta(hours=1)).isoformat()),
    )
    assert keys.authenticate(header("Bearer s2")).name == "new"
    with pytest.raises(Unauthorized, match="expired"):
        keys.authenticate(header("Bearer s1"))


def test_keys_come_from_the_environment_in_plain() -> None:
    keys = Keyring(KeysConfig(), {"DRAFTPICK_API_KEYS": "one, two", "DRAFTPICK_ADMIN_KEYS": "three"})
    assert keys.authenticate(header("Bearer two")).scopes == ("chat",)
    assert keys.authenticate(header("Bearer three")).scopes == ("chat", "admin")
    assert not Keyring(KeysConfig(environment=False), {"DRAFTPICK_API_KEYS": "one"})


def test_an_empty_file_admits_no_key(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    assert keys
    with pytest.raises(Unauthorized):
        keys.authenticate(header(None))


def test_a_scope_is_needed(tmp_path: Path) -> None:
    key = ring(tmp_path, line("team", "s1")).authenticate(header("Bearer s1"))
    require_scope(key, "chat", "to ask")
    with pytest.raises(Forbidden, match="to pin needs a key with the scope 'admin'"):
        require_scope(key, "admin", "to pin")


def test_requests_of_a_minute_are_counted_by_key(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("team", "s1", requests_per_minute=2), line("other", "s2", requests_per_minute=2))
    team, other = keys.authenticate(header("Bearer s1")), keys.authenticate(header("Bearer s2"))
    keys.check_rate_limit(team)
    keys.check_rate_limit(team)
    with pytest.raises(RateLimited) as caught:
        keys.check_rate_limit(team)
    assert 1 <= int(caught.value.headers()[0][1]) <= 60
    assert caught.value.code == "requests_per_minute"
    keys.check_rate_limit(other)


def test_tokens_of_a_minute_are_counted_when_they_are_known(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("team", "s1", tokens_per_minute=100))
    key = keys.authenticate(header("Bearer s1"))
    for _ in range(101):  # a request itself takes none
        keys.check_rate_limit(key)
    keys.count_tokens(key, 60)
    keys.check_rate_limit(key)
    keys.count_tokens(key, 60)
    with pytest.raises(RateLimited, match="100 tokens a minute"):
        keys.check_rate_limit(key)


def test_a_file_is_read_again(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("team", "s1"))
    write(tmp_path / "keys.yaml", line("team", "s2"))
    keys.reload()
    assert keys.authenticate(header("Bearer s2")).name == "team"
    with pytest.raises(Unauthorized):
        keys.authenticate(header("Bearer s1"))


def test_a_file_that_became_wrong_leaves_the_old_keys(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("team", "s1"))
    (tmp_path / "keys.yaml").write_text("- {name: team}")
    with pytest.raises(ConfigError):
        keys.reload()
    assert keys.authenticate(header("Bearer s1")).name == "team"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: a, sha256: plainsecret}", "0.sha256"),
        ("- {sha256: %s}" % ("a" * 64), "0.name"),
        ("- {name: a, sha256: %s, scopes: [root]}" % ("a" * 64), "0.scopes.0"),
        ("- {name: a, sha256: %s, rpm: 1}" % ("a" * 64), "0.rpm"),
        ("- {name: a, sha256: %s, expires: 2030-01-01T00:00:00}" % ("a" * 64), "time zone"),
        (f"{entry('a')}\n{entry('b')}\n{entry('b', 'c')}", "2.name: is a duplicate"),
        (f"{entry('a')}\n{entry('b', 'a')}", "1.sha256: is a duplicate"),
        (f"{entry('a')}\n{entry('b', expires='2030-01-01T00:00:00')}", "1.expires: has no time zone"),
        ("", "is empty"),
        ("- {name: a, sha256: %s}" % ("a" * 63), "0.sha256"),
        ("- {name: a, sha256: %s}" % ("A" * 64), "0.sha256"),
        (entry("a", requests_per_minute="0"), "0.requests_per_minute"),
        (entry("a", tokens_per_minute="0"), "0.tokens_per_minute"),
        (entry("a", max_concurrent="0"), "0.max_concurrent"),
        ("{", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_field_and_without_its_values(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    assert message in str(caught.value)
    assert "plainsecret" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not readable"):
        Keyring(KeysConfig(file=tmp_path / "none.yaml"), {})


def test_new_keys_are_long_and_different() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(len(key) > 40 and key.startswith("dp-") for key in made)


def test_requests_at_once_are_counted_by_key(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("team", "s1", max_concurrent=2), line("other", "s2", max_concurrent=2))
    team, other = keys.authenticate(header("Bearer s1")), keys.authenticate(header("Bearer s2"))
    with keys.concurrent(team):
        with keys.concurrent(team), keys.concurrent(other):
            with (
                pytest.raises(RateLimited, match="'team' may have 2 requests at once") as caught,
                keys.concurrent(team),
            ):
                pass
            assert (caught.value.code, caught.value.headers()) == ("max_concurrent", [("retry-after", "1")])
        with keys.concurrent(team):
            pass


def test_requests_of_the_only_key_are_not_told_apart(tmp_path: Path) -> None:
    one = ring(tmp_path, line("team", "s1"))
    assert one.name_of(one.authenticate(header("Bearer s1"))) == ""
    several = ring(tmp_path, line("team", "s1"), line("other", "s2"))
    assert several.name_of(several.authenticate(header("Bearer s1"))) == "team"


def test_a_key_has_by_default_what_a_client_needs(tmp_path: Path) -> None:
    key = ring(tmp_path, line("team", "s1", requests_per_minute=1, tokens_per_minute=1, max_concurrent=1)).authenticate(
        header("Bearer s1")
    )
    assert (key.scopes, key.priority, key.explore, key.show_routing, key.objective) == (
        *(("chat",), "normal", True, True),
        None,
    )
    assert (ANONYMOUS.priority, ANONYMOUS.expires, ANONYMOUS.max_concurrent) == ("high", None, None)


def test_keys_of_the_environment_have_names_and_the_highest_priority() -> None:
    keys = Keyring(KeysConfig(), {"DRAFTPICK_API_KEYS": "one,,two", "DRAFTPICK_ADMIN_KEYS": "three"})
    named = {secret: keys.authenticate(header(f"Bearer {secret}")) for secret in ("one", "two", "three")}
    assert {secret: key.name for secret, key in named.items()} == {
        "one": "draftpick-api-0",
        "two": "draftpick-api-1",
        "three": "draftpick-admin-0",
    }
    assert {key.priority for key in named.values()} == {"high"}


def test_an_answer_beyond_the_limit_costs_what_is_left_of_the_minute(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("team", "s1", tokens_per_minute=100), line("other", "s2", tokens_per_minute=1))
    key, other = (keys.authenticate(header(f"Bearer {secret}")) for secret in ("s1", "s2"))
    keys.count_tokens(key, 0)
    keys.count_tokens(key, 99)
    keys.check_rate_limit(key)
    keys.count_tokens(key, 1_000_000)
    keys.count_tokens(key, 5)
    with pytest.raises(RateLimited) as caught:
        keys.check_rate_limit(key)
    assert caught.value.code == "tokens_per_minute"
    keys.check_rate_limit(other)
    keys.count_tokens(other, 1)
    with pytest.raises(RateLimited):
        keys.check_rate_limit(other)


@pytest.mark.parametrize(("reset_s", "wait_s"), [(-5.0, 1.0), (0.5, 1.0), (30.5, 30.5), (119.0, 60.0)])
def test_the_time_to_wait_is_between_a_second_and_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reset_s: float, wait_s: float
) -> None:
    keys = ring(tmp_path, line("team", "s1", requests_per_minute=1))
    key = keys.authenticate(header("Bearer s1"))
    keys.check_rate_limit(key)
    monkeypatch.setattr("draftpick.router.http.auth.time.time", lambda: 1000.0)
    monkeypatch.setattr(keys._limiter, "hit", lambda *_: False)
    stats = type("Stats", (), {"reset_time": 1000.0 + reset_s, "remaining": 0})
    monkeypatch.setattr(keys._limiter, "get_window_stats", lambda *_: stats)
    with pytest.raises(RateLimited) as caught:
        keys.check_rate_limit(key)
    assert caught.value.retry_after_s == wait_s


def test_a_key_that_has_ended_its_requests_may_send_more(tmp_path: Path) -> None:
    keys = ring(tmp_path, line("team", "s1", max_concurrent=1))
    key = keys.authenticate(header("Bearer s1"))
    for _ in range(3):
        with keys.concurrent(key):
            pass
    with pytest.raises(KeyError), keys.concurrent(key):
        raise KeyError
    with keys.concurrent(key), pytest.raises(RateLimited), keys.concurrent(key):
        pass


def test_a_key_expires_at_its_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ring(tmp_path, line("team", "s1", expires="2030-01-31T00:00:00Z"))
    at = datetime(2030, 1, 31, tzinfo=UTC).timestamp()
    monkeypatch.setattr("draftpick.router.http.auth.time.time", lambda: at - 0.5)
    assert keys.authenticate(header("Bearer s1")).name == "team"
    monkeypatch.setattr("draftpick.router.http.auth.time.time", lambda: at)
    with pytest.raises(Unauthorized, match="expired"):
        keys.authenticate(header("Bearer s1"))
