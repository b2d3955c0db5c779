"""Resolves the configured policy: a single one, or those of a registry, with a possible candidate."""

from dataclasses import dataclass
from pathlib import Path

from draftpick.router.config.router_config import RouterConfig
from draftpick.router.errors import PolicyRejected
from draftpick.router.policies import load
from draftpick.router.policies.artifact import MANIFEST
from draftpick.router.policies.base import Policy
from draftpick.router.policies.baselines import NAMES, FixedPolicy
from draftpick.router.registry.registry import Registry, is_registry


@dataclass(frozen=True, slots=True)
class ResolvedPolicy:
    """The policy to serve, and a readable candidate that decides a share of the requests."""

    policy: Policy
    candidate: Policy | None = None
    share: float = 0.0
    candidate_rejected: str | None = None


def read_named(name: str) -> str:
    """Resolve a registry to its active policy's folder; other names stay. Raises `PolicyRejected`."""
    if name not in NAMES and Path(name).is_file():
        raise PolicyRejected(
            f"{name} is a file: files that name a policy are no longer read (make a registry with `draftpick policies "
            "activate FOLDER --registry REGISTRY`, and name its folder)"
        )
    return str(Registry(Path(name)).active_folder()) if could_be_registry(name) else name


def resolve(name: str, arms: tuple[str, ...], default: str) -> ResolvedPolicy:
    """Load the policies of a name, a folder or a registry. Raises `PolicyRejected`."""
    policy = load(read_named(name), arms, default)
    if not could_be_registry(name):
        return ResolvedPolicy(policy)
    registry = Registry(Path(name))
    candidate = registry.state().candidate
    if candidate is None:
        return ResolvedPolicy(policy)
    try:
        tried = load(str(registry.folder(candidate.id)), arms, default)
    except PolicyRejected as error:
        return ResolvedPolicy(policy, candidate_rejected=str(error))
    return ResolvedPolicy(policy, tried, candidate.share)


def could_be_registry(name: str) -> bool:
    """True if the folder contains a registry, or may later."""
    path = Path(name)
    return name not in NAMES and (is_registry(path) or (path.is_dir() and not (path / MANIFEST).is_file()))


def resolve_configured(config: RouterConfig, arms: tuple[str, ...]) -> tuple[ResolvedPolicy, str | None]:
    """Return (policies, None), or (the default engine, why the configured policy was rejected)."""
    try:
        return resolve(config.policy, arms, config.default_engine), None
    except PolicyRejected as error:
        return ResolvedPolicy(FixedPolicy(arms, config.default_engine)), str(error)
