"""The sentence encoder; the only module of the router that loads torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from draftpick.engines.errors import ConfigError
from draftpick.router.types import Vector


def load_sentence_encoder(path: Path) -> tuple[Callable[[Sequence[str]], Vector], int]:
    """Load a sentence-transformers model on one CPU thread; return (encode, dimension of a vector).

    Raises `ConfigError` if sentence-transformers is not installed.
    """
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        problem = f"the sentence encoder needs {error.name}"
        raise ConfigError("router.featurizer", problem, "pip install 'draftpick[train]'") from error

    torch.set_num_threads(1)
    model = SentenceTransformer(str(path), device="cpu")
    dimension = int(model.get_embedding_dimension() or 0)

    def encode(texts: Sequence[str]) -> Vector:
        vectors = model.encode(list(texts), show_progress_bar=False, normalize_embeddings=True)
        return np.asarray(vectors, np.float32)

    return encode, dimension
