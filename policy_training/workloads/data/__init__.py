"""Phrases, word lists and templates of prompts, as YAML."""

import functools
from pathlib import Path
from typing import Any

import yaml


@functools.cache
def read(name: str) -> dict[str, Any]:
    """Read a data file by name, cached."""
    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text("utf-8"))
    return content
