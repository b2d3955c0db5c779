"""Profiles of this user's engines on disk, one file for each build and machine: measured once, not at every start."""

import logging
from pathlib import Path

import orjson

from draftpick.engines.atomic_write import atomic_write
from draftpick.engines.cache_dir import cache_dir
from draftpick.engines.profile.identity import EngineIdentity
from draftpick.engines.profile.profile import Profile, ProfileError

_log = logging.getLogger(__name__)


def folder() -> Path:
    """Where profiles lie: below `cache_dir()`."""
    return cache_dir() / "profiles"


def read(identity: EngineIdentity) -> Profile | None:
    """The profile of an engine on its machine; None where there is none. A damaged one is as good as none."""
    path = _path(identity.build, identity.machine)
    try:
        found = Profile.from_json(path.read_bytes())
        if (found.build, found.machine) != (identity.build, identity.machine):
            raise ProfileError("it is of another engine")
    except FileNotFoundError:
        return None
    except (OSError, ProfileError) as error:
        _log.warning("profile %s is left out, measure it anew: %s", path.name, error)
        return None
    return found


def write(profile: Profile) -> Path:
    """Keep a profile, in place of the one there was; returns its file, which is never seen half written."""
    path = _path(profile.build, profile.machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, orjson.dumps(profile.as_json(), option=orjson.OPT_INDENT_2) + b"\n")
    return path


def _path(build: str, machine: str) -> Path:
    return folder() / f"{build}-{machine}.json"
