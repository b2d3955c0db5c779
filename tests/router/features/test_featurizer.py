"""Contexts: deterministic, of the promised dimension, and made beside the event loop."""

import asyncio
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.features.featurizer import LexicalFeaturizer, SentenceFeaturizer
from draftpick.router.features.lexical import FEATURES
from draftpick.router.openai_request import Request
from draftpick.router.types import Vector
from tests.fleet import CHAT, until


def request(text: str = "hello", **sampling: float) -> Request:
    return Request(CHAT, b"", text, sampling=sampling)


class Encoder:
    """Encodes a text as its length, slowly; keeps the batches that it got."""

    def __init__(self, duration_s: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self.error: Exception | None = None
        self._duration_s = duration_s

    def __call__(self, texts: Sequence[str]) -> Vector:
        self.batches.append(list(texts))
        time.sleep(self._duration_s)
        if self.error is not None:
            raise self.error
        return np.asarray([[len(text), 1.0] for text in texts], np.float32)


def sentence(encoder: Encoder, cached: int = 4096) -> SentenceFeaturizer:
    return SentenceFeaturizer(encoder, 2, "lengths", cached=cached)


# --- lexical ---


@pytest.mark.parametrize("buckets", [1, 64])
async def test_a_lexical_context_has_the_promised_dimension_and_id(buckets: int) -> None:
    featurizer = LexicalFeaturizer(buckets)
    context = await featurizer(request("def f(x): return x"))
    assert context.vector.shape == (featurizer.dimension,) == (buckets + len(FEATURES),)
    assert context.vector.dtype == np.float32
    assert context.featurizer == featurizer.id == f"lexical-{buckets}+lexical-v3"


async def test_a_lexical_context_follows_from_the_request_alone() -> None:
    first, second = [await LexicalFeaturizer()(request("Some words, some more.", temperature=0.3)) for _ in range(2)]
    assert first.vector.tobytes() == second.vector.tobytes()


async def test_a_lexical_context_tells_texts_apart_but_not_their_case() -> None:
    featurizer = LexicalFeaturizer()
    code, prose, shouted = [(await featurizer(request(text))).vector for text in ("x = 1;", "a tale", "A TALE")]
    assert not np.array_equal(code, prose)
    assert np.array_equal(prose, shouted)


@given(st.text())
def test_a_bag_of_words_has_length_one_or_is_empty(text: str) -> None:
    bag = asyncio.run(LexicalFeaturizer()(request(text))).vector[:64]
    assert np.linalg.norm(bag) == pytest.approx(1.0 if bag.any() else 0.0)
    assert bag.any() or not any(letter.isalnum() for letter in text)


# --- sentence ---


async def test_a_sentence_context_is_the_embedding_and_the_lexical_features() -> None:
    featurizer = sentence(Encoder())
    context = await featurizer(request("hello", temperature=0.5))
    assert context.vector.shape == (featurizer.dimension,) == (2 + len(FEATURES),)
    assert context.vector.dtype == np.float32
    assert context.vector[:3] == pytest.approx([5.0, 1.0, 0.5])
    assert context.featurizer == featurizer.id == "lengths+lexical-v3"


async def test_texts_that_wait_are_encoded_together() -> None:
    encoder = Encoder(duration_s=0.05)
    featurizer = sentence(encoder)
    first = asyncio.create_task(featurizer(request("first")))
    await until(lambda: len(encoder.batches) == 1)
    others = [asyncio.create_task(featurizer(request("x" * i))) for i in range(1, 41)]
    contexts = await asyncio.gather(first, *others)
    assert [len(batch) for batch in encoder.batches] == [1, 32, 8]
    assert [context.vector[0] for context in contexts] == [5, *range(1, 41)]


async def test_a_text_that_was_seen_comes_from_the_cache() -> None:
    encoder = Encoder()
    featurizer = sentence(encoder)
    first, second = [await featurizer(request("again", temperature=t)) for t in (0.0, 1.0)]
    assert encoder.batches == [["again"]]
    assert first.vector[:2].tolist() == second.vector[:2].tolist()
    assert (first.vector[2], second.vector[2]) == (0.0, 1.0)


async def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    encoder = Encoder()
    featurizer = sentence(encoder, cached=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        await featurizer(request(text))
    assert encoder.batches == [["a"], ["b"], ["c"], ["b"]]


async def test_an_encoder_that_raises_fails_its_batch_and_no_other() -> None:
    encoder = Encoder()
    featurizer = sentence(encoder)
    encoder.error = RuntimeError("no memory")
    both = await asyncio.gather(featurizer(request("a")), featurizer(request("b")), return_exceptions=True)
    assert [str(error) for error in both] == ["no memory"] * 2
    encoder.error = None
    assert (await featurizer(request("a"))).vector[0] == 1


async def test_encoding_does_not_block_the_loop() -> None:
    loop_runs = threading.Event()

    def encode(texts: Sequence[str]) -> Vector:
        if not loop_runs.wait(10):
            raise RuntimeError("the loop stood still")
        return np.ones((len(texts), 2), np.float32)

    task = asyncio.create_task(SentenceFeaturizer(encode, 2, "waits")(request()))
    for _ in range(5):
        await asyncio.sleep(0.001)
        assert not task.done()
    loop_runs.set()
    assert (await task).vector[0] == 1


async def test_a_cancelled_wait_does_not_affect_others() -> None:
    encoder = Encoder(duration_s=0.05)
    featurizer = sentence(encoder)
    gone, stays = [asyncio.create_task(featurizer(request(text))) for text in ("gone", "stays")]
    await until(lambda: len(encoder.batches) == 1)
    gone.cancel()
    assert (await stays).vector[0] == 5
    assert (await featurizer(request("gone"))).vector[0] == 4
    assert len(encoder.batches) == 1
