"""Reading a request: its text in every form, and a body that stays as it is."""

import json
from typing import Any
from unittest.mock import ANY

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.errors import BadRequest
from draftpick.router.openai_request import MAX_TEXT_CHARS, MESSAGES, insert_engine_args, parse
from tests.fleet import CHAT, COMPLETIONS, RESPONSES

TEXT_PART = {"type": "text", "text": "seen"}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SPLICED = b',"stream_options":{"include_usage":true}'

words = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(words, values, max_size=6)


def text(path: str, **fields: Any) -> str:
    return parse(path, orjson.dumps(fields)).text


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": "one"}], "one"),
        ([{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}], "be brief\none"),
        ([{"role": "user", "content": [TEXT_PART, IMAGE_PART, TEXT_PART]}], "seen\nseen"),
        ([{"role": "assistant", "content": None, "tool_calls": []}, {"role": "user", "content": "one"}], "one"),
        ([{"role": "user"}, "no message", 3, None], ""),
        ([{"role": "user", "content": {"text": "no list"}}], ""),
        ([{"role": "user", "content": [{"type": "text", "text": 3}, "bare"]}], ""),
        ([], ""),
        ("no list", ""),
        (None, ""),
    ],
)
def test_text_of_a_chat(messages: Any, expected: str) -> None:
    assert text(CHAT, messages=messages) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("one", "one"), (["one", "two"], "one\ntwo"), ([1, 2], ""), ([[1], [2]], ""), (None, ""), (3, "")],
)
def test_text_of_a_completion(prompt: Any, expected: str) -> None:
    assert text(COMPLETIONS, prompt=prompt) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("one", "one"),
        ([{"role": "user", "content": "one"}], "one"),
        ([{"role": "user", "content": [{"type": "input_text", "text": "one"}]}], "one"),
        (None, ""),
    ],
)
def test_text_of_a_response(value: Any, expected: str) -> None:
    assert text(RESPONSES, input=value) == expected


def test_instructions_are_part_of_a_response() -> None:
    assert text(RESPONSES, input="one", instructions="be brief") == "be brief\none"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": [{"role": "user", "content": "one"}]}, "one"),
        ({"system": "be brief", "messages": [{"role": "user", "content": [TEXT_PART]}]}, "be brief\nseen"),
        ({"system": [TEXT_PART], "messages": []}, "seen\n"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "found"}]}]}, "found"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [TEXT_PART]}]}]}, "seen"),
    ],
)
def test_text_of_messages(fields: dict[str, Any], expected: str) -> None:
    assert text(MESSAGES, **fields) == expected


@pytest.mark.parametrize(("prompt", "count"), [([1, 2, 3], 3), ([[1], [2, 3]], 2), ("one", None), (["a"], None)])
def test_the_tokens_of_a_prompt_of_token_ids_are_counted(prompt: Any, count: int | None) -> None:
    assert parse(COMPLETIONS, orjson.dumps({"prompt": prompt})).num_prompt_tokens == count


@pytest.mark.parametrize(
    ("fields", "asks"),
    [
        ({}, set()),
        ({"min_p": 0.1}, {"min_p"}),
        ({"min_p": "0.1"}, {"min_p"}),
        ({"min_p": 0, "logit_bias": {}, "tools": [], "response_format": {"type": "text"}}, set()),
        ({"logit_bias": {"5": -100}, "structured_outputs": {"regex": "a"}}, {"logit_bias", "structured_outputs"}),
        ({"response_format": {"type": "json_object"}}, {"response_format"}),
        ({"text": {"format": {"type": "json_schema"}}}, {"text"}),
        ({"text": {"format": {"type": "text"}}, "output_config": {"effort": "low"}}, set()),
        ({"output_config": {"format": {"type": "json_schema"}}}, {"output_config"}),
        ({"messages": [{"role": "user", "content": [IMAGE_PART, TEXT_PART]}]}, {"image"}),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}, {"type": "video_url"}]}]},
            {"audio", "video"},
        ),
    ],
)
def test_what_not_every_engine_takes_is_noted(fields: dict[str, Any], asks: set[str]) -> None:
    assert parse(CHAT, orjson.dumps(fields)).asks == asks


@pytest.mark.parametrize(
    ("fields", "structured"),
    [
        ({"response_format": {"type": "json_object"}}, True),
        ({"text": {"format": {"type": "json_schema"}}}, True),
        ({"output_config": {"format": {"type": "json_schema"}}}, True),
        ({"structured_outputs": {"regex": "a"}}, True),
        ({"tools": [{"type": "function"}]}, True),
        ({"response_format": {"type": "text"}, "text": {"verbosity": "low"}, "tools": []}, False),
    ],
)
def test_an_answer_in_a_prescribed_format_is_structured(fields: dict[str, Any], structured: bool) -> None:
    assert parse(CHAT, orjson.dumps(fields)).structured is structured


def test_the_state_that_a_request_needs_is_noted() -> None:
    assert parse(RESPONSES, b'{"input":"x","previous_response_id":"resp_1"}').state_id == "resp_1"
    assert parse(RESPONSES + "/resp_2/cancel", b"").state_id == "resp_2"
    assert parse(CHAT, b'{"previous_response_id":"resp_1"}').state_id is None


def test_a_body_without_a_prompt_is_left_to_the_engine() -> None:
    for path in (CHAT, COMPLETIONS, RESPONSES):
        assert parse(path, b"{}").text == ""


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    cut = text(COMPLETIONS, prompt="a" * MAX_TEXT_CHARS + "b" * MAX_TEXT_CHARS)
    half = MAX_TEXT_CHARS // 2
    assert cut == "a" * half + "\n" + "b" * half
    assert text(COMPLETIONS, prompt="a" * MAX_TEXT_CHARS) == "a" * MAX_TEXT_CHARS


def test_the_numeric_sampling_fields_are_read() -> None:
    fields = {"temperature": 0, "top_p": 0.5, "max_tokens": 7, "n": 2, "seed": 3, "stop": ["x"]}
    request = parse(CHAT, orjson.dumps(fields))
    assert request.sampling == {"temperature": 0.0, "top_p": 0.5, "max_tokens": 7.0, "n": 2.0}


@pytest.mark.parametrize(
    ("path", "fields", "limit"),
    [
        (CHAT, {"max_tokens": 9, "max_completion_tokens": 5}, 5),
        (CHAT, {"max_tokens": 9, "max_completion_tokens": None}, 9),
        (CHAT, {"max_tokens": "9"}, 9),
        (CHAT, {}, None),
        (COMPLETIONS, {"max_tokens": 9, "max_completion_tokens": 5}, 9),
        (COMPLETIONS, {}, 16),
        (COMPLETIONS, {"max_tokens": None}, 16),
        (RESPONSES, {"max_tokens": 9, "max_output_tokens": 5}, 5),
        (MESSAGES, {"max_tokens": 9, "max_output_tokens": 5}, 9),
    ],
)
def test_the_limit_of_the_answer_is_the_one_that_its_api_obeys(
    path: str, fields: dict[str, Any], limit: float | None
) -> None:
    assert parse(path, orjson.dumps(fields)).max_tokens == limit


@pytest.mark.parametrize("value", [None, "half", {}, [1], "1e999"])
def test_sampling_fields_that_are_no_numbers_are_left_out(value: Any) -> None:
    assert parse(CHAT, orjson.dumps({"temperature": value})).sampling == {}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nope", b'{"a":1', b"\xff\xfe", b'{"a":nan}', b'{"a":1} {"b":2}'],
)
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="not valid JSON") as caught:
        parse(CHAT, body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b"3", b'"text"', b"null"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="must be a JSON object"):
        parse(CHAT, body)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/embeddings", "/metrics"])
def test_other_paths_are_not_read(path: str) -> None:
    request = parse(path, b"\xff not json")
    assert (request.body, request.text, request.stream) == (b"\xff not json", "", False)


@pytest.mark.parametrize("value", [True, "true", "t", "1", 1, 1.0, "Yes", "on"])
def test_a_stream_is_one_in_every_form_that_an_engine_takes(value: Any) -> None:
    assert parse(CHAT, orjson.dumps({"stream": value})).stream


@pytest.mark.parametrize("value", [False, "false", 0, None, "x", 2, []])
def test_what_is_no_stream_for_an_engine_is_none(value: Any) -> None:
    assert not parse(CHAT, orjson.dumps({"stream": value})).stream


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-be"])
def test_a_body_in_another_encoding_reaches_the_engine_in_utf_8(encoding: str) -> None:
    request = parse(CHAT, '{"stream":true,"x":"\u00e9","y":NaN}'.encode(encoding))
    assert json.loads(request.body) == {
        "stream": True,
        "x": "\u00e9",
        "y": ANY,
        "stream_options": {"include_usage": True},
    }
    assert b"NaN" in request.body


# --- asking for usage ---


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream":true,"messages":[]}',
        b' \n{ "stream" : true ,\n "unknown":{"a":[1.50,1e2,"\\u00e9\xc3\xa9"]} }\n',
        b'{"stream":true,"seed":123456789012345678901234567890,"x":0.1000000000000000000001,"y":-0}',
        b'{"stream":true,"a":1,"a":2}',
        b'{"note":"stream_options","stream":true}',
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_usage_is_asked_for_and_every_other_byte_stays(path: str, body: bytes) -> None:
    request = parse(path, body)
    assert request.hide_usage
    assert request.body.replace(SPLICED, b"", 1) == body
    assert orjson.loads(request.body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_usage": None}, {"include_usage": True}),
        ({"other": [1]}, {"other": [1], "include_usage": True}),
    ],
)
def test_usage_is_requested_along_with_existing_options(options: Any, expected: dict[str, Any]) -> None:
    fields = {"stream": True, "stream_options": options, "unknown": {"a": [1.5]}}
    request = parse(CHAT, orjson.dumps(fields))
    assert request.hide_usage
    assert orjson.loads(request.body) == {**fields, "stream_options": expected}


@pytest.mark.parametrize("options", ["text", 3, [1], True])
def test_options_that_are_no_object_are_left_to_the_engine(options: Any) -> None:
    body = orjson.dumps({"stream": True, "stream_options": options})
    assert parse(CHAT, body).body == body


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"stream": True, "stream_options": {"include_usage": True}}),
        (CHAT, {"stream": False}),
        (CHAT, {}),
        (CHAT, {"stream": None}),
        (RESPONSES, {"stream": True}),
    ],
)
def test_usage_that_comes_anyway_is_not_asked_for(path: str, fields: dict[str, Any]) -> None:
    body = orjson.dumps(fields, option=orjson.OPT_INDENT_2)
    request = parse(path, body)
    assert request.body == body
    assert not request.hide_usage
    assert request.stream is (fields.get("stream") is True)


@given(objects, st.sampled_from([CHAT, COMPLETIONS, RESPONSES]), st.booleans())
def test_any_object_keeps_its_fields(fields: dict[str, Any], path: str, stream: bool) -> None:
    fields = {**fields, "stream": stream}
    options = fields.get("stream_options")
    sent = orjson.loads(parse(path, orjson.dumps(fields)).body)
    added = sent.pop("stream_options", None)
    fields.pop("stream_options", None)
    assert sent == fields
    if isinstance(options, dict):
        assert {k: v for k, v in added.items() if k != "include_usage"} == {
            k: v for k, v in options.items() if k != "include_usage"
        }


@given(objects, st.sampled_from([None, orjson.OPT_INDENT_2]))
def test_any_body_without_stream_options_keeps_its_bytes(fields: dict[str, Any], layout: int | None) -> None:
    fields.pop("stream_options", None)
    body = orjson.dumps({**fields, "stream": True}, option=layout)
    assert parse(CHAT, body).body.replace(SPLICED, b"", 1) == body


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        (CHAT, {}, 1),
        (CHAT, {"n": 8}, 8),
        (CHAT, {"n": "8"}, 8),
        (CHAT, {"n": 3.0}, 3),
        (CHAT, {"n": None}, 1),
        (CHAT, {"n": 0}, 1),
        (CHAT, {"n": [2]}, 1),
        (CHAT, {"n": "many"}, 1),
        (CHAT, {"use_beam_search": True}, 2),
        (COMPLETIONS, {"prompt": "one"}, 1),
        (COMPLETIONS, {"prompt": ["one"]}, 1),
        (COMPLETIONS, {"prompt": ["one", "two", "three"]}, 3),
        (COMPLETIONS, {"prompt": ["one", "two"], "n": 2}, 4),
        (COMPLETIONS, {"prompt": ["one", "two"], "n": 2, "best_of": 4}, 8),
        (COMPLETIONS, {"prompt": [5, 6, 7]}, 1),
        (COMPLETIONS, {"prompt": [[5, 6], [7]]}, 2),
        (COMPLETIONS, {"prompt": []}, 1),
        (CHAT, {"n": 1e308}, 10**6),
        (COMPLETIONS, {"prompt": ["one"] * 100, "n": 1e308}, 10**8),
        (RESPONSES, {"input": "one", "n": 8}, 1),
    ],
)
def test_answers_are_counted_over_all_prompts(path: str, fields: dict[str, Any], expected: int) -> None:
    request = parse(path, orjson.dumps(fields))
    assert request.num_answers == expected
    assert expected == 1 or (request.sampling or {})["n"] == expected


def test_the_size_of_a_prompt_is_estimated_from_what_was_not_cut_away() -> None:
    short, long = (parse(COMPLETIONS, orjson.dumps({"prompt": "word " * n})) for n in (100, 10_000))
    assert short.approximate_prompt_tokens == 125
    assert 12_500 <= long.approximate_prompt_tokens <= 12_600


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
def test_half_of_a_surrogate_pair_is_sent_as_it_came_and_is_no_text(path: str) -> None:
    said = b'"a \\ud83d b"'
    fields = {
        COMPLETIONS: b'"prompt":%b',
        RESPONSES: b'"input":%b',
    }.get(path, b'"messages":[{"role":"user","content":%b}]')
    request = parse(path, b"{%b}" % (fields % said))
    assert request.text == "a ? b"
    assert said in request.body


def test_half_of_a_surrogate_pair_may_be_predicted() -> None:
    request = parse(CHAT, b'{"messages":[{"content":"x"}],"prediction":{"type":"content","content":"\\ud83d"}}')
    body = insert_engine_args(request, request.body, {"x": request.prediction or ""})
    assert json.loads(body)["vllm_xargs"] == {"x": "\ud83d"}


@pytest.mark.parametrize(
    "plenty", [b'"y":"%b"' % (b"x" * 2**22), b'"y":[%b1]' % (b"1," * 20_000)], ids=["bytes", "values"]
)
def test_large_bodies_are_read_if_they_are_strict_json(plenty: bytes) -> None:
    assert parse(CHAT, b'{"n":2,%b}' % plenty).num_answers == 2
    with pytest.raises(BadRequest):
        parse(CHAT, b'{"n":2,"x":NaN,%b}' % plenty)
