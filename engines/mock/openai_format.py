"""The formats of a mock engine's answer in the three generating APIs, complete or as server-sent events, as in vLLM."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from typing import Any, ClassVar
from zlib import crc32

import orjson

from draftpick.engines.mock.decoding import Answer, Decoding, Piece, split
from draftpick.engines.mock.spec import MockRequest
from draftpick.engines.pool.prediction import XARG, count_accepted

Json = dict[str, Any]


@dataclass(slots=True)
class Wire(ABC):
    """The format of one API, complete or as server-sent events."""

    required: ClassVar[str]
    request: MockRequest
    decoding: Decoding
    model: str
    request_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def preamble(self) -> bytes:
        """Return the events before the prefill."""
        return b""

    @abstractmethod
    def frames(self, piece: Piece) -> bytes:
        """Return the events of one step's output for one sequence."""

    @abstractmethod
    def closing(self) -> bytes:
        """Return the events after the last token."""

    @abstractmethod
    def body(self) -> bytes:
        """Return the body of an answer that is not streamed."""

    def tokens(self, piece: Piece) -> list[str]:
        """Return the texts of a piece's tokens."""
        return list(self.decoding.answers[piece.index].tokens[piece.start : piece.end])


class _ChoicesWire(Wire):
    """Common to chat and completions: choices, usage, `[DONE]`."""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def closing(self) -> bytes:
        done = b"data: [DONE]\n\n"
        if not self.request.include_usage:
            return done
        metrics = {name: value for name, value in (self.decoding.metrics() or {}).items() if value is not None}
        extra = {"metrics": metrics} if metrics else {}
        return self._chunk([], usage=self._usage(), **extra) + done

    def body(self) -> bytes:
        choices = [self._choice(index, answer) for index, answer in enumerate(self.decoding.answers)]
        body = self._head(self.whole_object) | {"choices": choices, "usage": self._usage()}
        return orjson.dumps(body | {"metrics": self.decoding.metrics()})

    @abstractmethod
    def _choice(self, index: int, answer: Answer) -> Json:
        """Return one choice of a complete answer."""

    def _head(self, kind: str) -> Json:
        return {"id": f"{self.prefix}-{self.request_id}", "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choices: list[Json], **extra: Any) -> bytes:
        return b"data: %b\n\n" % orjson.dumps(self._head(self.chunk_object) | {"choices": choices, **extra})

    def _usage(self) -> Json:
        given, made = self.decoding.prompt_tokens, self.decoding.output_tokens
        return {"prompt_tokens": given, "total_tokens": given + made, "completion_tokens": made}

    def _end(self, piece: Piece) -> Json:
        """Return a chunk's finish reason, null before the end of the sequence."""
        answer = self.decoding.answers[piece.index]
        return self._reason(answer) if piece.last else {"finish_reason": None}

    def _reason(self, answer: Answer) -> Json:
        return {"finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}


class ChatWire(_ChoicesWire):
    """`/v1/chat/completions`. The usage counts the tokens of a prediction, which changes nothing else here."""

    required, prefix = "messages", "chatcmpl"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def _usage(self) -> Json:
        usage, prediction = super()._usage(), (self.request.vllm_xargs or {}).get(XARG)
        if not isinstance(prediction, str) or len(self.decoding.answers) > 1:
            return usage
        tokens = split(prediction)
        accepted = count_accepted(tokens, self.decoding.answers[0].tokens)
        counts = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": len(tokens) - accepted}
        return usage | {"completion_tokens_details": counts}

    def frames(self, piece: Piece) -> bytes:
        delta = {"index": piece.index, "delta": self._delta(piece), "logprobs": self._logprobs(self.tokens(piece))}
        chunk = self._chunk([delta | self._end(piece)])
        return self._role(piece.index) + chunk if piece.start == 0 else chunk

    def _role(self, index: int) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def _delta(self, piece: Piece) -> Json:
        text = "".join(self.tokens(piece))
        if self.request.forced_tool is None:
            return {"content": text}
        call = self._call(piece.index, text) if piece.start == 0 else {"function": {"arguments": text}}
        return {"tool_calls": [{"index": 0, **call}]}

    def _choice(self, index: int, answer: Answer) -> Json:
        forced = self.request.forced_tool is not None
        calls = [self._call(index, answer.text)] if forced else []
        message = {"role": "assistant", "content": None if forced else answer.text, "tool_calls": calls}
        choice = {"index": index, "message": message, "logprobs": self._logprobs(list(answer.tokens))}
        return choice | self._reason(answer)

    def _call(self, index: int, arguments: str) -> Json:
        name = (self.request.forced_tool or {}).get("name")
        call = {"name": name, "arguments": arguments}
        return {"id": f"call-{self.request_id}-{index}", "type": "function", "function": call}

    def _reason(self, answer: Answer) -> Json:
        # As in vLLM, the reason is "tool_calls" only if the model was free to choose the tool.
        reason = super()._reason(answer)
        called = self.request.tool_choice == "required" and self.request.forced_tool and answer.finish_reason == "stop"
        return reason | {"finish_reason": "tool_calls"} if called else reason

    def _logprobs(self, tokens: list[str]) -> Json | None:
        if not self.request.logprobs:
            return None
        entries = [{"token": one, "logprob": _logprob(one), "bytes": list(one.encode())} for one in tokens]
        return {"content": [entry | {"top_logprobs": [entry]} for entry in entries]}


class CompletionWire(_ChoicesWire):
    """`/v1/completions`."""

    required, prefix = "prompt", "cmpl"
    whole_object = chunk_object = "text_completion"

    def frames(self, piece: Piece) -> bytes:
        tokens, before = self.tokens(piece), self.decoding.answers[piece.index].tokens[: piece.start]
        choice = {"index": piece.index, "text": "".join(tokens), "logprobs": self._logprobs(tokens, before)}
        return self._chunk([choice | self._end(piece)])

    def _choice(self, index: int, answer: Answer) -> Json:
        choice = {"index": index, "text": answer.text, "logprobs": self._logprobs(list(answer.tokens))}
        return choice | self._reason(answer)

    def _logprobs(self, tokens: list[str], before: Sequence[str] = ()) -> Json | None:
        if self.request.logprobs is None or self.request.logprobs is False:
            return None
        lengths = [sum(map(len, before)), *map(len, tokens[:-1])]
        offsets = list(accumulate(lengths))
        numbers = [_logprob(token) for token in tokens]
        tops = [{token: number} for token, number in zip(tokens, numbers, strict=True)]
        return {"tokens": tokens, "token_logprobs": numbers, "top_logprobs": tops, "text_offset": offsets}


@dataclass(slots=True)
class ResponsesWire(Wire):
    """`/v1/responses`: numbered named events, one message, no `[DONE]`, no `metrics`."""

    required = "input"
    numbers: Iterator[int] = field(default_factory=count)

    def preamble(self) -> bytes:
        response = self._response("in_progress", [])
        return b"".join(self._event(f"response.{kind}", response=response) for kind in ("created", "in_progress"))

    def frames(self, piece: Piece) -> bytes:
        opening = self._opening() if piece.start == 0 else b""
        return opening + self._part_event("response.output_text.delta", delta="".join(self.tokens(piece)), logprobs=[])

    def _opening(self) -> bytes:
        item = self._item("in_progress", [])
        added = self._event("response.output_item.added", output_index=0, item=item)
        return added + self._part_event("response.content_part.added", part=_output_text(""))

    def closing(self) -> bytes:
        text = self.decoding.answers[0].text
        events = [
            self._part_event("response.output_text.done", text=text, logprobs=[]),
            self._part_event("response.content_part.done", part=_output_text(text)),
            self._event("response.output_item.done", output_index=0, item=self._message()),
            self._event("response.completed", response=self._completed()),
        ]
        return b"".join(events)

    def body(self) -> bytes:
        return orjson.dumps(self._completed())

    def _completed(self) -> Json:
        given, made = self.decoding.prompt_tokens, self.decoding.output_tokens
        usage = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        whole = self.decoding.answers[0].finish_reason == "stop"
        return self._response("completed" if whole else "incomplete", [self._message()], usage=usage | details)

    def _message(self) -> Json:
        return self._item("completed", [_output_text(self.decoding.answers[0].text)])

    def _item(self, status: str, content: list[Json]) -> Json:
        item_id = f"msg_{self.request_id}"
        return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, status: str, output: list[Json], usage: Json | None = None) -> Json:
        request = self.request
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        head = {"id": f"resp_{self.request_id}", "object": "response", "created_at": self.created, "model": self.model}
        asked = {"instructions": request.instructions, "max_output_tokens": request.limit, "tools": request.tools or []}
        fixed = {"parallel_tool_calls": True, "tool_choice": request.tool_choice or "auto", "error": None}
        return head | asked | fixed | {"status": status, "incomplete_details": cut, "output": output, "usage": usage}

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=f"msg_{self.request_id}", output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": next(self.numbers), **fields}
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(event))


def _output_text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _logprob(token: str) -> float:
    """Return a plausible, deterministic log probability of a token."""
    return -(crc32(token.encode()) % 1000) / 1000
