"""A client's prediction of the answer (OpenAI's `prediction`): text from which the copying drafters of an engine draft.

The router sends it in `vllm_xargs`; the engine makes tokens of it. It changes what is drafted, never what is answered.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

XARG = "draftpick_prediction"
"""Key of a request's `vllm_xargs` whose value is the text; in the engine, behind its front end, its token ids."""
FIELD = "prediction"
"""Name within `metrics.speculative_decoding`."""
COPYING = frozenset({"ngram", "suffix", "trigram", "hybrid"})
"""Methods that draft from a request's text, and so from a prediction."""

Tokens = npt.NDArray[np.int32]
_LEAD = 8
"""Tokens at the end of the prompt that also precede the prediction: what comes first is then its beginning."""
_RESYNC = 2
"""Equal tokens by which the place in the prediction is found again after a difference."""
_TRUST = 4
"""Tokens of the prediction in a row after which the next ones are drafted as far as a draft may go."""


class Alignment:
    """Follows an answer along a prediction. `accepted`: tokens of the prediction that came, in order, each once.

    Where both differ, one token may be another; else it goes on at the next place of the prediction that has the last
    two tokens of the answer. `run`: tokens that came in a row; at first a few, as if the prediction had begun well.
    """

    __slots__ = ("_at", "_last", "_missed", "_places", "_prediction", "accepted", "run")

    def __init__(self, prediction: Sequence[Hashable]) -> None:
        self._prediction = prediction
        self._places = defaultdict[tuple[Hashable, ...], list[int]](list)
        for end in range(_RESYNC, len(prediction) + 1):
            self._places[tuple(prediction[end - _RESYNC : end])].append(end)
        self._at = self._missed = self.accepted = 0
        self._last: Hashable = None
        self.run = _TRUST

    def follow(self, token: Hashable) -> None:
        """Take the next token of the answer."""
        last, self._last = self._last, token
        here = self._prediction[self._at : self._at + 2]
        if here and here[0] == token:
            self._go(self._at + 1, 1)
        elif self._missed == 1 and len(here) == 2 and here[1] == token:
            self._go(self._at + 2, 1)
        else:
            self._missed, self.run = self._missed + 1, 0
            ends = self._places.get((last, token), ()) if self._missed >= _RESYNC else ()
            if (found := bisect_left(ends, self._at + _RESYNC)) < len(ends):
                self._go(ends[found], _RESYNC)

    def _go(self, at: int, came: int) -> None:
        self._at, self._missed = at, 0
        self.accepted += came
        self.run += came

    def next_tokens(self, limit: int) -> Sequence[Hashable]:
        """Return what probably comes next: of the prediction, as much as its last tokens make likely; none after a
        difference."""
        length = limit if self.run >= _TRUST else min(limit, _RESYNC * self.run)
        return self._prediction[self._at : self._at + length]


class PredictedText:
    """A request's text as its copying drafters see it: the prediction stands between prompt and answer, after which the
    end of the prompt comes once more, so that a drafter that looks for what followed it finds the prediction."""

    def __init__(self, prompt: Tokens, prediction: Sequence[int], max_tokens: int) -> None:
        """`prompt`: its token ids; `max_tokens`: of the whole text without prediction."""
        lead = prompt[-_LEAD:]
        begin = np.concatenate([prompt, np.asarray(prediction, np.int32), lead])
        self._added = len(begin) - len(prompt)
        self._tokens = np.empty(max_tokens + self._added, np.int32)
        self._tokens[: len(begin)] = begin
        self._read = len(prompt)
        self._alignment = Alignment(prediction)

    def extend(self, tokens: Tokens) -> Tokens:
        """Return the text with the prediction, for `tokens`: prompt and answer so far."""
        length, new = len(tokens), tokens[self._read :]
        self._tokens[self._read + self._added : length + self._added] = new
        for token in new.tolist():
            self._alignment.follow(token)
        self._read = length
        return self._tokens[: length + self._added]

    def draft(self, own: list[int], limit: int) -> list[int]:
        """Return a drafter's own draft, or the next tokens of the prediction if these are more."""
        ahead: Any = self._alignment.next_tokens(limit)
        return list(ahead) if len(ahead) > len(own) else own

    @property
    def run(self) -> int:
        """Tokens of the prediction that came in a row."""
        return self._alignment.run


def predicted_text(known: Any, tokens: Tokens, max_tokens: int) -> PredictedText | None:
    """Return the text of a request with its prediction; None for one without. `known`: the state that vLLM's worker has
    of it, with which the text is kept; `tokens`: its text so far; `max_tokens`: see `PredictedText`."""
    if (text := getattr(known, _TEXT, known)) is not known:
        return text  # type: ignore[no-any-return]
    params = known.sampling_params
    ids = (params.extra_args or {}).get(XARG) if params is not None else None
    made = PredictedText(tokens[: known.num_prompt_tokens], ids, max_tokens) if ids else None
    setattr(known, _TEXT, made)
    return made


_TEXT = "draftpick_text"


def count_accepted(prediction: Sequence[Hashable], answer: Iterable[Hashable]) -> int:
    """Return how many tokens of a prediction are in the answer, in order, each once. Linear in the answer."""
    alignment = Alignment(prediction)
    for token in answer:
        alignment.follow(token)
    return alignment.accepted
