"""Resumes a broken greedy stream on another engine, from the text that the client has.

The rest of a greedy answer is determined by the prompt and the answer so far: vLLM continues the last message. Only
for requests where this gives the same answer: one choice, no tools or formats, no penalties over the answer's tokens.
"""

from dataclasses import dataclass
from typing import Any, Self

from draftpick.engines.errors import EngineError
from draftpick.engines.http.client import EngineClient
from draftpick.engines.http.json_values import dumps, parse_object, to_count
from draftpick.router.openai_request import Request

_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
_JSON = [("content-type", "application/json")]
_HINDERS = (
    *("tools", "functions", "response_format", "structured_outputs", "logprobs", "top_logprobs", "prompt_logprobs"),
    *("echo", "suffix", "best_of", "frequency_penalty", "presence_penalty", "repetition_penalty", "min_tokens"),
    *("continue_final_message", "add_generation_prompt", "return_token_ids"),
)
"""Fields that make the rest of an answer depend on more than its text so far, or that already set a continuation."""


class CannotResume(EngineError):
    """No request for the rest of the answer can be made; no engine is at fault."""


@dataclass(slots=True)
class StreamResume:
    """The part of a stream that the client has. `limit`: output tokens of the whole answer; `tokens`: number of tokens
    of `text`, known once it is resumed."""

    fields: dict[str, Any]
    limit: float | None = None
    text: str = ""
    tokens: int = 0
    resumed: bool = False
    possible: bool = True

    @classmethod
    def from_request(cls, request: Request) -> Self | None:
        """None for a request whose stream cannot be resumed, or that was parsed without keeping its fields."""
        greedy = request.stream and (request.sampling or {}).get("temperature") == 0
        if not greedy or request.path not in _PATHS:
            return None
        fields = request.fields
        if fields is None or fields.get("n") not in (None, 1) or any(fields.get(name) for name in _HINDERS):
            return None
        said = fields.get("messages" if request.path == "/v1/chat/completions" else "prompt")
        is_resumable = isinstance(said, list | str) and said and _is_text(said)
        return cls(fields, request.max_tokens) if is_resumable else None

    def forward(self, event: bytes, plain: bytes) -> bytes:
        """The event for the client: unchanged, empty if the client has it already, or with the total usage.

        `plain`: the same, with its data on one line after `data: `.
        """
        fields = _fields(plain)
        if fields is None:
            return event
        for choice in fields["choices"]:
            self._append(choice)
        if not self.resumed:
            return event
        if isinstance(usage := fields.get("usage"), dict):
            return b"data: %b" % dumps({**fields, "usage": self._complete_usage(usage)})
        return b"" if fields["choices"] and all(map(_is_opening, fields["choices"])) else event

    def _append(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta", choice)
        if not isinstance(delta, dict):
            self.possible = self.possible and delta is None
            return
        text = delta.get("content" if "delta" in choice else "text")
        others = [name for name in ("tool_calls", "reasoning", "reasoning_content") if delta.get(name)]
        # A finished answer has no rest, and content other than text does not fit into a message.
        self.possible = self.possible and not others and choice.get("finish_reason") is None
        self.possible = self.possible and isinstance(text, str | None)
        self.text += text if isinstance(text, str) else ""

    def _complete_usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The usage of the whole answer: the text so far counts as output, not as prompt."""
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not (isinstance(prompt, int) and isinstance(output, int)):
            return usage
        return {**usage, "prompt_tokens": prompt - self.tokens, "completion_tokens": output + self.tokens}

    async def resume(self, client: EngineClient, url: str) -> bytes:
        """The request for the rest, for the engine at `url`, which counts the tokens so far.

        Raises `CannotResume` if it does not count them, or no tokens are left, and what `EngineClient.send` raises.
        """
        self.tokens, self.resumed = await self._count(client, url), True
        fields = dict(self.fields)
        if "messages" in fields:
            so_far = {"role": "assistant", "content": self.text}
            more = {"continue_final_message": True, "add_generation_prompt": False}
            fields |= {"messages": [*fields["messages"], so_far], **more}
        else:
            fields["prompt"] += self.text
        if self.limit is not None:
            fields.pop("max_completion_tokens", None)
            fields["max_tokens"] = int(self.limit) - self.tokens
            if fields["max_tokens"] < 1:
                self.possible = False
                raise CannotResume("no output tokens are left")
        return dumps(fields)

    async def _count(self, client: EngineClient, url: str) -> int:
        asked = {"model": self.fields.get("model"), "prompt": self.text, "add_special_tokens": False}
        sending = client.send(f"{url}/tokenize", "POST", _JSON, dumps(asked), stream=False, within_s=5.0)
        async with sending as answer:
            body = b"".join([chunk async for chunk in answer.chunks])
        if (count := to_count((parse_object(body) or {}).get("count"))) is None:
            raise CannotResume("the engine does not count tokens")
        return count


def _fields(event: bytes) -> dict[str, Any] | None:
    """The chunk in an event, if any."""
    fields = parse_object(event.partition(b"data: ")[2])
    choices = None if fields is None else fields.get("choices")
    return fields if isinstance(choices, list) and all(isinstance(one, dict) for one in choices) else None


def _is_opening(choice: dict[str, Any]) -> bool:
    """True if a choice contains only the role."""
    delta = choice.get("delta")
    return isinstance(delta, dict) and "role" in delta and not delta.get("content") and not choice.get("finish_reason")


def _is_text(prompt: list[Any] | str) -> bool:
    """True if a prompt is one text, or messages that do not end with one of the model's."""
    return isinstance(prompt, str) or (
        all(isinstance(one, dict) and "role" in one for one in prompt) and prompt[-1]["role"] != "assistant"
    )
