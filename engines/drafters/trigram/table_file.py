"""File format of a tri-gram table: safetensors with `bigrams` [s, 2], `successors` [s, 12] and `weights` [s, 12]."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.engines.atomic_write import atomic_path

_FORMAT = "draftpick-trigram-1"


def write_table(
    path: Path,
    bigrams: npt.NDArray[np.int32],
    successors: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    vocab_size: int,
) -> None:
    """Write one table; `vocab_size` identifies the targets that share its token ids."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, npt.NDArray[Any]] = {
        "bigrams": bigrams,
        "successors": successors,
        "weights": weights.astype(np.float16),
    }
    with atomic_path(path) as scratch:
        save_file(arrays, scratch, metadata={"format": _FORMAT, "vocab_size": str(vocab_size)})


def read_table(path: Path) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return (bigrams, successors, weights). Raises ValueError for another file."""
    with _opened(path) as file:
        bigrams, successors, weights = (file.get_tensor(name) for name in ("bigrams", "successors", "weights"))
    return bigrams, successors, weights.astype(np.float32)


def table_vocab_size(path: Path) -> int:
    """Return the vocabulary size of a table. Raises ValueError for another file."""
    with _opened(path) as file:
        return int(file.metadata()["vocab_size"])


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not readable: {error}") from error
    if (file.metadata() or {}).get("format") != _FORMAT:
        raise ValueError(f"{path} is not a tri-gram table: write one with `draftpick drafters corpus`")
    return file
