"""Request bodies: bounded each and in total before they are held, and decompressed."""

import asyncio
import gzip
import zlib
from collections.abc import Iterable

import pytest
from starlette.types import Message

from draftpick.router.config.router_config import RouterConfig
from draftpick.router.errors import Overloaded, PayloadTooLarge, UnsupportedEncoding
from draftpick.router.http.asgi import BodyBudget, HttpRequest

MIB = 2**20


def budget(total: int = 2 * MIB, body: int = 2 * MIB, wait_s: float = 0.05) -> BodyBudget:
    limits = {"max_total_body_bytes": total, "max_body_bytes": body, "admission": {"queue_timeout_s": wait_s}}
    return BodyBudget(RouterConfig.model_validate({"default_engine": "a", **limits}))


def request(parts: Iterable[bytes], *, ends: bool = True, **headers: str) -> HttpRequest:
    """A request whose body comes in these parts; if it does not end, the client disconnects."""
    messages: list[Message] = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    last: Message = {"type": "http.request", "body": b"", "more_body": False} if ends else {"type": "http.disconnect"}
    coming = iter([*messages, last])

    async def receive() -> Message:
        return next(coming)

    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest({}, receive, 0.0, "/", list(sent.items()), sent)


async def read(given: BodyBudget, asked: HttpRequest) -> bytes | None:
    async with given.body(asked) as body:
        return body


async def test_a_body_of_many_parts_is_read_as_it_came() -> None:
    parts = [b"%d" % i * 9_999 for i in range(10)]
    given = budget()
    assert await read(given, request(parts)) == b"".join(parts)
    assert await read(given, request(parts, content_length="99990")) == b"".join(parts)
    assert await read(given, request(parts, ends=False)) is None
    assert given.free == 2 * MIB


async def test_a_declared_length_over_the_limit_is_rejected_before_the_body_is_read() -> None:
    with pytest.raises(PayloadTooLarge):
        await read(budget(), request(iter([]), content_length=str(3 * MIB)))


async def test_large_bodies_wait_for_memory_until_others_have_ended() -> None:
    given, large = budget(wait_s=5), str(2 * MIB)
    async with given.body(request([b"a"], content_length=large)):
        waiting = asyncio.create_task(read(given, request([b"b"], content_length=large)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert await read(given, request([b"small"], content_length="5")) == b"small"
    assert await waiting == b"b"
    assert given.free == 2 * MIB


async def test_large_bodies_that_have_waited_too_long_are_shed() -> None:
    given, large = budget(), str(2 * MIB)
    async with given.body(request([b"a"], content_length=large)):
        for asked in (request([b"b"], content_length=large), request([b"c" * MIB])):
            with pytest.raises(Overloaded):
                await read(given, asked)
        leaving = asyncio.create_task(read(given, request([b"d"], content_length=large)))
        await asyncio.sleep(0)
        leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert given.free == 2 * MIB


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_compressed_bodies_are_decompressed_within_the_limit(encoding: str, compress: object) -> None:
    assert callable(compress)
    given = budget()
    small, bomb = compress(b"hello" * 100), compress(b"\0" * 100 * MIB)
    halves = [small[:9], small[9:]]
    assert await read(given, request(halves, content_encoding=encoding)) == b"hello" * 100
    with pytest.raises(PayloadTooLarge):
        await read(given, request([bomb], content_encoding=encoding))
    for damaged in (b"{}", small[:-3]):
        with pytest.raises(UnsupportedEncoding):
            await read(given, request([damaged], content_encoding=encoding))
    assert given.free == 2 * MIB


async def test_other_encodings_are_refused_with_those_that_are_read() -> None:
    with pytest.raises(UnsupportedEncoding) as error:
        await read(budget(), request([b"x"], content_encoding="zstd"))
    assert (error.value.status, error.value.headers()) == (415, [("accept-encoding", "gzip, deflate")])
