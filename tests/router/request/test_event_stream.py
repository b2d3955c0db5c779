"""Bytes of a stream: every event goes on unchanged as soon as it is whole, but the usage chunk nobody asked for."""

import pytest

from draftpick.engines.errors import StreamInterrupted
from draftpick.router.request.meter import EventStream, Meter
from tests.router.events import DONE, HEAD, ROLE, STREAMS, USAGE, USAGE_CHUNK, delta, event, joined


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("hide_usage", [True, False])
def test_borders_of_chunks_change_neither_bytes_nor_measures(name: str, hide_usage: bool) -> None:
    whole = joined(*STREAMS[name])
    hidden = hide_usage and name != "responses"
    expected = joined(*(one for one in STREAMS[name] if not (hidden and one == USAGE_CHUNK)))
    for border in range(len(whole) + 1):
        meter = Meter(0.0)
        stream = EventStream(meter, hide_usage=hide_usage)
        forwarded = stream.feed(whole[:border]) + stream.feed(whole[border:]) + stream.end()
        assert forwarded == expected
        made = meter.outcome("ok")
        assert (made.prompt_tokens, made.output_tokens) == (7, 5)
        assert made.ttft_s is not None
        assert meter.terminated


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_comes_byte_by_byte_is_forwarded_event_by_event(name: str) -> None:
    whole = joined(*STREAMS[name])
    stream = EventStream(Meter(0.0), hide_usage=False)
    parts = [part for i in range(len(whole)) if (part := stream.feed(whole[i : i + 1]))]
    assert parts == [one + b"\n\n" for one in STREAMS[name]]


def test_whole_events_go_on_at_once_and_half_ones_wait() -> None:
    stream = EventStream(Meter(0.0), hide_usage=True)
    first, second = delta(content="a") + b"\n\n", delta(content="b") + b"\n\n"
    assert stream.feed(first + second[:10]) == first
    assert stream.feed(second[10:-1]) == b""
    assert stream.feed(b"\n") == second
    assert stream.end() == b""


def test_what_is_left_without_a_blank_line_comes_at_the_end() -> None:
    stream = EventStream(Meter(0.0), hide_usage=False)
    assert stream.feed(b"data: {}\n\ndata: [DO") == b"data: {}\n\n"
    assert stream.end() == b"data: [DO"
    assert stream.end() == b""


@pytest.mark.parametrize(
    "strange",
    [
        b": comment",
        b"",
        b"event: ping",
        b"data: {not json",
        b"data: [1]",
        b"data: 3",
        b'data: {"choices":[]}',
        b'data: {"choices":null,"usage":null}',
        b'data: {"usage":{"prompt_tokens":1}}',
        b'data: {"choices":[],"usage":null}',
        b'data: not json "usage":',
        b"retry: 10\nid: 3",
        "data: \u00e9\u4e2d".encode(),
        b"data: \xff\xfe",
    ],
)
def test_strange_events_are_forwarded_as_they_are(strange: bytes) -> None:
    stream = EventStream(Meter(0.0), hide_usage=True)
    assert stream.feed(joined(ROLE, strange, DONE)) == joined(ROLE, strange, DONE)


def test_only_the_usage_chunk_is_hidden() -> None:
    talk = delta(content='{"usage": {"completion_tokens": 3}, "choices": []}')
    last = event({**HEAD, "choices": [{"index": 0, "delta": {"content": "x"}}], "usage": USAGE})
    stream = EventStream(Meter(0.0), hide_usage=True)
    assert stream.feed(joined(talk, last, USAGE_CHUNK, DONE)) == joined(talk, last, DONE)


def test_a_usage_chunk_alone_in_its_packet_is_hidden() -> None:
    stream = EventStream(Meter(0.0), hide_usage=True)
    assert [stream.feed(joined(one)) for one in (ROLE, USAGE_CHUNK, DONE)] == [joined(ROLE), b"", joined(DONE)]


@pytest.mark.parametrize("forms", ["\r\n", "\r", "mixed", "no space", "with id", "byte order mark", "lines"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_every_form_of_the_standard_is_read_and_forwarded_unchanged(forms: str, size: int) -> None:
    whole = b": ping\r\n\r\n".join([ROLE + b"\n\n", delta(content="x") + b"\n\n", USAGE_CHUNK + b"\n\n"])
    whole += DONE + b"\n\n"
    if forms in ("\r\n", "\r"):
        whole = whole.replace(b"\r\n", b"\n").replace(b"\n", forms.encode())
    elif forms == "no space":
        whole = whole.replace(b"data: ", b"data:")
    elif forms == "with id":
        whole = whole.replace(b"data: ", b"id: 1\ndata: ")
    elif forms == "lines":
        whole = whole.replace(b'{"', b'{\ndata: "').replace(b'"usage":', b'"usage" :')
    elif forms == "byte order mark":
        whole = b"\xef\xbb\xbf" + whole
    meter = Meter(0.0)
    stream = EventStream(meter, hide_usage=False)
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert b"".join([*map(stream.feed, parts), stream.end()]) == whole
    assert meter.terminated
    assert meter.ttft_s is not None
    assert meter.outcome("ok").output_tokens == 5


def test_an_event_without_an_end_is_no_longer_held() -> None:
    stream = EventStream(Meter(0.0), hide_usage=False, max_bytes=1000)
    assert stream.feed(b"data: " + b"x" * 900) == b""
    with pytest.raises(StreamInterrupted, match="longer than 1000 bytes"):
        stream.feed(b"x" * 100)
