"""Checks of network exposure."""

from collections.abc import Iterator

from draftpick.deploy.doctor.context import LOOPBACK, DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning
from draftpick.engines.errors import ConfigError
from draftpick.router.http.auth import Keyring


@check("router", "engines listen on the narrowest address")
def engine_host(context: DoctorContext) -> Iterator[Finding]:
    """Engines need no key: a client with access to their ports bypasses the router."""
    host = context.config.engine_host
    if host in LOOPBACK or all(engine.kind == "url" for engine in context.config.engines):
        return
    why = "engines need no key: access to their ports bypasses the router's keys, limits and records"
    if host == "node":
        yield note(
            "engine_host", "node: engines listen on their node's address", "protect them by a network policy", why
        )
    else:
        yield warning("engine_host", host, "127.0.0.1 on one machine; `node` on a cluster", why)


@check("router", "the router requires keys")
def keys(context: DoctorContext) -> Iterator[Finding]:
    """A router open to the network must require keys."""
    try:
        asked = bool(Keyring(context.config.router.keys))
    except ConfigError as error:
        yield problem("router.keys.file", f"{error.field}: {error.problem}", error.fix, "the router would not start")
        return
    if not asked and context.host not in LOOPBACK:
        yield problem(
            "router.keys", f"no key is required, and the router listens on {context.host}",
            "draftpick keys new NAME --file keys.yaml, then router.keys.file: keys.yaml",
            "any client may then use the engines, pin them, and change the policy",
        )  # fmt: skip


@check("router", "keys are restricted to the necessary paths")
def paths(context: DoctorContext) -> Iterator[Finding]:
    """Some vLLM endpoints stop it, or run code in it."""
    if "*" in context.config.router.paths:
        yield warning(
            "router.paths", "any key may use any endpoint of an engine", "remove it, or list the required paths",
            "vLLM's own endpoints are forwarded as well, such as those that put it to sleep",
        )  # fmt: skip
    for i, engine in enumerate(context.config.engines):
        if engine.deployment.env.get("VLLM_SERVER_DEV_MODE", "0") not in ("", "0"):
            yield warning(
                f"engines.{i}.deployment.env.VLLM_SERVER_DEV_MODE", f"engine {engine.name} has development endpoints",
                "remove it", "they can put the engine to sleep, reset its caches and run calls in its workers",
            )  # fmt: skip


@check("fleet", "traffic to external engines is encrypted")
def plain_http(context: DoctorContext) -> Iterator[Finding]:
    """Over http, prompts and passwords in URLs are not encrypted."""
    for i, engine in enumerate(context.config.engines):
        if engine.url is None or engine.url.scheme != "http" or (engine.url.host or "").strip("[]") in LOOPBACK:
            continue
        if engine.url.password:
            yield warning(
                f"engines.{i}.url", f"engine {engine.name}: a password over http", "https",
                "it is sent unencrypted",
            )  # fmt: skip
        else:
            yield note(
                f"engines.{i}.url", f"engine {engine.name} is used over http", "https, unless the network is trusted",
                "prompts and answers are sent unencrypted",
            )  # fmt: skip
