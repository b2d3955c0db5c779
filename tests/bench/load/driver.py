"""Clients that never pause."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np


async def answered(url: str, turns: Sequence[str] | None, bodies: Sequence[Mapping[str, Any]], clients: int) -> float:
    """Mean seconds of an answer, while so many clients ask one request after the other.

    The first and the last `clients` requests are left out. `turns`: arms that requests are pinned to in turn.
    """
    took_s, numbers = np.zeros(len(bodies)), iter(range(len(bodies)))
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def one() -> None:
            for i in numbers:
                headers = {"x-draftpick-arm": turns[i % len(turns)]} if turns else {}
                began = time.perf_counter()
                (await client.post("/v1/chat/completions", json=bodies[i], headers=headers)).raise_for_status()
                took_s[i] = time.perf_counter() - began

        await asyncio.gather(*(one() for _ in range(clients)))
    return float(took_s[clients : len(bodies) - clients].mean())
