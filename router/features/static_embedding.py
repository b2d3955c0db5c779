"""Word vectors distilled from the sentence encoder: computes a context in under 1 ms, without torch.

Text is tokenized word by word from a cache: the result of BERT's tokenizer in a fifth of its time, for plain ASCII.
BERT's tokenizers split at white space and around punctuation before they split words into pieces, so the tokens of a
text are those of its words. The tokenizer itself handles all texts with other characters.
"""

import json
import math
import re
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from draftpick.router.features.featurizer import Featurizer
from draftpick.router.features.lexical import FEATURES, VERSION, context_of
from draftpick.router.openai_request import Request, truncate
from draftpick.router.types import Context, Vector

SHIPPED = Path(__file__).parent / "static"
"""Vectors of the vocabulary of all-MiniLM-L6-v2, made by `draftpick encoder`."""
TOKENIZER, VECTORS = "tokenizer.json", "vectors.safetensors"
MAX_CHARS = 700
"""Longer texts lose their middle, since tokenization dominates the cost of an embedding."""
_MAX_WORDS = 200_000  # in the cache; beyond this, unknown words are tokenized each time
_LEARNED_AT_ONCE = 24
_PLAIN = re.compile(r"[\t\n\r\x20-\x7e]*")
_WORD = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")


class StaticFeaturizer(Featurizer):
    """Normalised mean of the vectors of a text's tokens.

    A folder holds `tokenizer.json` (of the `tokenizers` library) and `vectors.safetensors`: `vectors` [tokens, d],
    float16. The id contains their hash: other vectors give other contexts.
    """

    waits = False

    def __init__(self, folder: Path = SHIPPED) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokens = WordPieceCache(tokenizer)
        stored = load_file(folder / VECTORS)["vectors"]
        self._vectors: Vector = stored.astype(np.float32)
        self.dimension = stored.shape[1] + len(FEATURES)
        self.id = f"static-{stored.shape[1]}-{sha256(stored.tobytes()).hexdigest()[:8]}+{VERSION}"

    async def __call__(self, request: Request) -> Context:
        return context_of(request, self.embed(request.text), self.id)

    def embed(self, text: str) -> Vector:
        """The embedding of a text [d]; zeros without a known token."""
        ids = self._tokens(truncate(text, MAX_CHARS))
        if not ids:
            return np.zeros(self._vectors.shape[1], np.float32)
        mean = np.add.reduce(self._vectors.take(ids, 0), 0) / len(ids)
        return np.asarray(mean / max(math.sqrt(mean @ mean), 1e-9), np.float32)


class WordPieceCache:
    """Token ids by any `tokenizers.Tokenizer`; word by word for lower-case BERT tokenizers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        made = json.loads(tokenizer.to_str())
        self._by_words = _is_bert(made)
        self._special = tuple(token["content"] for token in made["added_tokens"])
        self._cache: dict[str, tuple[int, ...]] = {}
        if self._by_words:
            self._cache = {word: (i,) for word, i in made["model"]["vocab"].items() if _WORD.fullmatch(word)}

    def __call__(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens."""
        if not self._by_words or _PLAIN.fullmatch(text) is None or any(map(text.__contains__, self._special)):
            return self._encode(text)
        words, known = _WORD.findall(text.lower()), self._cache
        try:
            return list(chain.from_iterable([known[word] for word in words]))
        except KeyError:
            return self._learning(text, words)

    def _learning(self, text: str, words: list[str]) -> list[int]:
        """The same for a text with words not in the cache; adds some of them."""
        fresh = dict.fromkeys(word for word in words if word not in self._cache)
        learned = {word: tuple(self._encode(word)) for word in islice(fresh, _LEARNED_AT_ONCE)}
        if len(self._cache) < _MAX_WORDS:
            self._cache |= learned
        if len(fresh) > len(learned):
            return self._encode(text)
        return list(chain.from_iterable([self._cache.get(word) or learned[word] for word in words]))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _is_bert(config: dict[str, Any]) -> bool:
    """True if a tokenizer splits words as this module does."""
    normalizer, cutter = config["normalizer"] or {}, config["pre_tokenizer"] or {}
    return (
        config["model"]["type"] == "WordPiece"
        and cutter.get("type") == "BertPreTokenizer"
        and normalizer.get("type") == "BertNormalizer"
        and bool(normalizer["lowercase"] and normalizer["clean_text"])
    )
