"""Fenced code blocks of a Markdown file, so that what a text shows can be run."""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

_NAME = re.compile(r"<!-- block: (.+?) -->")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: the first word after its fence, what it holds, and the line of its fence, from 1.

    `name` stands in a comment on the line before, `<!-- block: engines.yaml -->`; None without one.
    """

    language: str
    text: str
    line: int
    name: str | None = None


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a file in their order, those in lists too."""
    found, names = [], {}
    for token in MarkdownIt().parse(path.read_text()):
        start, end = token.map or (0, 0)
        if token.type == "html_block" and (name := _NAME.search(token.content)):
            names[end] = name[1]
        elif token.type == "fence":
            language, *_ = [*token.info.split(), ""]
            found.append(Block(language, token.content, start + 1, names.get(start)))
    return found
