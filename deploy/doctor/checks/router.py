"""Checks of the router: its policy, its limits, its records."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning
from draftpick.engines.config import EMBEDDED
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.errors import PolicyRejected
from draftpick.router.features.lexical import VERSION
from draftpick.router.policies import NAMES, SHIPPED, artifact, check_arms, read
from draftpick.router.policies.base import Policy
from draftpick.router.registry.registry import Registry
from draftpick.router.registry.resolve import could_be_registry, read_named

_OLD = timedelta(days=60)
_FEW_REQUESTS = 200
_MIN_FREE = 2**30
_DEAR_SHADOWS = 0.2


def _folder(router: RouterConfig) -> Path | None:
    """Where the policy lies that would serve; None for one that is no folder. Raises `PolicyRejected`."""
    name = read_named(router.policy)
    if name == EMBEDDED:
        return SHIPPED
    return None if name in NAMES else Path(name)


def _policy(router: RouterConfig) -> Policy | None:
    """The policy that would serve, if it can be read and is one that was learned."""
    try:
        folder = _folder(router)
        return read(folder) if folder is not None else None
    except PolicyRejected:
        return None


def _waits(router: RouterConfig) -> bool:
    """Whether the policy is a registry that has none yet."""
    try:
        return could_be_registry(router.policy) and Registry(Path(router.policy)).state().active is None
    except PolicyRejected:
        return False


@check("router", "the policy is one that this fleet can use")
def policy(context: DoctorContext) -> Iterator[Finding]:
    """A policy that the router refuses leaves all requests to the default engine."""
    router, field = context.config.router, "router.policy"
    why = f"the router refuses it, and sends every request to {router.default_engine}"
    cure = "draftpick collect, then draftpick train, with this configuration"
    if _waits(router):
        yield note(field, "a registry without an active policy", "draftpick retrain", why.split(", and ")[1])
        return
    try:
        folder = _folder(router)
        found = check_arms(read(folder), context.config.arms) if folder is not None else None
    except PolicyRejected as error:
        yield problem(field, str(error), cure, why)
        return
    if router.policy == "fixed":
        yield note(
            field, f"fixed: every request goes to {router.default_engine}", cure,
            "nothing is routed; that is right for the time before there is a policy",
        )  # fmt: skip
    elif router.policy == "uniform":
        yield warning(
            field, "uniform: engines are drawn by lot", cure,
            "that is for measuring: on average no faster than a middling engine",
        )  # fmt: skip
    if folder == SHIPPED and context.config.target.source != EMBEDDED and any(context.started):
        yield problem(
            field, "embedded, and the target is another model", cure,
            "it was made for the embedded target on two CPU cores: its times and its kinds of text are not yours",
        )  # fmt: skip
    if found is not None:
        yield from _features(found, router)


def _features(found: Policy, router: RouterConfig) -> Iterator[Finding]:
    """A policy needs the features that it was trained on."""
    needs, made = found.featurizer, router.featurizer
    if needs is None:
        return
    wrong = made in ("none", "lexical", "static") and not needs.startswith(made)
    if wrong or not needs.endswith(VERSION):
        yield problem(
            "router.featurizer", f"the policy needs {needs!r}, the router makes {made!r} of {VERSION}",
            "featurizer: auto, and a policy that this version trained", "it is refused, and the default engine serves",
        )  # fmt: skip


@check("router", "the policy is not old")
def policy_age(context: DoctorContext) -> Iterator[Finding]:
    """By its manifest: traffic and engines change, and little data knows little."""
    try:
        folder = _folder(context.config.router)
        if folder is None or folder == SHIPPED:
            return
        provenance: dict[str, Any] = artifact.read(folder)[0].get("provenance") or {}
        created = datetime.fromisoformat(str(provenance.get("created")))
    except (PolicyRejected, ValueError):
        return
    age = datetime.now(UTC) - (created if created.tzinfo else created.replace(tzinfo=UTC))
    if age > _OLD:
        yield note(
            "router.policy", f"it was trained {age.days} days ago", "draftpick retrain --watch, with a registry",
            "requests, engines and drafters change: whether it still saves time, nobody has asked since",
        )  # fmt: skip
    if (requests := provenance.get("requests", _FEW_REQUESTS)) < _FEW_REQUESTS:
        yield note(
            "router.policy", f"it was trained on {requests} requests", "draftpick label -n 2000, and train again",
            "a few hundred requests are needed before a policy knows kinds of text from one another",
        )  # fmt: skip


@check("router", "the router goes on learning")
def learning(context: DoctorContext) -> Iterator[Finding]:
    """A registry is for policies that follow the traffic; for that, other engines must be tried."""
    router = context.config.router
    if could_be_registry(router.policy) and not router.explore and not router.shadow.share:
        yield warning(
            "router.explore", "0, without shadows, and the policy is a registry",
            "explore: 0.03, or shadow: {share: 0.01}",
            "records then tell of the chosen engines alone, and no retraining can find a better choice",
        )  # fmt: skip
    extra = router.shadow.share * (len(context.config.arms) - 1)
    if extra > _DEAR_SHADOWS:
        yield note(
            "router.shadow.share", f"shadows add {extra:.0%} to the requests", "shadow: {share: 0.01}",
            "each shadowed request is answered by every other engine, too",
        )  # fmt: skip
    if router.seed is not None:
        yield note(
            "router.seed", "choices can be foretold", "remove it outside of tests",
            "and several routers with one seed draw alike, which spoils what exploration tells",
        )  # fmt: skip


@check("router", "places of the router and of the engines fit")
def limits(context: DoctorContext) -> Iterator[Finding]:
    """A router that does not look at load fills an engine's own queue, while another engine may have room."""
    bounds, blind = context.config.router.limits, not context.config.router.load.enabled
    for at, engine, kwargs in context.started:
        running = kwargs.get("max_num_seqs")
        if blind and isinstance(running, int) and bounds.max_in_flight_per_replica > running:
            yield note(
                "router.limits.max_in_flight_per_replica",
                f"{bounds.max_in_flight_per_replica}, and engine {engine.name} runs {running} at once "
                f"({context.place(at, 'max_num_seqs')})",
                f"max_in_flight_per_replica: {running} to {2 * running}",
                "the rest waits in the engine's own queue, though another engine may have room",
            )  # fmt: skip
            return
    known = [(engine, kwargs.get("max_num_seqs")) for _, engine, kwargs in context.started]
    places = sum(running * engine.deployment.num_replicas for engine, running in known if isinstance(running, int))
    if known and all(isinstance(running, int) for _, running in known):
        allowed = bounds.max_in_flight * context.config.router.num_replicas
        if allowed < places:
            yield note(
                "router.limits.max_in_flight", f"{allowed}, and the engines run {places} at once",
                f"max_in_flight: {places}", "the engines are never full, and clients wait before the router",
            )  # fmt: skip


@check("fleet", "Ray Serve's own options hold nothing back")
def serve_options(context: DoctorContext) -> Iterator[Finding]:
    """Requests reach engines past Serve; the router's own come through it."""
    router, name = context.config.router, "max_ongoing_requests"
    needed = router.limits.max_in_flight + router.limits.max_queued
    ongoing = router.deployment_options.get(name)
    if isinstance(ongoing, int) and ongoing < needed:
        yield warning(
            f"router.deployment_options.{name}", f"{ongoing}, and the router's limits are {needed}",
            f"{name}: {needed} or more",
            "Serve holds the rest back before the router sees it: priorities, keys and deadlines do not count there",
        )  # fmt: skip
    for i, engine in enumerate(context.config.engines):
        place = f"engines.{i}.deployment.options"
        if name in engine.deployment.options:
            yield note(
                f"{place}.{name}", "it does not bound an engine's requests", "router.limits.max_in_flight_per_replica",
                "requests reach engines over HTTP, past Serve's handles",
            )  # fmt: skip
        if "autoscaling_config" in engine.deployment.options:
            yield problem(
                f"{place}.autoscaling_config", f"engine {engine.name} would never scale", "deployment.autoscaling",
                "requests reach engines past Serve's handles, so that its own policy sees none of them",
            )  # fmt: skip


@check("router", "records are kept, and there is room for them")
def records(context: DoctorContext) -> Iterator[Finding]:
    """Without records nothing is learned; without room they are dropped."""
    config = context.config.router.records
    if config.dir is None:
        yield note(
            "router.records.dir", "records are not kept", "records: {dir: records}",
            "without them there is no retraining, and nobody can tell what routing saves (draftpick headroom)",
        )  # fmt: skip
        return
    folder = config.dir.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield problem("router.records.dir", f"{there} is not writable", "another folder", "the router would not start")
        return
    free, most = shutil.disk_usage(there).free, config.segment_bytes * config.keep_segments
    if free < _MIN_FREE:
        yield warning(
            "router.records.dir", f"{free / 2**20:.0f} MiB are free", "another disk, or room on this one",
            "a full disk costs records: they are dropped and counted",
        )  # fmt: skip
    elif free < most * context.config.router.num_replicas:
        yield note(
            "router.records.keep_segments", f"{most / 2**30:.1f} GiB a router, {free / 2**30:.1f} GiB are free",
            "fewer keep_segments", "old segments go when there are more, and not when the disk is full",
        )  # fmt: skip
