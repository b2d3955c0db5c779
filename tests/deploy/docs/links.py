"""Headings, links and code in the text of a Markdown file, with the anchors that GitHub gives to headings."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from draftpick.deploy.generate.markdown import slug

_IN_HTML = re.compile(r"""(?:href|src)=["']([^"']+)""")


@dataclass(frozen=True, slots=True)
class Found:
    """Something in the text of a file, and the line that its paragraph begins at, from 1."""

    text: str
    line: int


def anchors(path: Path) -> set[str]:
    """The anchors of a file's headings; of headings that are alike, all but the first carry a number."""
    seen, found = Counter[str](), set()
    for opening, inline in pairwise(MarkdownIt().parse(path.read_text())):
        if opening.type == "heading_open":
            name = slug("".join(child.content for child in inline.children or () if child.type != "html_inline"))
            found.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return found


def links(path: Path) -> list[Found]:
    """Where all links and images of a file lead."""
    return [Found(target, line) for token, line in _tokens(path) for target in _targets(token)]


def code(path: Path) -> list[Found]:
    """All code in the text of a file, its blocks left out."""
    return [Found(token.content, line) for token, line in _tokens(path) if token.type == "code_inline"]


def _tokens(path: Path) -> Iterator[tuple[Token, int]]:
    """Blocks, and what is in their text, with the line that the block begins at."""
    for block in MarkdownIt().parse(path.read_text()):
        line = (block.map or [0])[0] + 1
        yield from ((token, line) for token in (block, *(block.children or ())))


def _targets(token: Token) -> list[str]:
    if token.type in ("html_block", "html_inline"):
        return _IN_HTML.findall(token.content)
    name = {"link_open": "href", "image": "src"}.get(token.type)
    return [str(token.attrs[name])] if name else []
