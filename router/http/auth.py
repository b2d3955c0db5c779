"""Authentication: API keys by hash, with scopes and limits per minute.

Keys come from a file of hashes (`draftpick keys new` adds its lines) or, in plain text, from the environment. They are
random and long, so one SHA-256 protects them as well as a slow hash would, and takes a microsecond per request.
The package `limits` counts requests and tokens in memory, separately in each router replica.
"""

import hashlib
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from pydantic import Field, TypeAdapter, ValidationError

from draftpick.engines.config import Model, Name
from draftpick.engines.errors import ConfigError
from draftpick.router.config.sections import ADMIN_KEY_VARIABLE, API_KEY_VARIABLE, KeysConfig, Objective
from draftpick.router.errors import Forbidden, RateLimited, Unauthorized

Scope = Literal["chat", "admin"]
PREFIX = "dp-"


class Key(Model):
    """One API key, by its hash."""

    name: Name = Field(description="name of the key, shown in errors and in the history of policies")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hexadecimal")
    scopes: tuple[Scope, ...] = Field(("chat",), description="`chat`: send requests; `admin`: pin, reload, explain")
    requests_per_minute: int | None = Field(None, ge=1, description="maximum requests per minute; absent: unlimited")
    tokens_per_minute: int | None = Field(None, ge=1, description="maximum prompt and output tokens per minute")
    priority: Literal["low", "normal", "high"] = Field("normal", description="highest priority that a request may set")
    max_concurrent: int | None = Field(
        None, ge=1, description="maximum requests at once, at one router replica; absent: unlimited"
    )
    explore: bool = Field(True, description="whether its requests take part in exploration")
    show_routing: bool = Field(True, description="whether answers name the engine and the policy that gave them")
    objective: Objective | None = Field(None, description="objective of routing; absent: `router.load.objective`")
    expires: datetime | None = Field(None, description="expiry time, with a time zone")


ANONYMOUS = Key(name="anybody", sha256="0" * 64, priority="high")
"""The key of all requests if no keys are configured."""

_KEY_HEADERS = ("x-api-key", "api-key")
"""Where clients of Anthropic's API, and of Azure, put their key."""
_KEYS = TypeAdapter(list[Key])


class Keyring:
    """The accepted keys and their usage, now and in the current minute. Empty: every request is `ANONYMOUS`.

    `enabled`: whether it is not empty, for the request path.
    """

    def __init__(self, config: KeysConfig, environment: Mapping[str, str] = os.environ) -> None:
        """Raises `ConfigError`."""
        self._config, self._environment = config, environment
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._concurrent: Counter[str] = Counter()
        self.reload()

    def __bool__(self) -> bool:
        return self.enabled

    def reload(self) -> None:
        """Read the file again. Raises `ConfigError`, and keeps the old keys then."""
        self._keys = self._load()
        self.enabled = bool(self._keys) or self._config.file is not None
        self._several = len(self._keys) > 1

    def _load(self) -> dict[str, Key]:
        keys = read_keys(self._config.file) if self._config.file else []
        if self._config.environment:
            for variable, scopes in ((API_KEY_VARIABLE, ("chat",)), (ADMIN_KEY_VARIABLE, ("chat", "admin"))):
                given = [key.strip() for key in self._environment.get(variable, "").split(",")]
                name = variable.removesuffix("_KEYS").lower().replace("_", "-")
                keys += [
                    Key(name=f"{name}-{i}", sha256=digest(key), scopes=scopes, priority="high")
                    for i, key in enumerate(filter(None, given))
                ]
        return {key.sha256: key for key in keys}

    def authenticate(self, headers: Mapping[str, str]) -> Key:
        """The key in `Authorization`, or in the headers of other APIs; names in lower case. Raises `Unauthorized`."""
        if not self.enabled:
            return ANONYMOUS
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            token = next((headers[name] for name in _KEY_HEADERS if name in headers), "")
        if not token:
            raise Unauthorized("an API key is needed: Authorization: Bearer <key>")
        key = self._keys.get(digest(token.strip()))
        if key is None:
            raise Unauthorized("this API key is unknown")
        if key.expires is not None and key.expires.timestamp() <= time.time():
            raise Unauthorized("this API key has expired")
        return key

    def name_of(self, key: Key) -> str:
        """The name of a key, for what is kept by key; empty if all requests have the same one."""
        return key.name if self._several else ""

    def check_rate_limit(self, key: Key) -> None:
        """Count one request of a key. Raises `RateLimited` if a limit is reached."""
        if key.tokens_per_minute is not None:
            tokens = RateLimitItemPerMinute(key.tokens_per_minute, namespace="tokens")
            if not self._limiter.test(tokens, key.sha256):
                raise self._rate_limited(key, tokens, f"{key.tokens_per_minute} tokens", "tokens_per_minute")
        if key.requests_per_minute is not None:
            requests = RateLimitItemPerMinute(key.requests_per_minute, namespace="requests")
            if not self._limiter.hit(requests, key.sha256):
                raise self._rate_limited(key, requests, f"{key.requests_per_minute} requests", "requests_per_minute")

    @contextmanager
    def concurrent(self, key: Key) -> Iterator[None]:
        """Count a request of a key during the block. Raises `RateLimited` if it has as many at once as it may."""
        if key.max_concurrent is not None and self._concurrent[key.sha256] >= key.max_concurrent:
            what = f"{key.max_concurrent} requests at once"
            raise RateLimited(f"the key {key.name!r} may have {what}", retry_after_s=1.0, code="max_concurrent")
        self._concurrent[key.sha256] += 1
        try:
            yield
        finally:
            self._concurrent[key.sha256] -= 1
            if not self._concurrent[key.sha256]:
                del self._concurrent[key.sha256]

    def count_tokens(self, key: Key, num_tokens: int) -> None:
        """Count the tokens of an answer. An answer may exceed the limit; the next request then has to wait."""
        if key.tokens_per_minute is None:
            return
        limit = RateLimitItemPerMinute(key.tokens_per_minute, namespace="tokens")
        left = self._limiter.get_window_stats(limit, key.sha256).remaining
        if (cost := min(num_tokens, left)) > 0:
            self._limiter.hit(limit, key.sha256, cost=cost)

    def _rate_limited(self, key: Key, limit: RateLimitItemPerMinute, what: str, code: str) -> RateLimited:
        reset = self._limiter.get_window_stats(limit, key.sha256).reset_time - time.time()
        return RateLimited(
            f"key {key.name!r} may use {what} a minute", code=code, retry_after_s=min(max(1.0, reset), 60.0)
        )


def require_scope(key: Key, scope: Scope, purpose: str) -> None:
    """Raise `Forbidden` unless the key has the scope that `purpose` needs."""
    if scope not in key.scopes:
        raise Forbidden(f"{purpose} needs a key with the scope {scope!r}", code="missing_scope")


def digest(key: str) -> str:
    """SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A random key of 256 bits."""
    return PREFIX + secrets.token_urlsafe(32)


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. Raises `ConfigError`, which names the field and shows no value."""
    try:
        data: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(str(path), f"is not readable: {error.strerror}", "name an existing file of keys") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(str(path), "is not valid YAML") from None
    try:
        if data is None:  # half of a write; `[]` is no keys
            raise ConfigError(str(path), "is empty", "write [] for no keys")
        keys = _KEYS.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}", first["msg"], "`draftpick keys new` makes such lines") from None
    for field in ("name", "sha256"):
        values = [getattr(key, field) for key in keys]
        if twice := next((i for i, value in enumerate(values) if value in values[:i]), None):
            raise ConfigError(f"{path}: {twice}.{field}", "is a duplicate", "give each key its own")
    for i, key in enumerate(keys):
        if key.expires is not None and key.expires.tzinfo is None:
            raise ConfigError(f"{path}: {i}.expires", "has no time zone", "write 2030-01-31T00:00:00Z")
    return keys
