"""Files of prompts: every format is recognised, read as the router reads it, and wrong rows are named."""

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.policy_training.data.contexts import request_from_prompt
from draftpick.policy_training.workloads import Prompt, PromptFile, generate, read_file
from draftpick.policy_training.workloads.card import describe, prompt_card
from draftpick.policy_training.workloads.files.conversation import MAX_CHARS
from draftpick.router.openai_request import parse

USER = {"role": "user", "content": "Name a colour."}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "A pear."},
    USER,
]
ANSWER = {"role": "assistant", "content": "Green."}


def written(folder: Path, *rows: Any, name: str = "prompts.jsonl") -> Path:
    """A file with a line for each row."""
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    content = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(folder: Path, *rows: Any, name: str = "prompts.jsonl") -> PromptFile:
    return read_file(written(folder, *rows, name=name))


# --- formats ---


def batch(url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": "a-1", "method": "POST", "url": url, "body": {"model": "m", **body}}


def test_openai_batch(tmp_path: Path) -> None:
    chat = batch("/v1/chat/completions", messages=TURNS, temperature=0.7, top_p=0.9, max_completion_tokens=9)
    plain = {**batch("/v1/completions", prompt="Once upon"), "custom_id": "a-2"}
    response = {**batch("/v1/responses", input="Hi", instructions="Be kind."), "custom_id": "a-3"}
    other = {**batch("/v1/embeddings", input="Hi"), "custom_id": "a-4"}
    found = read(tmp_path, chat, plain, response, other)
    assert (found.format, found.unusable) == ("OpenAI batch JSONL", {"request to /v1/embeddings": 1})
    first, second, third = found.prompts
    assert first.messages == TURNS
    assert (first.id, first.temperature, first.top_p, first.max_tokens) == ("a-1", 0.7, 0.9, 9)
    assert second.messages == [{"role": "user", "content": "Once upon"}]
    assert third.messages == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert found.own_temperature == {"a-1"}


def test_chat_lines_end_with_the_user(tmp_path: Path) -> None:
    row = {"messages": [*TURNS, ANSWER], "kind": "talk", "source": "org/set", "language": "de", "split": "dev"}
    found = read(tmp_path, row, name="chats.jsonl.gz")
    (prompt,) = found.prompts
    assert prompt.messages == TURNS
    assert (prompt.kind, prompt.source, prompt.language) == ("talk", "org/set", "de")
    assert found.of_split("dev") == [prompt]
    with pytest.raises(ValueError, match=r"chats\.jsonl\.gz: no prompt of split 'train' \(found: dev\)"):
        found.of_split("train")


def test_sharegpt(tmp_path: Path) -> None:
    said = [("system", "Be brief."), ("human", "Name a fruit."), ("gpt", "A pear."), ("human", "Name a colour.")]
    turns = [{"from": role, "value": text} for role, text in said]
    rows = [{"id": "x_0", "conversations": turns}, {"id": "x_1", "conversations": turns[2:]}]
    path = tmp_path / "share.json"
    path.write_text(json.dumps([*rows, {"id": "x_2", "conversations": []}], indent=2))
    found = read_file(path)
    assert found.format == "ShareGPT"
    assert [(p.id, p.kind, p.source, p.messages) for p in found.prompts] == [("x_0", "chat", "share", TURNS)]
    assert found.unusable == {"begins with an answer": 1, "no user turn": 1}


def test_spec_bench(tmp_path: Path) -> None:
    row = {"question_id": 81, "category": "writing", "turns": ["Name a colour.", "Another one."], "reference": []}
    found = read(tmp_path, row)
    assert found.format == "Spec-Bench questions"
    assert [(p.id, p.kind, p.messages) for p in found.prompts] == [("81", "writing", [USER])]


def test_speed_bench(tmp_path: Path) -> None:
    row = {"question_id": "ab", "category": "stem", "sub_category": "art", "turns": ["Name a colour."], "source": "s"}
    left = {**row, "turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"]}
    pq.write_table(pa.Table.from_pylist([row, left]), tmp_path / "qualitative.parquet")
    found = read_file(tmp_path / "qualitative.parquet")
    assert found.format == "SPEED-Bench questions"
    assert [(p.id, p.kind, p.source, p.messages) for p in found.prompts] == [("ab", "stem", "s", [USER])]
    assert found.unusable == {"text left to SPEED-Bench's own script": 1}


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("One.\nTwo.\n", ["One.", "Two."]),
        ("One\ngoes on.\n\n\nTwo.\n", ["One\ngoes on.", "Two."]),
        ("\n\n{One}\n[Two]\n\n", ["{One}", "[Two]"]),
    ],
)
def test_plain_text_is_lines_or_paragraphs(tmp_path: Path, text: str, prompts: Sequence[str]) -> None:
    (tmp_path / "mine.txt").write_text(text)
    found = read_file(tmp_path / "mine.txt")
    assert (found.format, [p.text for p in found.prompts]) == ("plain text", prompts)


texts = st.text(st.characters(codec="utf-8"), max_size=9)
contents = texts | st.lists(st.builds(lambda text: {"type": "text", "text": text}, texts), min_size=1, max_size=2)
turns = st.builds(
    lambda role, content: {"role": role, "content": content}, st.sampled_from(["system", "user", "assistant"]), contents
)


@given(st.lists(turns, max_size=5), texts.filter(str.strip), st.booleans())
def test_a_file_holds_what_the_router_reads(
    tmp_path_factory: pytest.TempPathFactory, said: list[dict[str, Any]], last: str, batched: bool
) -> None:
    body = {"messages": [*said, {"role": "user", "content": last}], "temperature": 0.5, "max_tokens": 7}
    row = batch("/v1/chat/completions", **body) if batched else body
    (prompt,) = read_file(written(tmp_path_factory.mktemp("p"), row)).prompts
    ours, theirs = request_from_prompt(prompt), parse("/v1/chat/completions", orjson.dumps(body))
    assert (ours.text, ours.turns) == (theirs.text, theirs.turns)
    assert ours.sampling == {**(theirs.sampling or {}), "top_p": 1.0}


# --- rows ---


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.jsonl.gz"])
def test_generated_prompts_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    prompts = generate(30, seed=8, sampled_share=0.5, max_tokens=40)
    assert list(read(tmp_path, *map(asdict, prompts), "", name=name).prompts) == prompts


def test_other_names_and_defaults(tmp_path: Path) -> None:
    lines = ['{"prompt": "Hi", "domain": "talk", "extra": [1], "id": null}', "", '{"text": "Ho", "id": 7}']
    first, second = read_file(written(tmp_path, *lines), max_tokens=32).prompts
    assert first == Prompt(first.id, "talk", "Hi", source="prompts", max_tokens=32)
    assert second == Prompt("7", "other", "Ho", source="prompts", max_tokens=32)


def test_an_id_that_a_row_lacks_depends_on_its_text_alone(tmp_path: Path) -> None:
    (one,) = read(tmp_path, {"prompt": "Hi"}).prompts
    assert one.id in [p.id for p in read(tmp_path, {"prompt": "Ho"}, {"prompt": "Hi"}).prompts]


def test_unicode_line_separators_inside_a_text(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path, {"prompt": "a\u2028b\u0085c é"}).prompts
    assert prompt.text == "a\u2028b\u0085c é"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [ANSWER]}, "no user turn"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty user turn"),
        ({"messages": [USER, {"role": "tool", "content": "1"}, USER]}, "message of role 'tool'"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}, USER]}, None),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}, USER]}, "tool calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message with parts other than text"),
        ({"prompt": "x" * (MAX_CHARS + 1)}, f"over {MAX_CHARS} characters"),
        ({"prompt": "Hi", "id": "another"}, "duplicate"),
    ],
)
def test_rows_without_a_prompt_are_counted(tmp_path: Path, row: dict[str, Any], reason: str | None) -> None:
    path = written(tmp_path, {"prompt": "Hi"}, row)
    if reason is None:
        with pytest.raises(ValueError, match=r"prompts\.jsonl:2: 'messages\[1\]\.content' must be a string"):
            read_file(path)
        return
    found = read_file(path)
    assert [p.text for p in found.prompts] == ["Hi"]
    assert found.unusable == {reason: 1}
    assert describe(prompt_card(found)).endswith(f"; left out: 1 {reason}")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": ', "Expecting value.*write one JSON object a line"),
        ("[1, 2]", "expected a JSON object, found list"),
        ('{"question": "Hi"}', r"'prompt' \(or 'text', 'messages'\) is missing; fields found: question"),
        ('{"prompt": 3}', "'prompt' must be a non-empty string"),
        ('{"prompt": " "}', "'prompt' must be a non-empty string"),
        ('{"prompt": "Hi", "kind": ["math"]}', "'kind' must be a non-empty string"),
        ('{"prompt": "Hi", "id": 1.5}', "'id' must be a non-empty string"),
        ('{"prompt": "Hi", "temperature": -1}', "'temperature' must be a number, 0 or more, found -1"),
        ('{"prompt": "Hi", "temperature": "hot"}', "'temperature' must be a number"),
        ('{"prompt": "Hi", "temperature": NaN}', "'temperature' must be a number"),
        ('{"prompt": "Hi", "max_tokens": 0}', "'max_tokens' must be an integer"),
        ('{"prompt": "Hi", "max_tokens": true}', "'max_tokens' must be an integer"),
        ('{"prompt": "Hi", "top_p": 0}', "'top_p' must be a number above 0, up to 1, found 0"),
        ('{"messages": "Hi"}', "'messages' must be a list of objects with 'role' and 'content'"),
        ('{"messages": [1, {"role": "user", "content": "Hi"}]}', r"'messages\[0\]' must be an object with 'role'"),
    ],
)
def test_file_line_and_field_of_a_wrong_row_are_named(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"prompts\.jsonl:3: .*{problem}"):
        read(tmp_path, '{"prompt": "fine"}', "", line)


def test_a_wrong_row_of_a_list_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "share.json").write_text('[\n{"conversations": [\n{"from": "human", "value": "Hi"}]},\n\n{"id": 1}]')
    with pytest.raises(ValueError, match=r"share\.json:5: 'conversations' must be a list in ShareGPT, found fields id"):
        read_file(tmp_path / "share.json")


def test_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: 'utf-8' codec.*; save the file as UTF-8"):
        read_file(path)


@pytest.mark.parametrize("damaged", [b"plain text", gzip.compress(b'{"prompt": "Hi"}\n' * 99, mtime=0)[:-12]])
def test_damaged_gzip(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "prompts.jsonl.gz"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"prompts\.jsonl\.gz:\d+: damaged gzip file"):
        read_file(path)


# --- card ---


def test_a_card_counts_what_a_file_holds(tmp_path: Path) -> None:
    rows = [
        {"messages": TURNS, "kind": "talk", "language": "en"},
        {"prompt": "Hi", "kind": "talk", "source": "org/set"},
    ]
    card = prompt_card(read(tmp_path, *rows))
    assert card["sha256"] == hashlib.sha256((tmp_path / "prompts.jsonl").read_bytes()).hexdigest()
    assert (card["prompts"], card["conversations"], card["kinds"]) == (2, 1, {"talk": 2})
    assert card["sources"] == {"prompts": 1, "org/set": 1}
    assert card["languages"] == {"en": 1, "unknown": 1}
