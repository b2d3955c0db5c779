"""Real code and prose of every Python installation: functions and documentation of the standard library.

The texts depend on the Python version only.
"""

import ast
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from draftpick.policy_training.workloads.data import read

_MAX_SENTENCE_WORDS = 55
_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\")”]))(?<!e\.g\.)(?<!i\.e\.) (?=[A-Z\"“(])")
_CODE_OR_CHANGE = re.compile(r"::=|>>>| \* |--|==|\bversion(?:added|changed)|^(?:Changed|New|Deprecated) in")
_TERM = re.compile(r"\A( *)[^\s.][^\n.]*\n(?=\1 {3})")  # a line of its own above its indented definition
_LIST_MARK = re.compile(r"\A\s*(?:[*-]|\d+\.)\s+")
_FOOTNOTE = re.compile(r"(?<=[\w.,)]) \[\d+\]")
_MARKUP = re.compile(r"(?<![\w\"'*])(?::\w+:)?(\*\*?|``?)(?=\w)([^*`]+)(?<=\w)\1(?![\w\"'*])")


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the standard library: dedented source without decorators, parameter names without self and cls."""

    module: str
    name: str
    source: str
    parameters: tuple[str, ...]

    @property
    def is_special(self) -> bool:
        """True for names such as `__init__`, which Python itself calls."""
        return self.name.startswith("__")


@functools.cache
def functions() -> tuple[Function, ...]:
    """All functions and methods of data/library.yaml's modules, 4 to 40 lines and 150 to 1,400 characters long."""
    found = (function for module in read("library")["modules"] for function in _contents(module)[0])
    return tuple({f.source: f for f in found if _is_readable(f)}.values())


@functools.cache
def documents() -> tuple[tuple[str, ...], ...]:
    """Documents as sentences, each with the following space or blank line, markup and code removed."""
    from pydoc_data.topics import topics

    texts = [text for _, text in sorted(topics.items())]
    texts += [text for module in read("library")["modules"] for text in _contents(module)[1]]
    return tuple(filter(None, map(_sentences, dict.fromkeys(texts))))


def passage(rng: Random, min_words: int, max_words: int) -> str:
    """Return consecutive sentences of one document; `max_words` must be at least `min_words` + 60."""
    wanted = rng.randint(min_words, max_words - _MAX_SENTENCE_WORDS)
    while True:
        document, start = rng.choice(_starts())
        if taken := _take(document[start:], wanted):
            return taken


def misspelt(rng: Random, text: str) -> str:
    """Return the text with two adjacent letters swapped inside three to six of its words."""
    places = [m.start() + rng.randint(1, len(m[0]) - 3) for m in re.finditer(r"\b[a-z]{5,}\b", text)]
    places = [i for i in places if text[i] != text[i + 1]]
    for i in rng.sample(places, min(len(places), rng.randint(3, 6))):
        text = text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    return text


def frequent_words(text: str) -> list[str]:
    """Return the five most frequent long words of the text."""
    words = re.findall(r"\b[a-z]{5,}\b", text)
    return sorted(dict.fromkeys(words), key=words.count, reverse=True)[:5]


@functools.cache
def _starts() -> tuple[tuple[tuple[str, ...], int], ...]:
    """Every document and start of a passage in it."""
    return tuple((document, i) for document in documents() for i in range(len(document)))


def _take(sentences: tuple[str, ...], wanted: int) -> str:
    """Return the first sentences with `wanted` words in total; "" if there are fewer."""
    words = 0
    for end, sentence in enumerate(sentences, start=1):
        words += len(sentence.split())
        if words >= wanted:
            return "".join(sentences[:end]).strip()
    return ""


@functools.cache
def _contents(module: str) -> tuple[tuple[Function, ...], tuple[str, ...]]:
    """Functions and docstrings of a module, read together since syntax trees are too large to keep."""
    source = inspect.getsource(importlib.import_module(module))
    tree, lines = ast.parse(source), source.splitlines()
    return tuple(_function(module, node, lines) for node in _definitions(tree)), tuple(_docstrings(tree))


def _definitions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Yield functions at the top of a module and methods of its classes."""
    for node in tree.body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        yield from (n for n in inside if isinstance(n, ast.FunctionDef))


def _function(module: str, node: ast.FunctionDef, lines: list[str]) -> Function:
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return Function(
        module=module,
        name=node.name,
        source=textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])),
        parameters=tuple(a.arg for a in arguments if a.arg not in ("self", "cls")),
    )


def _is_readable(function: Function) -> bool:
    """True for plain text of a length suitable for a small model."""
    source = function.source
    return 150 <= len(source) <= 1400 and 4 <= source.count("\n") + 1 <= 40 and source.isascii() and "```" not in source


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield docstrings of a module, its classes and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def _sentences(text: str) -> tuple[str, ...]:
    """Sentences of a document's prose; a paragraph with an endless sentence is dropped."""
    paragraphs = (_unwrap(block) for block in re.split(r"\n\s*\n", text))
    return tuple(s for p in paragraphs if _is_prose(p) for s in _spaced(_SENTENCE_END.split(p)))


def _spaced(sentences: list[str]) -> Iterator[str]:
    """Yield a paragraph's sentences with the following space; nothing if one is endless."""
    if max(len(s.split()) for s in sentences) <= _MAX_SENTENCE_WORDS:
        yield from (s + " " for s in sentences[:-1])
        yield sentences[-1] + "\n\n"


def _unwrap(block: str) -> str:
    """One paragraph on one line, without the defined term, list marks and inline markup."""
    block = _LIST_MARK.sub("", _TERM.sub("", block))
    block = re.sub(r"(?<=[a-z])-\n\s*(?=[a-z])", "-", block)
    return _FOOTNOTE.sub("", _MARKUP.sub(r"\2", " ".join(block.split())))


def _is_prose(paragraph: str) -> bool:
    """Distinguish written sentences from code, grammar, tables, headings and notes on versions."""
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    return (
        len(paragraph.split()) >= 8
        and letters >= 0.9 * len(paragraph)
        and bool(re.match(r"[A-Z\"“].*[.!?][\")”]?$", paragraph))
        and not _CODE_OR_CHANGE.search(paragraph)
    )
