"""JSON and its values as Python and pydantic read them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from draftpick.engines.http.json_values import dumps, parse, parse_object, to_bool, to_number

WORDS = ["true", "True", "TRUE", "t", "T", "1", "yes", "Y", "on", "false", "f", "0", "no", "n", "off", "", "x", " true"]
VALUES = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(["2", " 2 ", "1.5", "-0", "1e3", "1_000", "1__0", "_1", "nan", "inf", "1e999", "0x1"]),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.just({}),
)


def lax(kind: type, value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except (ValidationError, OverflowError):
        return None


@given(VALUES)
def test_a_boolean_is_what_pydantic_makes_of_it(value: Any) -> None:
    assert to_bool(value) is lax(bool, value)


@given(VALUES)
def test_a_number_that_an_engine_takes_is_read(value: Any) -> None:
    for kind in (int, float):
        expected = lax(kind, value)
        if expected is not None and expected == expected and abs(expected) < 1e308:
            assert to_number(value) == expected


def test_null_is_no_value() -> None:
    assert to_bool(None) is to_number(None) is None


@pytest.mark.parametrize(
    "text",
    ['{"a":NaN}', '{"a":-Infinity}', '{"a":"\\ud83d"}', '{"a":' + "9" * 400 + "}", '{"a":1,"a":2}', '{"a":1e999}'],
)
def test_json_is_what_python_makes_of_it(text: str) -> None:
    expected = json.loads(text)
    for data in (text.encode(), b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16"), text.encode("utf-32-le")):
        found, write = parse(data)
        assert repr(json.loads(write(found))) == repr(expected)


def test_what_takes_long_to_read_is_no_json() -> None:
    with pytest.raises(ValueError, match="line 1"):
        parse(b'{"a":%b}' % (b"9" * 501))
    for data in (b'{"a":NaN}', b'\xef\xbb\xbf{"a":1}'):
        with pytest.raises(ValueError, match="line 1"):
            parse(data, strict=True)
    assert parse(b'{"a":1}', strict=True)[0] == {"a": 1}


@pytest.mark.parametrize("value", ["\ud83d", 10**400, [{"a": "\udfff"}], "\u00e9", {"a": 1.5}])
def test_what_was_read_can_be_written(value: Any) -> None:
    assert json.loads(dumps(value)) == value


@pytest.mark.parametrize("data", [b"", b"{", b"\x00\xff<garbage>\n", b"[" * 100_000, b'{"a":1}x'])
def test_what_is_no_json_is_none(data: bytes) -> None:
    with pytest.raises(ValueError, match="line 1"):
        parse(data)
    assert parse_object(data) is None
