"""Errors in the form of each API."""

import json
from typing import Any

import orjson
import pytest

from draftpick.router.errors import BadRequest, Overloaded, PayloadTooLarge, RateLimited
from draftpick.router.request.api_forms import error_body, error_event, read_error_event, told_error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("no"), "invalid_request_error"),
        (PayloadTooLarge("no", code="body_too_large"), "request_too_large"),
        (RateLimited("no", code="x", retry_after_s=1), "rate_limit_error"),
        (Overloaded("no", retry_after_s=1), "overloaded_error"),
    ],
)
def test_an_error_of_messages_has_its_own_types(error: BadRequest, kind: str) -> None:
    assert error_body("/v1/messages", error) == {"type": "error", "error": {"type": kind, "message": "no"}}
    assert error_body("/v1/chat/completions", error) == error.body()


@pytest.mark.parametrize(
    ("path", "first", "expected"),
    [
        ("/v1/chat/completions", b"data: ", {"error": {"message": "m", "code": "c"}}),
        ("/v1/messages", b"event: error\ndata: ", {"type": "error", "error": {"type": "api_error", "message": "m"}}),
        (
            "/v1/responses",
            b"event: error\ndata: ",
            {"type": "error", "message": "m", "code": "c", "sequence_number": 7, "error": {"message": "m"}},
        ),
    ],
)
def test_a_broken_stream_ends_with_an_event_of_its_api(path: str, first: bytes, expected: dict[str, object]) -> None:
    event = error_event(path, "m", "c", 7)
    assert event.startswith(first)
    assert event.endswith(b"\n\n")
    fields = orjson.loads(event.partition(b"data: ")[2])
    for name, value in expected.items():
        found = fields[name]
        assert found == value or (isinstance(value, dict) and value.items() <= found.items())


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (b'data: {"error":{"message":"m","type":"BadRequestError","param":null,"code":400}}', 400),
        (b'data: {"error":{"code":"422"}}', 422),
        (b'data: {"error":{"code":true}}', 500),
        (b'data: {"error":{"code":42}}', 500),
        (b'data: {"error":{"code":"x","type":"NotFoundError"}}', 404),
        (b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"m"}}', 503),
        (b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"m"}}', 500),
        (b'event: error\ndata: {"type":"error","code":"invalid_prompt","message":"m","param":null}', 400),
        (b'event: response.failed\ndata: {"response":{"error":{"code":"rate_limit_exceeded","message":"m"}}}', 429),
        (b"event: error\ndata: {}", 500),
        (b"event: error\ndata: gone", 500),
        (b"event: error", 500),
        (b'data: {"error":"boom"}', 500),
        (b'data: {"object":"error","message":"m","type":"BadRequestError","code":400}', 400),
        (b'data: {"error":{"code":422,"message":"half of a pair: \\ud800"}}', 422),
        (b'data: {"error":{"code":422,"param":%b}}' % (b"9" * 400), 422),
    ],
)
def test_an_error_event_says_which_status_it_means(event: bytes, status: int) -> None:
    found, body = read_error_event(event)
    assert found == status
    assert isinstance(json.loads(body), dict)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"error": {"code": 400}}, {"code": 400}),
        ({"error": {}, "choices": []}, {}),
        ({"error": "boom"}, {"message": "boom"}),
        ({"object": "error", "code": 400}, {"object": "error", "code": 400}),
        ({"error": None, "choices": []}, None),
        ({"error": ""}, None),
        ({"object": "chat.completion"}, None),
        ([{"error": {}}], None),
        (None, None),
    ],
)
def test_an_answer_tells_an_error_in_any_form(answer: Any, error: Any) -> None:
    assert told_error(answer) == error
