"""Compressed bodies: in any parts, of one stream or several, in slices."""

import gzip
import zlib

import pytest

from draftpick.engines.http.inflate import Inflate

MIB = 2**20


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_streams_after_each_other_are_one_body(size: int) -> None:
    packed, inflate = gzip.compress(b"first, ") + gzip.compress(b"") + gzip.compress(b"second"), Inflate()
    parts = [packed[at : at + size] for at in range(0, len(packed), size)]
    assert b"".join(data for part in parts for data in inflate.feed(part)) == b"first, second"
    assert inflate.complete


def test_a_bomb_comes_in_slices() -> None:
    inflate = Inflate()
    sizes = list(map(len, inflate.feed(zlib.compress(b"\0" * 10 * MIB))))
    assert (sum(sizes), max(sizes)) == (10 * MIB, MIB)


@pytest.mark.parametrize("damage", [b"no", gzip.compress(b"x") + b"junk"], ids=["no stream", "bytes after it"])
def test_what_is_not_compressed_is_an_error(damage: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        list(Inflate().feed(damage))


def test_half_a_body_is_not_complete() -> None:
    inflate = Inflate()
    list(inflate.feed(gzip.compress(b"some text")[:-3]))
    assert not inflate.complete
