"""Checks of the router: its policy, limits, and records."""

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
    """Folder of the configured policy; None if it is not a folder. Raises `PolicyRejected`."""
    name = read_named(router.policy)
    if name == EMBEDDED:
        return SHIPPED
    return None if name in NAMES else Path(name)


def _policy(router: RouterConfig) -> Policy | None:
    """The configured policy, if it is readable and learned."""
    try:
        folder = _folder(router)
        return read(folder) if folder is not None else None
    except PolicyRejected:
        return None


def _waits(router: RouterConfig) -> bool:
    """True if the policy is a registry without any policy yet."""
    try:
        return could_be_registry(router.policy) and Registry(Path(router.policy)).state().active is None
    except PolicyRejected:
        return False


@check("router", "the policy fits this fleet")
def policy(context: DoctorContext) -> Iterator[Finding]:
    """A rejected policy leaves all requests to the default engine."""
    router, field = context.config.router, "router.policy"
    why = f"the router rejects it, and sends every request to {router.default_engine}"
    fix = "draftpick collect, then draftpick train, with this configuration"
    if _waits(router):
        yield note(field, "a registry without an active policy", "draftpick retrain", why.split(", and ")[1])
        return
    try:
        folder = _folder(router)
        found = check_arms(read(folder, context.config.arms), context.config.arms) if folder is not None else None
    except PolicyRejected as error:
        yield problem(field, str(error), fix, why)
        return
    if router.policy == "fixed":
        yield note(
            field, f"fixed: every request goes to {router.default_engine}", fix,
            "nothing is routed; use it until there is a policy",
        )  # fmt: skip
    elif router.policy == "uniform":
        yield warning(
            field, "uniform: engines are drawn at random", fix,
            "this is for measurements: as fast as the average engine",
        )  # fmt: skip
    if folder == SHIPPED and context.config.target.source != EMBEDDED and any(context.started):
        yield problem(
            field, "embedded, but the target is another model", fix,
            "it was trained for the embedded target on two CPU cores: times and tasks differ from yours",
        )  # fmt: skip
    if found is not None:
        yield from _features(found, router)


def _features(found: Policy, router: RouterConfig) -> Iterator[Finding]:
    """A policy needs the features of its training."""
    needs, made = found.featurizer, router.featurizer
    if needs is None:
        return
    wrong = made in ("none", "lexical", "static") and not needs.startswith(made)
    if wrong or not needs.endswith(VERSION):
        yield problem(
            "router.featurizer", f"the policy needs {needs!r}, the router computes {made!r} of {VERSION}",
            "featurizer: auto, and a policy trained by this version", "it is rejected, and the default engine serves",
        )  # fmt: skip


@check("router", "the policy is recent")
def policy_age(context: DoctorContext) -> Iterator[Finding]:
    """By its manifest: traffic and engines change, and small datasets carry little information."""
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
            "requests, engines and drafters change: whether it still saves time is unknown",
        )  # fmt: skip
    if (requests := provenance.get("requests", _FEW_REQUESTS)) < _FEW_REQUESTS:
        yield note(
            "router.policy", f"it was trained on {requests} requests", "draftpick label -n 2000, and train again",
            "a policy needs a few hundred requests to distinguish tasks",
        )  # fmt: skip


@check("router", "no field has a former name")
def former_fields(context: DoctorContext) -> Iterator[Finding]:
    """Former names of fields are accepted for one release."""
    for line in context.former_fields:
        yield warning(line.split()[0], line, f"write {line.split()[-1]}", "the next release accepts its new name alone")


@check("router", "the router collects data for retraining")
def learning(context: DoctorContext) -> Iterator[Finding]:
    """A registry is for retraining on traffic, which needs exploration."""
    router = context.config.router
    rate = router.exploration.rate
    explores = router.online.correction.enabled if rate is None else rate > 0
    if could_be_registry(router.policy) and not explores and not router.shadow.sample_rate:
        yield warning(
            "router.exploration.rate", "0, without shadows, and the policy is a registry",
            "exploration: {rate: 0.03}, or shadow: {sample_rate: 0.01}",
            "records then only cover the chosen engines, and retraining cannot find better choices",
        )  # fmt: skip
    extra = router.shadow.sample_rate * (len(context.config.names) - 1)
    if extra > _DEAR_SHADOWS:
        yield note(
            "router.shadow.sample_rate", f"shadows add {extra:.0%} to the requests", "shadow: {sample_rate: 0.01}",
            "every other engine also answers each shadowed request",
        )  # fmt: skip
    if router.seed is not None:
        yield note(
            "router.seed", "choices are predictable", "remove it outside of tests",
            "routers with equal seeds draw equal choices, which invalidates exploration",
        )  # fmt: skip


@check("router", "limits of the router and of the engines match")
def limits(context: DoctorContext) -> Iterator[Finding]:
    """Otherwise the router fills one engine's queue, while another engine may be idle."""
    bounds, blind = context.config.router.admission, not context.config.router.load.enabled
    for at, engine, kwargs in context.started:
        running = kwargs.get("max_num_seqs")
        if blind and isinstance(running, int) and bounds.max_in_flight_per_replica > running:
            yield note(
                "router.admission.max_in_flight_per_replica",
                f"{bounds.max_in_flight_per_replica}, and engine {engine.name} runs {running} concurrently "
                f"({context.place(at, 'max_num_seqs')})",
                f"max_in_flight_per_replica: {running} to {2 * running}",
                "the rest waits in the engine's own queue, though another engine may be idle",
            )  # fmt: skip
            return
    known = [(engine, kwargs.get("max_num_seqs")) for _, engine, kwargs in context.started]
    places = sum(running * engine.deployment.num_replicas for engine, running in known if isinstance(running, int))
    if known and all(isinstance(running, int) for _, running in known):
        allowed = bounds.max_in_flight * context.config.router.num_replicas
        if allowed < places:
            yield note(
                "router.admission.max_in_flight", f"{allowed}, and the engines run {places} concurrently",
                f"max_in_flight: {places}", "the engines are never full, and clients wait in the router's queue",
            )  # fmt: skip


@check("fleet", "Ray Serve's own options do not limit requests")
def serve_options(context: DoctorContext) -> Iterator[Finding]:
    """Requests to engines bypass Serve; the router's own pass through it."""
    router, name = context.config.router, "max_ongoing_requests"
    needed = router.admission.max_in_flight + router.admission.max_queued
    ongoing = router.deployment_options.get(name)
    if isinstance(ongoing, int) and ongoing < needed:
        yield warning(
            f"router.deployment_options.{name}", f"{ongoing}, and the router's limits are {needed}",
            f"{name}: {needed} or more",
            "Serve queues the rest before the router: priorities, keys and deadlines have no effect there",
        )  # fmt: skip
    for i, engine in enumerate(context.config.engines):
        place = f"engines.{i}.deployment.options"
        if name in engine.deployment.options:
            yield note(
                f"{place}.{name}", "it does not limit an engine's requests",
                "router.admission.max_in_flight_per_replica",
                "requests reach engines over HTTP and bypass Serve's handles",
            )  # fmt: skip
        if "autoscaling_config" in engine.deployment.options:
            yield problem(
                f"{place}.autoscaling_config", f"engine {engine.name} would never scale", "deployment.autoscaling",
                "requests bypass Serve's handles, so its own autoscaling policy sees none",
            )  # fmt: skip


@check("router", "records are kept, and the disk has space")
def records(context: DoctorContext) -> Iterator[Finding]:
    """Without records there is no learning; on a full disk they are dropped."""
    config = context.config.router.records
    if config.dir is None:
        yield note(
            "router.records.dir", "records are not kept", "records: {dir: records}",
            "without them there is no retraining, and no estimate of what routing saves (draftpick headroom)",
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
            "on a full disk records are dropped and counted",
        )  # fmt: skip
    elif free < most * context.config.router.num_replicas:
        yield note(
            "router.records.keep_segments", f"{most / 2**30:.1f} GiB a router, {free / 2**30:.1f} GiB are free",
            "fewer keep_segments", "old segments are removed beyond this number, not when the disk is full",
        )  # fmt: skip
