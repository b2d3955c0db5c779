"""Distils a sentence encoder into one vector per token, which the router averages
(`draftpick.router.features.static_embedding`)."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from draftpick.router.features.static_embedding import MAX_CHARS, TOKENIZER, VECTORS
from draftpick.router.openai_request import truncate

Floats = npt.NDArray[np.float32]
ProgressCallback = Callable[[float], None]
"""Called with the fraction done."""
_BATCH = 64
_EPOCHS = 15


def distill_encoder(
    encoder: Path,
    texts: Sequence[str],
    dimension: int,
    out: Path,
    *,
    seed: int = 0,
    on_progress: ProgressCallback = lambda share: None,
) -> dict[str, float]:
    """Write a vector for every token of the encoder; return the mean cosine similarity to it on held-out texts.

    A token's vector is initialised with the encoder's output for it alone, projected on the principal components of the
    texts' outputs and weighted by rarity, as model2vec does; then all are fitted so that their mean over a text has the
    direction of the encoder's vector of the text.
    """
    from sentence_transformers import SentenceTransformer
    from sklearn.decomposition import TruncatedSVD

    teacher = SentenceTransformer(str(encoder), device="cpu")
    tokenizer = Tokenizer.from_file(str(encoder / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    words = [str(tokenizer.id_to_token(i)).removeprefix("##") for i in range(tokenizer.get_vocab_size())]
    encoded = _encoded(teacher, [*texts, *words], on_progress)
    directions = TruncatedSVD(dimension, random_state=seed).fit(encoded[: len(texts)])
    goal = directions.transform(encoded[: len(texts)])
    # Token ids are ordered by frequency (Zipf's law).
    start = (
        directions.transform(encoded[len(texts) :]) * np.log(1 + np.arange(len(words)))[:, None] / np.log(len(words))
    )
    ids = [
        e.ids for e in tokenizer.encode_batch([truncate(text, MAX_CHARS) for text in texts], add_special_tokens=False)
    ]
    vectors, alike = _fitted(start.astype(np.float32), ids, goal.astype(np.float32), seed)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / TOKENIZER))
    save_file({"vectors": vectors.astype(np.float16)}, out / VECTORS)
    kept = float(directions.explained_variance_ratio_.sum())
    card = {"encoder": encoder.name, "texts": len(texts), "dimension": dimension, "seed": seed, **alike}
    (out / "card.json").write_text(json.dumps({**card, "variance_kept": kept}, indent=2) + "\n")
    on_progress(1.0)
    return alike


def _encoded(teacher: Any, texts: Sequence[str], on_progress: ProgressCallback) -> Floats:
    found = np.empty((len(texts), teacher.get_embedding_dimension()), np.float32)
    for i in range(0, len(texts), _BATCH):
        some = list(texts[i : i + _BATCH])
        found[i : i + _BATCH] = teacher.encode(some, normalize_embeddings=True, show_progress_bar=False)
        on_progress(0.9 * i / len(texts))
    return found


def _fitted(start: Floats, ids: list[list[int]], goal: Floats, seed: int) -> tuple[Floats, dict[str, float]]:
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    table = torch.nn.EmbeddingBag.from_pretrained(torch.from_numpy(start), freeze=False, mode="mean")
    wanted = torch.from_numpy(goal)
    order = rng.permutation(len(ids))
    held, training = order[: len(ids) // 10], order[len(ids) // 10 :]
    with torch.inference_mode():
        before = float(_cosine(table, ids, wanted, held).mean())
    optimizer = torch.optim.Adam(table.parameters(), lr=3e-3)
    for _ in range(_EPOCHS):
        for rows in np.array_split(rng.permutation(training), max(1, len(training) // 64)):
            loss = 1 - _cosine(table, ids, wanted, rows).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.inference_mode():
        after = float(_cosine(table, ids, wanted, held).mean())
    return table.weight.detach().numpy(), {"cosine_before_fit": before, "cosine_held_out": after}


def _cosine(table: Any, ids: list[list[int]], goal: Any, rows: npt.NDArray[np.intp]) -> Any:
    import torch

    flat = torch.tensor([token for i in rows for token in ids[i]])
    starts = torch.tensor(np.concatenate([[0], np.cumsum([len(ids[i]) for i in rows])[:-1]]))
    return torch.nn.functional.cosine_similarity(table(flat, starts), goal[rows])
