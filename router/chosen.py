"""Which policies a configuration names: one, or those of a registry, where a candidate may be on its way."""

from dataclasses import dataclass
from pathlib import Path

from router.config import RouterConfig
from router.errors import PolicyRefused
from router.pointer import follow
from router.policies import load
from router.policies.artifact import MANIFEST
from router.policies.base import Policy
from router.policies.simple import NAMES, FixedPolicy
from router.registry import Registry, is_registry


@dataclass(frozen=True, slots=True)
class Chosen:
    """The policy that shall serve, and a candidate that decides a share of the requests, if it can be read."""

    policy: Policy
    candidate: Policy | None = None
    share: float = 0.0
    candidate_refused: str | None = None


def named(name: str) -> str:
    """What a pointer or a registry names: a policy's name or folder. Raises `PolicyRefused`."""
    name = follow(name)
    return str(Registry(Path(name)).active_folder()) if may_be_registry(name) else name


def choose(name: str, arms: tuple[str, ...], default: str) -> Chosen:
    """What a name, a folder, a pointer or a registry names. Raises `PolicyRefused`."""
    policy = load(named(name), arms, default)
    if not may_be_registry(name):
        return Chosen(policy)
    registry = Registry(Path(name))
    candidate = registry.state().candidate
    if candidate is None:
        return Chosen(policy)
    try:
        tried = load(str(registry.folder(candidate.id)), arms, default)
    except PolicyRefused as error:
        return Chosen(policy, candidate_refused=str(error))
    return Chosen(policy, tried, candidate.share)


def may_be_registry(name: str) -> bool:
    """Whether a registry lies in this folder, or may once lie there."""
    path = Path(name)
    return name not in NAMES and (is_registry(path) or (path.is_dir() and not (path / MANIFEST).is_file()))


def choose_policy(config: RouterConfig, arms: tuple[str, ...]) -> tuple[Chosen, str | None]:
    """(policies, None), or (the default engine, why the configured policy was refused)."""
    try:
        return choose(config.policy, arms, config.default_engine), None
    except PolicyRefused as error:
        return Chosen(FixedPolicy(arms, config.default_engine)), str(error)
