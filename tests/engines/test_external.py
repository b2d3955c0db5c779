"""Externally run engines: addresses without secrets, keys, and certificates."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from draftpick.engines.config import Engine
from draftpick.engines.errors import ConfigError
from draftpick.engines.external import access_of, address_of, origin_of

BASE = "https://10.0.0.1:8000"


def engine(**fields: Any) -> Engine:
    return Engine.model_validate({"name": "a", "url": BASE, **fields})


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://me:secret@host:1/", "http://host:1"),
        ("http://host:1/v1/", "http://host:1"),
        ("https://host/below/v1", "https://host/below"),
    ],
)
def test_an_address_holds_no_secret_and_no_version(url: str, address: str) -> None:
    assert address_of(url) == address


def test_the_origin_of_an_engine_is_where_its_access_is() -> None:
    assert origin_of("https://me:secret@host/below/v1") == "https://host"
    assert list(access_of([engine()], {})) == [origin_of(BASE)]


@pytest.mark.parametrize(
    ("url", "authorization"),
    [
        (BASE, None),
        ("https://me:a%40b@10.0.0.1:8000/v1", "Basic bWU6YUBi"),
        ("https://:key@10.0.0.1:8000", "Bearer key"),
        ("https://key@10.0.0.1:8000", "Bearer key"),
    ],
)
def test_one_secret_in_a_url_is_a_bearer_token(url: str, authorization: str | None) -> None:
    assert access_of([engine(url=url)], {})[BASE].authorization == authorization


def test_a_key_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    assert access_of([engine(api_key_env="KEY")], {"KEY": "of-env"})[BASE].authorization == "Bearer of-env"
    assert access_of([engine(api_key_file=str(file))], {})[BASE].authorization == "Bearer from-file"


@pytest.mark.parametrize("fields", [{"api_key_env": "KEY"}, {"api_key_file": "/none"}, {"ca_file": "/none"}])
def test_a_missing_key_or_certificate_is_told(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        access_of([engine(**fields)], {})


@pytest.mark.parametrize(
    "fields", [{"api_key_env": "A", "api_key_file": "b"}, {"url": None, "kind": "vllm", "api_key_env": "A"}]
)
def test_keys_are_for_external_engines_and_given_once(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="api_key_env"):
        engine(**fields)
