"""Checks of who can reach what."""

from collections.abc import Iterator

from draftpick.deploy.doctor.context import LOOPBACK, DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning
from draftpick.engines.errors import ConfigError
from draftpick.router.http.auth import Keyring


@check("router", "engines listen no wider than they must")
def engine_host(context: DoctorContext) -> Iterator[Finding]:
    """Engines ask for no key: who reaches their ports goes past the router."""
    host = context.config.engine_host
    if host in LOOPBACK or all(engine.kind == "url" for engine in context.config.engines):
        return
    why = "engines ask for no key: who reaches their ports goes past the router's keys, limits and records"
    if host == "node":
        yield note("engine_host", "node: engines listen on their node's address", "a network policy before them", why)
    else:
        yield warning("engine_host", host, "127.0.0.1 on one machine; `node` on a cluster", why)


@check("router", "who can reach the router needs a key")
def keys(context: DoctorContext) -> Iterator[Finding]:
    """A router that is open to the network asks for keys."""
    try:
        asked = bool(Keyring(context.config.router.keys))
    except ConfigError as error:
        yield problem("router.keys.file", f"{error.field}: {error.problem}", error.fix, "the router would not start")
        return
    if not asked and context.host not in LOOPBACK:
        yield problem(
            "router.keys", f"nobody is asked for a key, and the router is to listen on {context.host}",
            "draftpick keys new NAME --file keys.yaml, then router.keys.file: keys.yaml",
            "anybody may then use the engines, pin them, and change the policy",
        )  # fmt: skip


@check("router", "keys reach no more than they need")
def paths(context: DoctorContext) -> Iterator[Finding]:
    """Some of vLLM's pages stop it, or run code in it."""
    if "*" in context.config.router.paths:
        yield warning(
            "router.paths", "any key may ask anything of an engine", "remove it, or name the pages that clients need",
            "vLLM's own pages go through as well, such as those that put it to sleep",
        )  # fmt: skip
    for i, engine in enumerate(context.config.engines):
        if engine.deployment.env.get("VLLM_SERVER_DEV_MODE", "0") not in ("", "0"):
            yield warning(
                f"engines.{i}.deployment.env.VLLM_SERVER_DEV_MODE", f"engine {engine.name} has pages for developers",
                "remove it", "they put the engine to sleep, reset its caches and run calls in its workers",
            )  # fmt: skip


@check("fleet", "what goes to engines elsewhere is not readable on its way")
def plain_http(context: DoctorContext) -> Iterator[Finding]:
    """Prompts, and passwords of addresses, go over the network as they are where the scheme is http."""
    for i, engine in enumerate(context.config.engines):
        if engine.url is None or engine.url.scheme != "http" or (engine.url.host or "").strip("[]") in LOOPBACK:
            continue
        if engine.url.password:
            yield warning(
                f"engines.{i}.url", f"engine {engine.name}: a password over http", "https",
                "everybody on the way can read it",
            )  # fmt: skip
        else:
            yield note(
                f"engines.{i}.url", f"engine {engine.name} is asked over http", "https, where the network is not yours",
                "prompts and answers can be read on the way",
            )  # fmt: skip
