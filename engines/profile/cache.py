"""The on-disk cache of engine profiles, one file per build and machine."""

import logging
from pathlib import Path

import orjson

from draftpick.engines.atomic_write import atomic_write
from draftpick.engines.cache_dir import cache_dir
from draftpick.engines.profile.identity import EngineIdentity
from draftpick.engines.profile.profile import Profile, ProfileError

_log = logging.getLogger(__name__)


def folder() -> Path:
    """Return the folder of profiles, below `cache_dir()`."""
    return cache_dir() / "profiles"


def read(identity: EngineIdentity) -> Profile | None:
    """Return the profile of an engine on its machine; None if missing or damaged."""
    path = _path(identity.build, identity.machine)
    try:
        found = Profile.from_json(path.read_bytes())
        if (found.build, found.machine) != (identity.build, identity.machine):
            raise ProfileError("it belongs to another engine")
    except FileNotFoundError:
        return None
    except (OSError, ProfileError) as error:
        _log.warning("ignoring profile %s, run `draftpick profile` again: %s", path.name, error)
        return None
    return found


def write(profile: Profile) -> Path:
    """Write a profile atomically, replacing an older one; return its path."""
    path = _path(profile.build, profile.machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, orjson.dumps(profile.as_json(), option=orjson.OPT_INDENT_2) + b"\n")
    return path


def _path(build: str, machine: str) -> Path:
    return folder() / f"{build}-{machine}.json"
