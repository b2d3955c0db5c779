"""Which configuration a user means, and all that can be wrong with it before anything starts."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draftpick.engines.config import did_you_mean
from draftpick.engines.drafter_options import DRAFTERS
from draftpick.engines.errors import ConfigError
from draftpick.engines.preflight_checks import check_models
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
    """The checked configuration that `source` names: a fleet of the project, a YAML file, or a dict.

    Everything that can be known without an engine is checked here. Raises `ConfigError`.
    """
    if isinstance(source, str) and not source.endswith((".yaml", ".yml")):
        shipped = {path.stem: path for path in FLEETS.glob("*.yaml")}
        if source not in shipped:
            cure = f"{did_you_mean(source, shipped)}name a YAML file, or one of: {', '.join(sorted(shipped))}"
            raise ConfigError("config", f"no fleet is called {source!r}", cure)
        source = shipped[source]
    config = load_config(source)
    check_models(config)
    _check_policy(config)
    _check_keys(config)
    return config


def with_engines(config: DraftpickConfig, names: Sequence[str]) -> DraftpickConfig:
    """The same fleet with these of its engines alone. A trained policy that knows them still serves."""
    for name in names:
        if name not in config.arms:
            cure = f"{did_you_mean(name, config.arms)}engines: {', '.join(config.arms)}"
            raise ConfigError("engines", f"no engine is called {name!r}", cure)
    fields = config.model_dump(mode="json")
    return resolve({**fields, "engines": [engine for engine in fields["engines"] if engine["name"] in names]})


def with_router(config: DraftpickConfig, **changes: Any) -> DraftpickConfig:
    """The same configuration with other settings of the router, checked."""
    fields = config.model_dump(mode="json")
    return resolve({**fields, "router": {**fields["router"], **changes}})


def without_shared_text(config: DraftpickConfig) -> DraftpickConfig:
    """The same fleet, none of whose drafters keeps text of one request for the next."""
    fields = config.model_dump(mode="json")
    for drafter in filter(None, (engine.get("drafter") for engine in fields["engines"])):
        if (sharing := DRAFTERS[drafter["method"]].shares_text_across_requests) is not None:
            sharing.switch_off(drafter)
    return resolve(fields)


def redacted(config: DraftpickConfig) -> dict[str, Any]:
    """The configuration as it may be shown: without environments, passwords in addresses, and secrets by name."""
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
    """Refuse a policy that cannot be read. One made for other engines is left to the router, which falls back."""
    try:
        if could_be_registry(config.router.policy) and Registry(Path(config.router.policy)).state().active is None:
            return  # the default engine serves until it has one
        name = read_named(config.router.policy)
        if name in ("fixed", "uniform"):
            return
        read(SHIPPED if name == EMBEDDED else Path(name))
    except PolicyRejected as error:
        cure = "use `fixed`, `uniform`, `embedded`, the folder of a trained policy, or of a registry"
        raise ConfigError("router.policy", str(error), cure) from error


def _check_keys(config: DraftpickConfig) -> None:
    """Refuse a file of keys that cannot be read."""
    try:
        Keyring(config.router.keys)
    except ConfigError as error:
        raise ConfigError(f"router.keys.file: {error.field}", error.problem, error.fix) from error


def policy_warning(config: DraftpickConfig) -> str | None:
    """Why the router will refuse the configured policy, if it will."""
    try:
        name = read_named(config.router.policy)
        if name in ("fixed", "uniform"):
            return None
        check_arms(read(SHIPPED if name == EMBEDDED else Path(name)), config.arms)
    except PolicyRejected as error:
        return str(error)
    return None
