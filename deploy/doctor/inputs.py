"""Builds the context of checks from a configuration, URLs, or both."""

from collections.abc import Mapping, Sequence

from draftpick.deploy.config import FLEETS, resolve
from draftpick.deploy.doctor.context import DoctorContext, Machine, last_records
from draftpick.deploy.doctor.probe import RunningEngine, ask
from draftpick.engines.config import EMBEDDED
from draftpick.engines.errors import ConfigError
from draftpick.engines.external import access_of
from draftpick.router.config.former_fields import collected
from draftpick.router.config.router_config import ConfigProblems, DraftpickConfig, load_config


def addresses_of(texts: Sequence[str]) -> dict[str, str]:
    """Parse `NAME=URL` texts. Raises `ConfigError`."""
    pairs = [text.partition("=") for text in texts]
    for text, (name, _, url) in zip(texts, pairs, strict=True):
        if not name or not url.startswith(("http://", "https://")):
            raise ConfigError("--url", f"{text!r} is not NAME=URL", "for example suffix=http://10.0.0.8:8000")
    return {name: url for name, _, url in pairs}


def fleet_of(config: str | None) -> DraftpickConfig:
    """The configuration of a file or of a shipped fleet with valid fields. Raises `ConfigError`.

    Further constraints of `draftpick.deploy.config.resolve` are left to the checks, which report all problems together.
    """
    source = config or EMBEDDED
    try:
        return resolve(source)
    except ConfigProblems:
        raise
    except ConfigError as error:
        if error.field == "config":
            raise
        shipped = FLEETS / f"{source}.yaml"
        return load_config(shipped if shipped.is_file() else source)


def read_context(config: str | None, addresses: Mapping[str, str], host: str, patience_s: float) -> DoctorContext:
    """Probe the engines with a URL, and collect all other inputs of checks. Raises `ConfigError`."""
    if config is None and addresses:
        running = ask(addresses, patience_s)
        fleet = load_config(_only_addresses(addresses, running))
        return DoctorContext(fleet, Machine.here(), running, host=host, written=False)
    with collected() as former_fields:
        fleet = fleet_of(config)
    if unknown := sorted(addresses.keys() - set(fleet.names)):
        raise ConfigError("--url", f"unknown engine {', '.join(unknown)}", f"engines: {', '.join(fleet.names)}")
    places = {engine.name: str(engine.url) for engine in fleet.engines if engine.url} | dict(addresses)
    running, (records, damaged) = ask(places, patience_s, access_of(fleet.engines)), last_records(fleet)
    return DoctorContext(fleet, Machine.here(), running, records, damaged, host, former_fields=former_fields)


def _only_addresses(addresses: Mapping[str, str], running: Mapping[str, RunningEngine]) -> dict[str, object]:
    """A configuration of these engines only; the target is the model of the first."""
    served = [one.models[0].id for one in running.values() if one.models]
    return {
        "target": {"name": served[0] if served else "unknown"},
        "engines": [{"name": name, "url": url} for name, url in addresses.items()],
        "router": {"default_engine": next(iter(addresses))},
    }
