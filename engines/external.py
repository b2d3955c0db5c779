"""Externally run engines: their address without secrets, their credentials, and the certificates that they may have."""

import os
import ssl
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from draftpick.engines.config import Engine
from draftpick.engines.errors import ConfigError
from draftpick.engines.http.client import EngineAccess, authorization_of


def address_of(url: str) -> str:
    """The base URL of an engine: without user name and password, and without the `/v1` of OpenAI's base URLs."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"


def access_of(engines: Iterable[Engine], environment: Mapping[str, str] = os.environ) -> dict[str, EngineAccess]:
    """How the engines with a `url` are reached, by scheme and host. Raises `ConfigError`."""
    found = {}
    for engine in engines:
        if engine.url is not None:
            origin = origin_of(str(engine.url))
            tls = _tls(engine) if origin.startswith("https:") else None
            found[origin] = EngineAccess(_authorization(engine, environment), tls)
    return found


def origin_of(url: str) -> str:
    """Scheme and host of an engine's URL, without secrets."""
    parts = urlsplit(address_of(url))
    return f"{parts.scheme}://{parts.netloc}"


def _authorization(engine: Engine, environment: Mapping[str, str]) -> str | None:
    """The `authorization` of requests: a configured key, or the URL's user name and password."""
    field = f"engines.{engine.name}"
    if engine.api_key_env is not None:
        if not (key := environment.get(engine.api_key_env, "").strip()):
            raise ConfigError(f"{field}.api_key_env", f"the variable {engine.api_key_env} is not set", "set it")
        return f"Bearer {key}"
    if engine.api_key_file is not None:
        try:
            key = engine.api_key_file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{field}.api_key_file", "is not readable", "name a file with the key alone") from None
        return f"Bearer {key}"
    return authorization_of(str(engine.url))


def _tls(engine: Engine) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=engine.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"engines.{engine.name}.ca_file", f"is not readable: {error}", "name a PEM file") from None
