"""Word vectors distilled from the sentence encoder: computes a context in under 1 ms, without torch."""

import math
from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from draftpick.router.features.featurizer import Featurizer
from draftpick.router.features.lexical import FEATURES, VERSION, context_of
from draftpick.router.features.wordpiece_cache import WordPieceCache
from draftpick.router.openai_request import Request, truncate
from draftpick.router.types import Context, Vector

SHIPPED = Path(__file__).parent / "static"
"""Vectors of the vocabulary of all-MiniLM-L6-v2, made by `draftpick encoder`."""
TOKENIZER, VECTORS = "tokenizer.json", "vectors.safetensors"
MAX_CHARS = 700
"""Longer texts lose their middle, since tokenization dominates the cost of an embedding."""


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
