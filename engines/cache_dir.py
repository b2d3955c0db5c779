"""The folder that models, profiles and other things worth keeping lie in."""

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """`$DRAFTPICK_CACHE`, else the user's cache folder of this platform."""
    override = os.environ.get("DRAFTPICK_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("draftpick")
