"""The models that engines serve, from their `/v1/models`, and whether engines of unknown configuration draft.

Polled without a client's request: the list of models is the fleet's, and an engine without a model, or with a shorter
context, is not eligible for a request that needs it.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from draftpick.engines.http.client import EngineClient
from draftpick.engines.http.json_values import parse_object
from draftpick.engines.replicas import ReplicaTable
from draftpick.router.load.engine_page import read_page

_EVERY_S = 30.0
_MIN_INTERVAL_S = 1.0
"""Between two polls that clients cause."""
_MAX_MODELS = 1000
Card = dict[str, Any]
"""A model as vLLM describes it: `id`, `max_model_len`, and for an adapter its `parent`."""


class ModelCatalog:
    """`models`: cards by engine and id, of the engines that have answered. `drafts`: engines whose metrics tell whether
    they have a drafter. `on_change` is called after either has changed.
    """

    def __init__(
        self,
        client: EngineClient,
        replicas: ReplicaTable,
        undeclared: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`undeclared`: engines whose configuration does not say whether they have a drafter."""
        self._client, self._replicas, self._clock = client, replicas, clock
        self._undeclared = set(undeclared)
        self._polling: asyncio.Task[None] | None = None
        self._polled_at = float("-inf")
        self.models: dict[str, dict[str, Card]] = {}
        self.drafts: dict[str, bool] = {}
        self.on_change: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Poll periodically, forever."""
        while True:
            await self.poll()
            await asyncio.sleep(_EVERY_S)

    async def refresh(self) -> None:
        """Poll if no engine has answered yet: once for all callers, and not again within `_MIN_INTERVAL_S`."""
        if self.models or self._clock() < self._polled_at + _MIN_INTERVAL_S:
            return
        if self._polling is None:
            self._polling = asyncio.create_task(self.poll())
        await asyncio.shield(self._polling)  # a client that leaves does not end the others' poll

    async def poll(self) -> None:
        """Ask every engine once; what one that does not answer said before stays."""
        before = dict(self.models), dict(self.drafts)
        try:
            await asyncio.gather(*map(self._ask, self._replicas.by_engine))
        finally:
            self._polled_at, self._polling = self._clock(), None
        if before != (self.models, self.drafts):
            self.on_change()

    async def _ask(self, engine: str) -> None:
        url = next((one.url for one in self._replicas.by_engine[engine] if not one.unreachable), None)
        if url is None:
            return
        if (page := await read_page(self._client, f"{url}/v1/models")) is not None:
            listed = (parse_object(page) or {}).get("data")
            cards = listed[:_MAX_MODELS] if isinstance(listed, list) else ()
            found = {card["id"]: card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)}
            if found:
                self.models[engine] = found
        is_vllm = any(card.get("owned_by") == "vllm" for card in self.models.get(engine, {}).values())
        if engine in self._undeclared and is_vllm:
            page = await read_page(self._client, f"{url}/metrics") or b""
            if b"vllm:" in page:
                self.drafts[engine] = b"vllm:spec_decode" in page

    def max_model_len(self, engine: str, model: str) -> int | None:
        """Longest context of a model on an engine, in tokens, if it is known."""
        length = self.models.get(engine, {}).get(model, {}).get("max_model_len")
        return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None

    def cards(self, target: str) -> list[Card]:
        """The models of all engines, the target first; each with its longest context, which requests find."""
        merged: dict[str, Card] = {}
        for engine, models in self.models.items():
            for name, card in models.items():
                known = merged.setdefault(name, dict(card))
                lengths = [n for n in (self.max_model_len(engine, name), known.get("max_model_len")) if n is not None]
                if lengths:
                    known["max_model_len"] = max(lengths)
        return sorted(merged.values(), key=lambda card: card["id"] != target)
