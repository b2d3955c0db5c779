"""Answers of a target on disk, each under its own request: interrupted, enlarged and mixed runs reuse what is there."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.engines.atomic_write import atomic_path
from draftpick.engines.drafters.training.responses import GenerationRequest, Responses


class AnswerStore:
    """The answers of one target in a folder below `root`, in shard files; `add` writes one, atomically.

    `target` identifies the model, whatever converts to JSON; `seed` is that of its sampling.
    """

    def __init__(self, root: Path, target: Any, seed: int) -> None:
        self._identity = _digest([target, seed])[:16]
        self._folder = root / self._identity
        self._places: dict[str, tuple[Path, int]] = {}
        for shard in sorted(self._folder.glob("*.npz")):
            with np.load(shard, allow_pickle=False) as data:
                self._index(shard, data["keys"].tolist())

    def missing(self, requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
        """The requests without an entry, each once, in order."""
        wanted = {key: request for request in requests if (key := request_key(request)) not in self._places}
        return list(wanted.values())

    def add(self, requests: Sequence[GenerationRequest], answered: Sequence[int], answers: Responses) -> None:
        """Write a shard: the answers to the requests at the indices `answered`; the others had none, for good."""
        given = dict(zip(answered, range(len(answers)), strict=True))
        keys = [request_key(request) for request in requests]
        shard = self._folder / f"{_digest(keys)[:16]}.npz"
        shard.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(shard) as scratch, scratch.open("wb") as file:
            np.savez_compressed(
                file,
                keys=np.asarray(keys),
                sequence=np.asarray([given.get(i, -1) for i in range(len(keys))], np.int32),
                tokens=answers.tokens,
                starts=answers.starts,
                answer_at=answers.answer_at,
            )
        self._index(shard, keys)

    def read(self, requests: Sequence[GenerationRequest]) -> Responses:
        """The answers in the order of the requests; requests without an answer are left out.

        Raises KeyError for a request without an entry.
        """
        places = [self._places[request_key(request)] for request in requests]
        shards = {shard: _Shard(shard) for shard in dict.fromkeys(shard for shard, _ in places)}
        found = [one for shard, i in places if (one := shards[shard].sequence(i)) is not None]
        lengths = [len(tokens) for tokens, _ in found]
        flat = np.concatenate([tokens for tokens, _ in found]) if found else np.zeros(0, np.int32)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Responses(flat, starts, np.asarray([at for _, at in found], np.int32))

    def key(self, requests: Sequence[GenerationRequest]) -> str:
        """The key of something that is made of the answers to these requests, in this order."""
        return _digest([self._identity, *map(request_key, requests)])[:16]

    def _index(self, shard: Path, keys: Sequence[str]) -> None:
        self._places |= {key: (shard, i) for i, key in enumerate(keys)}


class _Shard:
    """The arrays of a shard file."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as data:
            self._sequence = data["sequence"]
            self._answers = Responses(data["tokens"], data["starts"], data["answer_at"])

    def sequence(self, i: int) -> tuple[npt.NDArray[np.int32], int] | None:
        """Tokens and the answer's start of the entry `i`; None if it has no answer."""
        place, answers = int(self._sequence[i]), self._answers
        if place < 0:
            return None
        tokens = answers.tokens[answers.starts[place] : answers.starts[place + 1]]
        return tokens, int(answers.answer_at[place])


def request_key(request: GenerationRequest) -> str:
    """Equal requests have equal keys."""
    sampling = [request.temperature, request.top_p, request.max_tokens]
    return _digest([[dict(message) for message in request.messages], sampling])[:32]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
