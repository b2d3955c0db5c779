"""Computes the `Context` of a request without blocking the event loop."""

import asyncio
import re
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np

from draftpick.router.features.lexical import FEATURES, VERSION, context_of
from draftpick.router.openai_request import Request
from draftpick.router.types import Context, Vector


class Featurizer(ABC):
    """Computes contexts: an embedding of the text, followed by the features of `draftpick.router.features.lexical`.

    `id` changes whenever the meaning of a vector changes; `dimension` is the vector's length.
    """

    id: str
    dimension: int
    waits: ClassVar[bool] = True
    """Whether it yields to the event loop while it computes a context; if not, no timeout is needed."""

    @abstractmethod
    async def __call__(self, request: Request) -> Context:
        """The context of a request; shape of the vector `[dimension]`, float32."""


class LexicalFeaturizer(Featurizer):
    """Hashed bag of words: takes microseconds and needs no model."""

    waits = False

    def __init__(self, buckets: int = 64) -> None:
        self._buckets = buckets
        self.id = f"lexical-{buckets}+{VERSION}"
        self.dimension = buckets + len(FEATURES)

    async def __call__(self, request: Request) -> Context:
        return context_of(request, self._bag(request.text), self.id)

    def _bag(self, text: str) -> Vector:
        bag = np.zeros(self._buckets, np.float32)
        for word in re.findall(r"\w+|[^\w\s]", text.lower()):
            bag[zlib.crc32(word.encode()) % self._buckets] += 1.0
        norm = float(np.linalg.norm(bag))
        return bag / norm if norm else bag


class SentenceFeaturizer(Featurizer):
    """Sentence embedding.

    The encoder runs in its own thread and encodes all waiting texts in one batch; repeated texts come from a cache.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], Vector], dimension: int, name: str, *, cached: int = 4096
    ) -> None:
        """`encode` maps texts to vectors of shape `[len(texts), dimension]`."""
        self.id = f"{name}+{VERSION}"
        self.dimension = dimension + len(FEATURES)
        self._encode = encode
        self._cache: OrderedDict[str, Vector] = OrderedDict()
        self._cached = cached
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._waiting: list[tuple[str, asyncio.Future[Vector]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, request: Request) -> Context:
        vector = self._cache.get(request.text)
        if vector is None:
            vector = await self._embed(request.text)
        else:
            self._cache.move_to_end(request.text)
        return context_of(request, vector, self.id)

    def _embed(self, text: str) -> asyncio.Future[Vector]:
        future: asyncio.Future[Vector] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:32], self._waiting[32:]
            texts = [text for text, _ in batch]
            try:
                vectors = await loop.run_in_executor(self._pool, self._encode, texts)
                pairs = list(zip(batch, vectors, strict=True))
            except Exception as error:  # third-party encoders may raise anything; no request may wait forever
                self._settle(batch, error)
                continue
            for (text, future), vector in pairs:
                self._remember(text, vector)
                if not future.done():
                    future.set_result(vector)

    @staticmethod
    def _settle(batch: list[tuple[str, asyncio.Future[Vector]]], error: Exception) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)

    def _remember(self, text: str, vector: Vector) -> None:
        self._cache[text] = vector
        if len(self._cache) > self._cached:
            self._cache.popitem(last=False)
