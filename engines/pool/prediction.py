"""A client's prediction of the answer (OpenAI's `prediction`): text from which the copying drafters of an engine draft.

The router sends it in `vllm_xargs`; the engine makes tokens of it. It changes what is drafted, never what is answered.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Sequence
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

    def extend(self, tokens: Tokens) -> Tokens:
        """Return the text with the prediction, for `tokens`: prompt and answer so far."""
        length = len(tokens)
        self._tokens[self._read + self._added : length + self._added] = tokens[self._read :]
        self._read = length
        return self._tokens[: length + self._added]


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


def count_accepted(prediction: Sequence[Hashable], answer: Sequence[Hashable]) -> int:
    """Return how many tokens of a prediction are in the answer, in order, each once: at most `len(prediction)`.

    Where both differ, it goes on at the next place of the prediction that has the last two tokens of the answer. Linear
    in the answer.
    """
    places = defaultdict[tuple[Hashable, ...], list[int]](list)
    for end in range(_RESYNC, len(prediction) + 1):
        places[tuple(prediction[end - _RESYNC : end])].append(end)
    accepted = at = missed = 0
    for i, token in enumerate(answer):
        if at < len(prediction) and prediction[at] == token:
            accepted, at, missed = accepted + 1, at + 1, 0
            continue
        missed += 1
        ends = places.get(tuple(answer[i + 1 - _RESYNC : i + 1]), ()) if missed >= _RESYNC else ()
        if (found := bisect_left(ends, at + _RESYNC)) < len(ends):
            accepted, at, missed = accepted + _RESYNC, ends[found], 0
    return accepted
