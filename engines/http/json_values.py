"""Reads JSON, and the values in it, as vLLM does: Python's `json`, and pydantic's conversions; and writes it.

A field that is read more strictly than the engine reads it is a field without effect here: `"stream": "true"` streams.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

Write = Callable[[Any], bytes]
_BOOL, _FLOAT = TypeAdapter(bool), TypeAdapter(float)


_MAX_DIGITS = 500
"""Of an integer: reading takes time with the square of their number."""


def parse(data: bytes, *, strict: bool = False) -> tuple[Any, Write]:
    """The value in `data`, and the function that writes it again. Raises `ValueError`.

    Everything that `json.loads` takes: another UTF than 8, a byte order mark, NaN and infinities, halves of surrogate
    pairs, integers of up to 500 digits; of two equal keys, the last. `strict`: only what needs no such reader, which
    takes ten times as long.
    """
    try:
        return orjson.loads(data), orjson.dumps
    except orjson.JSONDecodeError as error:
        if strict:
            raise
        try:
            return json.loads(data, parse_int=_integer), _dumps
        except (ValueError, RecursionError):
            raise error from None


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of more than {_MAX_DIGITS} digits")
    return int(digits)


def parse_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`, if it is one."""
    try:
        fields, _ = parse(data)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def dumps(value: Any) -> bytes:
    """Write what `parse` may have read."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return _dumps(value)


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def to_bool(value: Any) -> bool | None:
    """The boolean that pydantic makes of a value; None for one that it rejects, and for None."""
    if isinstance(value, bool) or value is None:
        return value
    try:
        return _BOOL.validate_python(value)
    except ValidationError:
        return None


def to_number(value: Any) -> float | None:
    """The finite number that pydantic makes of a value; None for one that it rejects, and for None."""
    if type(value) is not float and type(value) is not int:
        if value is None:
            return None
        try:
            value = _FLOAT.validate_python(value)
        except ValidationError:
            return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


_MAX_COUNT, _MAX_FIGURE = 2**31, 1e9
MAX_TAU = 1e4
"""Longer than any draft."""


def to_count(value: Any) -> int | None:
    """A number of tokens or steps as an engine tells it; None for anything else, which sums would not outlive."""
    return value if type(value) is int and 0 <= value < _MAX_COUNT else None


def to_figure(value: Any, least: float = 0.0, most: float = _MAX_FIGURE) -> float | None:
    """A figure as an engine tells it; None for anything else, such as NaN, or one beyond these limits."""
    return float(value) if type(value) in (int, float) and least <= value <= most else None
