"""The cache folder for models, profiles and other derived files."""

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Return `$DRAFTPICK_CACHE`, or the user's cache folder of this platform."""
    override = os.environ.get("DRAFTPICK_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("draftpick")
