"""vLLM's `custom_class` interface for all our drafters; options are in `additional_config["drafter"]`."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel

from draftpick.engines.drafters.draft_length import Draft
from draftpick.engines.drafters.request_tracking import RequestTracker, Tokens
from draftpick.engines.pool.prediction import PredictedText, predicted_text


class Drafter(Protocol):
    """Proposes tokens for requests, whose states it creates. `tokens` is the whole text so far, prompt included."""

    def start(self, tokens: Tokens) -> Any:
        """Create the state of a request that begins with `tokens`."""

    def learn(self, state: Any, tokens: Tokens, new: int) -> None:
        """Learn from the last `new` tokens, the output of one decoding step."""

    def draft(self, state: Any, tokens: Tokens, limit: int) -> Draft:
        """Propose at most `limit` next tokens."""

    def end(self, state: Any) -> None:
        """Discard a request."""


class Proposer(ABC):
    """Base of the classes named in `speculative_config.model`: each declares its options and builds a drafter.

    `runner`: vLLM's model runner, if our plugin is there to tell (`engines/vllm/predictions.py`).
    """

    options: ClassVar[type[BaseModel]]
    runner: Any = None

    def __init__(self, vllm_config: Any) -> None:
        options = self.options.model_validate((vllm_config.additional_config or {}).get("drafter", {}))
        self._max_tokens: int = vllm_config.model_config.max_model_len
        self._length: int = vllm_config.speculative_config.num_speculative_tokens
        self._drafter = self.build(options, self._length)
        self._requests = RequestTracker(self._max_tokens, self._start, self._drafter.end)

    @staticmethod
    @abstractmethod
    def build(options: Any, num_speculative_tokens: int) -> Drafter:
        """Build the drafter, for drafts of at most `num_speculative_tokens`."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Compile before the first request; there is no model to load."""
        tokens = np.arange(8, dtype=np.int32)
        state = self._drafter.start(tokens)
        self._drafter.draft(state, tokens, 1)
        self._drafter.learn(state, tokens, 1)
        self._drafter.end(state)

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens_no_spec: Any, token_ids_cpu: Any, slot_mappings: Any = None
    ) -> list[list[int]]:
        """Return a draft per batch row, empty for rows that are still in prefill."""
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        for row, state, tokens, new in self._requests.sync(sampled_token_ids, num_tokens_no_spec, token_ids_cpu):
            predicted = self._predicted(tokens, row)
            text = tokens if predicted is None else predicted.extend(tokens)
            if new:
                self._drafter.learn(state, text, new)
            room = max(0, self._max_tokens - len(tokens) - 1)
            draft = self._drafter.draft(state, text, room)[0].tolist()
            drafts[row] = draft if predicted is None else predicted.draft(draft, min(room, self._length))
        return drafts

    def _start(self, tokens: Tokens, row: int) -> Any:
        predicted = self._predicted(tokens, row)
        return self._drafter.start(tokens if predicted is None else predicted.extend(tokens))

    def _predicted(self, tokens: Tokens, row: int) -> PredictedText | None:
        """Return the text of a request with its prediction, if it has one."""
        if self.runner is None:
            return None
        known = self.runner.requests[self.runner.input_batch.req_ids[row]]
        return predicted_text(known, tokens, self._max_tokens)
