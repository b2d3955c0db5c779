"""Clients that never pause.

By aiohttp: with a hundred connections httpx takes 17 ms of a core for a request, and one core is too little for that.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import numpy as np


async def answered(url: str, turns: Sequence[str] | None, bodies: Sequence[Mapping[str, Any]], clients: int) -> float:
    """Mean seconds of an answer, while so many clients ask one request after the other.

    The first and the last `clients` requests are left out. `turns`: arms that requests are pinned to in turn.
    """
    took_s, numbers = np.zeros(len(bodies)), iter(range(len(bodies)))
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(300)) as client:

        async def one() -> None:
            for i in numbers:
                headers = {"x-draftpick-arm": turns[i % len(turns)]} if turns else {}
                began = time.perf_counter()
                async with client.post("/v1/chat/completions", json=bodies[i], headers=headers) as answer:
                    answer.raise_for_status()
                    await answer.read()
                took_s[i] = time.perf_counter() - began

        await asyncio.gather(*(one() for _ in range(clients)))
    return float(took_s[clients : len(bodies) - clients].mean())
