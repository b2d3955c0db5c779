"""Finds the configuration that a user names, and checks it before anything starts."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draftpick.engines.config import did_you_mean
from draftpick.engines.drafter_options import spec_of
from draftpick.engines.errors import ConfigError
from draftpick.engines.preflight_checks import check_methods, check_models
from draftpick.router.config.router_config import EMBEDDED, DraftpickConfig, load_config
from draftpick.router.errors import PolicyRejected
from draftpick.router.http.auth import Keyring
from draftpick.router.policies import SHIPPED, check_arms, read
from draftpick.router.registry.registry import Registry
from draftpick.router.registry.resolve import could_be_registry, read_named

HIDDEN = "***"
_ENVIRONMENTS = frozenset({"env", "env_vars"})
_SECRET = re.compile(r"(api_?key|token$|secret|passw|credential|authorization)", re.IGNORECASE)
_USER_INFO = re.compile(r"(\w+://)[^/@\s]+@")

FLEETS = Path(__file__).parent / "fleets"


def resolve(source: str | Path | dict[str, Any]) -> DraftpickConfig:
    """Load and check the configuration `source`: the name of a shipped fleet, a YAML file, or a dict.

    Checks everything that needs no engine. Raises `ConfigError`.
    """
    if isinstance(source, str) and not source.endswith((".yaml", ".yml")):
        shipped = {path.stem: path for path in FLEETS.glob("*.yaml")}
        if source not in shipped:
            fix = f"{did_you_mean(source, shipped)}name a YAML file, or one of: {', '.join(sorted(shipped))}"
            raise ConfigError("config", f"unknown fleet {source!r}", fix)
        source = shipped[source]
    config = load_config(source)
    check_methods(config)
    check_models(config)
    _check_policy(config)
    _check_keys(config)
    return config


def with_engines(config: DraftpickConfig, names: Sequence[str]) -> DraftpickConfig:
    """Restrict a fleet to these engines. A trained policy that knows them still serves."""
    for name in names:
        if name not in config.names:
            fix = f"{did_you_mean(name, config.names)}engines: {', '.join(config.names)}"
            raise ConfigError("engines", f"unknown engine {name!r}", fix)
    fields = config.model_dump(mode="json")
    return resolve({**fields, "engines": [engine for engine in fields["engines"] if engine["name"] in names]})


def with_router(config: DraftpickConfig, **changes: Any) -> DraftpickConfig:
    """Change settings of the router, with validation."""
    fields = config.model_dump(mode="json")
    return resolve({**fields, "router": {**fields["router"], **changes}})


def without_shared_text(config: DraftpickConfig) -> DraftpickConfig:
    """Configure all drafters of a fleet to keep no text between requests."""
    fields = config.model_dump(mode="json")
    drafters = (one for engine in fields["engines"] for one in (engine["drafter"], *(engine["drafters"] or ())) if one)
    for drafter in drafters:
        if (sharing := spec_of(drafter["method"]).shares_text_across_requests) is not None:
            sharing.switch_off(drafter)
    return resolve(fields)


def redacted(config: DraftpickConfig) -> dict[str, Any]:
    """The configuration for display: without environments, passwords in URLs, and fields named like secrets."""
    return {name: _redact(name, value) for name, value in config.model_dump(mode="json").items()}


def _redact(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {k: HIDDEN if name in _ENVIRONMENTS else _redact(k, v) for k, v in value.items()}
    if isinstance(value, list):
        return [_redact(name, item) for item in value]
    if isinstance(value, str) and value:
        return HIDDEN if _SECRET.search(name) else _USER_INFO.sub(rf"\1{HIDDEN}@", value)
    return value


def _check_policy(config: DraftpickConfig) -> None:
    """Reject an unreadable policy. The router handles one for other engines, with a fallback."""
    try:
        if could_be_registry(config.router.policy) and Registry(Path(config.router.policy)).state().active is None:
            return  # the default engine serves until the registry has a policy
        name = read_named(config.router.policy)
        if name in ("fixed", "uniform"):
            return
        read(SHIPPED if name == EMBEDDED else Path(name))
    except PolicyRejected as error:
        fix = "use `fixed`, `uniform`, `embedded`, the folder of a trained policy, or of a registry"
        raise ConfigError("router.policy", str(error), fix) from error


def _check_keys(config: DraftpickConfig) -> None:
    """Reject an unreadable file of keys."""
    try:
        Keyring(config.router.keys)
    except ConfigError as error:
        raise ConfigError(f"router.keys.file: {error.field}", error.problem, error.fix) from error


def method_warnings(config: DraftpickConfig) -> list[str]:
    """Drafting methods that may be misspelt: their engines' vLLM is not the installed one, so it cannot be asked."""
    return [str(error) for error in check_methods(config)]


def policy_warning(config: DraftpickConfig) -> str | None:
    """Why the router would reject the configured policy; None if it would not."""
    try:
        name = read_named(config.router.policy)
        if name in ("fixed", "uniform"):
            return None
        check_arms(read(SHIPPED if name == EMBEDDED else Path(name), config.arms), config.arms)
    except PolicyRejected as error:
        return str(error)
    return None
