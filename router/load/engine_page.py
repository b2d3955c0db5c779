"""Reads a page of an engine, with bounds on its size and on the time it takes."""

import asyncio
import contextlib

from draftpick.engines.errors import EngineError
from draftpick.engines.http.client import EngineClient

_PATIENCE_S = 2.0
_MAX_BYTES = 2**20


async def read_page(
    client: EngineClient,
    url: str,
    method: str = "GET",
    *,
    patience_s: float = _PATIENCE_S,
    max_bytes: int = _MAX_BYTES,
) -> bytes | None:
    """The body of a page; None if it is missing, too slow or too large."""
    parts: list[bytes] = []
    size = 0
    with contextlib.suppress(EngineError, TimeoutError):
        async with asyncio.timeout(patience_s), client.send(url, method, [], b"", stream=False) as answer:
            async for chunk in answer.chunks:
                parts.append(chunk)
                size += len(chunk)
                if size > max_bytes:
                    return None
            return b"".join(parts) if answer.status in (200, 202) else None
    return None
