"""Static contexts: the mean of token vectors, in a fraction of a millisecond."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from draftpick.router.features.lexical import FEATURES
from draftpick.router.features.static_embedding import SHIPPED, TOKENIZER, VECTORS, StaticFeaturizer, WordPieceCache
from draftpick.router.openai_request import Request
from tests.fleet import CHAT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / TOKENIZER))
    save_file({"vectors": np.asarray([[2, 0], [0, 2], [0, 0]], np.float16)}, tmp_path / VECTORS)
    return tmp_path


def test_an_embedding_is_the_mean_of_its_tokens_at_length_one(folder: Path) -> None:
    made = StaticFeaturizer(folder)
    assert made.embed("a a a").tolist() == [1, 0]
    np.testing.assert_allclose(made.embed("a b"), [0.5**0.5] * 2)
    assert made.embed("").tolist() == [0, 0]
    assert made.embed("?").tolist() == [0, 0]


async def test_a_context_has_the_promised_dimension_and_names_its_vectors(folder: Path) -> None:
    made = StaticFeaturizer(folder)
    context = await made(Request(CHAT, b"", "a b", sampling={"temperature": 0.5}))
    assert context.vector.shape == (made.dimension,) == (2 + len(FEATURES),)
    assert context.vector.dtype == np.float32
    assert context.featurizer == made.id
    save_file({"vectors": np.asarray([[1, 1], [0, 2], [0, 0]], np.float16)}, folder / VECTORS)
    assert StaticFeaturizer(folder).id != made.id


def test_the_vectors_that_ship_tell_texts_apart() -> None:
    made = StaticFeaturizer(SHIPPED)
    code, more_code, story = (
        made.embed(text)
        for text in ("Write a Python function that sorts a list.", "Implement a sort in Python.", "Tell me of whales.")
    )
    assert code @ more_code > code @ story


def test_a_long_text_costs_little() -> None:
    made = StaticFeaturizer(SHIPPED)
    text = "some words of a request " * 40
    made.embed(text)
    began = time.thread_time()  # what others do on this machine does not count
    for _ in range(20):
        made.embed(text)
    assert (time.thread_time() - began) / 20 < 0.01


SHIPPED_TOKENIZER = Tokenizer.from_file(str(SHIPPED / TOKENIZER))
SHIPPED_TOKENIZER.no_padding()
SHIPPED_TOKENIZER.no_truncation()
BY_WORDS = WordPieceCache(SHIPPED_TOKENIZER)
WORDS = [
    "Hello",
    "don't",
    "snake_case",
    "x=1;",
    "3.14",
    "[CLS]",
    "[MASK]",
    "##ing",
    "naïve",
    "日本語",
    "é",
    "UPPER",
    "$#@!",
    "''",
    '"',
    "�",
    "\x7f",
    "\u200b",
    "\x00",
]
PIECES = st.sampled_from([*WORDS, "\x0b", "\u00a0", "\r\n", "\t", "  ", "a" * 150])


@given(st.lists(st.one_of(PIECES, st.text(max_size=12), st.from_regex(r"[ -~]{0,12}", fullmatch=True)), max_size=12))
def test_tokens_by_words_are_the_tokenizers_own(pieces: list[str]) -> None:
    for text in ("".join(pieces), " ".join(pieces)):
        assert BY_WORDS(text) == SHIPPED_TOKENIZER.encode(text, add_special_tokens=False).ids
