"""Shared functions of generated Markdown pages."""

import re

_NOT_IN_ANCHORS = re.compile(r"[^\w\- ]")


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading: its text without markup, in lower case, with hyphens for spaces."""
    return _NOT_IN_ANCHORS.sub("", heading.lower()).replace(" ", "-")
