"""What the texts say: links lead somewhere, generated pages are up to date, code blocks are what they seem."""

import ast
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from draftpick.deploy.generate import cli_page, config_page
from draftpick.deploy.generate.markdown import slug
from draftpick.engines.errors import ConfigError
from draftpick.router.config.router_config import load_config
from draftpick.router.features.lexical import stored_context
from draftpick.router.http.auth import Key
from draftpick.router.online.events import EVENTS, Event, decode_events
from draftpick.router.online.peer_store import PeerStore
from draftpick.router.records import encode
from draftpick.router.types import Decision, LoadTerms, Outcome, Record
from tests.deploy.docs.code_blocks import Block, blocks
from tests.deploy.docs.command_lines import refusal
from tests.deploy.docs.links import anchors, code, links

ROOT = Path(__file__).parents[3]
OPERATIONS = ROOT / "docs" / "operations.md"
TEXTS = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    + list((ROOT / "docs").glob("*.md"))
    + list((ROOT / "deploy").rglob("*.md"))
)
_ELSEWHERE = re.compile(r"^[a-z]+:", re.IGNORECASE)
_NOT_OURS = {".venv", "runs", "shared"}
_FLEET = {"target", "engines", "router", "engine_kwargs", "engine_host"}
_OTHER_YAML = {"apiVersion", "applications", "scrape_configs", "services"}
"""Top-level keys of files that are no fleets."""
_LEAST = {
    "target": {"name": "m"},
    "engines": [{"name": "plain", "kind": "mock"}],
    "router": {"default_engine": "plain"},
}
_PROGRAMS = re.compile(r"(?:^|/)(draftpick|make|python3?)$")
_ASSIGNMENT = re.compile(r"export$|[A-Z_]+=")
_ENDS = ";&|"
_PACKAGES = ("engines", "router", "policy_training", "deploy", "tests")


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


each_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))


# --- links ---


@each_text
def test_links_lead_to_something_that_is_there(path: Path) -> None:
    wrong = [f"{where(path, link.line)}: {link.text}" for link in links(path) if not _leads_somewhere(path, link.text)]
    assert not wrong


def _leads_somewhere(path: Path, target: str) -> bool:
    if _ELSEWHERE.match(target):
        return True
    file, _, anchor = target.partition("#")
    to = (path.parent / file).resolve() if file else path
    ours = to.is_relative_to(ROOT) and _NOT_OURS.isdisjoint(to.relative_to(ROOT).parts)
    return ours and to.exists() and (not anchor or anchor in _anchors(to))


@cache
def _anchors(path: Path) -> set[str]:
    return anchors(path)


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    text = (
        "# One thing, *another*\n\n## `router.admission[]` it\n\n## Same\n\n## Same\n\n[a](#same-1) ![b](c.png) `d`\n"
    )
    (tmp_path / "x.md").write_text(text)
    assert anchors(tmp_path / "x.md") == {"one-thing-another", "routeradmission-it", "same", "same-1"}
    assert [link.text for link in links(tmp_path / "x.md")] == ["#same-1", "c.png"]
    assert [(one.text, one.line) for one in code(tmp_path / "x.md")] == [("router.admission[]", 3), ("d", 9)]
    assert slug("What it's for") == "what-its-for"


# --- generated pages ---


def test_generated_pages_are_up_to_date() -> None:
    assert config_page.FILE.read_text() == config_page.text(), "python -m draftpick.deploy.generate.config_page"
    assert cli_page.FILE.read_text() == cli_page.text(), "python -m draftpick.deploy.generate.cli_page"


def test_every_field_of_the_configuration_says_what_it_is() -> None:
    rows = [line for line in config_page.text().splitlines() if line.startswith("| `")]
    assert len(rows) > 130
    assert not [row for row in rows if len(row.split(" | ")[-1].strip("| ")) < 8]


# --- code blocks ---


def code_blocks(*languages: str) -> Iterator[tuple[Path, Block]]:
    """Of all texts; what tests/deploy/docs/test_extending.py runs is left out."""
    for path in TEXTS:
        for block in blocks(path):
            if block.language in languages and not (path.name == "extending.md" and block.name):
                yield path, block


def _problem_of_yaml(text: str) -> str | None:
    found = yaml.safe_load(text)
    if isinstance(found, list):
        TypeAdapter(list[Key]).validate_python(found)
        return None
    if _OTHER_YAML & set(found):
        return None
    if unknown := set(found) - _FLEET:
        return f"holds {', '.join(sorted(unknown))}, which no fleet has"
    load_config(_whole(found))
    return None


def _whole(fleet: dict[str, Any]) -> dict[str, Any]:
    """A fleet, or what a text shows of one, with the least that makes it whole."""
    whole: dict[str, Any] = {**_LEAST, **fleet}
    first = next((engine["name"] for engine in whole["engines"]), "none")
    return {**whole, "router": {"default_engine": first, **whole["router"]}}


def test_blocks_of_yaml_are_fleets_that_load() -> None:
    for path, block in code_blocks("yaml"):
        problem = None if block.name == "envoy.yaml" else _problem_of_yaml(block.text)  # Envoy itself checks it
        assert problem is None, f"{where(path, block.line)}: {problem}"


def test_blocks_of_json_and_python_can_be_read() -> None:
    for path, block in code_blocks("json"):
        assert json.loads(block.text) is not None, where(path, block.line)
    for path, block in code_blocks("python"):
        compile(block.text, where(path, block.line), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize(
    "text", ["rooter: {}", "router: {explor: 1}", "engines: []", "- {name: x}", "router: {default_engine: none}"]
)
def test_a_fleet_that_is_wrong_is_told(text: str) -> None:
    try:
        assert _problem_of_yaml(text) is not None
    except (ConfigError, ValueError):
        return


# --- command lines ---


def lines_of(text: str) -> Iterator[list[str]]:
    """The commands of a shell script, as words: each end of a pipe is one, comments and assignments are left out."""
    script = ""
    for line in text.replace("\\\n", " ").splitlines():
        script += f"{line}\n"
        lexer = shlex.shlex(script, posix=True, punctuation_chars=_ENDS)
        lexer.whitespace_split = True
        try:
            found = list(lexer)
        except ValueError:  # a quotation goes on in the next line
            continue
        script = ""
        for ends, group in itertools.groupby(found, key=lambda word: set(word) <= set(_ENDS)):
            words = list(itertools.dropwhile(_ASSIGNMENT.match, group))
            if words and not ends:
                yield words
    assert not script, f"a quotation does not end: {script}"


def _problem_of(words: list[str], *, whole: bool = True) -> str | None:
    """What is wrong with a command line, as far as it is one of ours."""
    program = _PROGRAMS.search(words[0])
    if program is None:
        return None
    match program[1], words[1:]:
        case "draftpick", [*given, before, "..."] if not before.startswith("--"):
            return refusal([*given, before], whole=False)
        case "draftpick", given:
            return refusal(given, whole=whole)
        case "make", given:
            unknown = [one for one in given if "=" not in one and one not in _targets()]
            return f"there is no target {', '.join(unknown)}" if unknown else None
        case _, ["-m", module, *_] if module.split(".")[0] in _PACKAGES:
            file = ROOT.joinpath(*module.split("."))
            runs = file.with_suffix(".py").is_file() or (file / "__main__.py").is_file()
            return None if runs else f"there is no module {module}"
    return None


@cache
def _targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_command_lines_of_blocks_would_run() -> None:
    checked = 0
    for path, block in code_blocks("sh", "bash", "console"):
        for words in lines_of(block.text):
            problem = _problem_of(words)
            assert problem is None, f"{where(path, block.line)}: {shlex.join(words)}: {problem}"
            checked += _PROGRAMS.search(words[0]) is not None
    assert checked > 50


@each_text
def test_command_lines_in_the_text_would_run(path: Path) -> None:
    for one in code(path):
        if not re.match(r"(\S*/)?(draftpick|make|python) ", one.text) or re.match(r"draftpick [A-Z]", one.text):
            continue
        for words in lines_of(one.text):
            problem = _problem_of(words, whole=False)
            assert problem is None, f"{where(path, one.line)}: {one.text}: {problem}"


def test_command_lines_are_taken_apart() -> None:
    text = "A=1 draftpick x --y 'a\nb'  # c's\nmake \\\n  test && .venv/bin/python -m z; export B=2 && ray start\n"
    assert list(lines_of(text)) == [
        ["draftpick", "x", "--y", "a\nb"],
        ["make", "test"],
        [".venv/bin/python", "-m", "z"],
        ["ray", "start"],
    ]
    assert _problem_of(["make", "tset"]) == "there is no target tset"
    assert _problem_of(["python", "-m", "tests.bench.none"]) == "there is no module tests.bench.none"


# --- the operations guide ---


def test_every_alert_has_its_line_in_the_guide() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules" / "draftpick.yaml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert set(re.findall(r"^\| `(Draftpick\w+)` \|", OPERATIONS.read_text(), re.MULTILINE)) == alerts


def test_every_variable_of_ours_is_in_the_guide() -> None:
    files = [path for name in _PACKAGES[:-1] for path in (ROOT / name).rglob("*.py")]
    used = {name for path in files for name in re.findall(r"\"(DRAFTPICK_[A-Z_]+)\"", path.read_text())}
    assert used == set(re.findall(r"`(DRAFTPICK_[A-Z_]+)`", OPERATIONS.read_text()))


def test_every_metric_of_ours_that_texts_name_is_there() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    known = set(re.findall(r"^\| `(draftpick_\w+)`", page, re.MULTILINE))
    for path in TEXTS:
        named = {one.text for one in code(path) if re.fullmatch(r"draftpick_\w+", one.text)}
        assert named <= known | {"draftpick_"}, path


def test_a_record_takes_about_as_much_as_the_guide_says() -> None:
    arms, times = [f"engine-{i}" for i in range(7)], [0.0123456789] * 7
    context = stored_context(np.linspace(-1, 1, 140, dtype=np.float32), "static-128-0a1b2c3d+lexical-v3")
    load, shares = LoadTerms(times, times, times, [0] * 7, times), dict(zip(arms, times, strict=True))
    decision = Decision(
        arms[0], 0.97, shares, "tau_cost:0a1b2c3d", predicted_tpot_s=times, load=load, unloaded_arm=arms[1]
    )
    record = Record(
        request_id="0" * 32,
        attempt=1,
        time=1.7e9,
        path="/v1/chat/completions",
        stream=True,
        sampling={"temperature": 0.7, "max_tokens": 128.0},
        in_flight=dict.fromkeys(arms, 1),
        context=context,
        decision=decision,
        outcome=Outcome("ok", 200, times[0], times[0], times[0], 100, 64, 2.1, 0.4, times[0], times[0]),
    )
    assert len(encode(record)) == pytest.approx(2000, rel=0.25)
    assert "about 2 kB" in OPERATIONS.read_text()


def test_events_may_be_moved_away_while_routers_run(tmp_path: Path) -> None:
    exchange = PeerStore(tmp_path)
    exchange.write_events([Event(1.0, "policy_activated", "one")])
    (tmp_path / EVENTS).rename(tmp_path / "events-old.jsonl")
    exchange.write_events([Event(2.0, "policy_activated", "two")])
    assert [event.text for event in decode_events((tmp_path / EVENTS).read_bytes())] == ["two"]
    old = (tmp_path / "events-old.jsonl").read_bytes()
    assert [event.text for event in decode_events(old)] == ["one"]
