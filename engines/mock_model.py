"""What a mock engine says and how fast it says it: text, speed and acceptance, drawn from seeds; no HTTP here.

The text follows from the request and `MockSpec.seed` alone, so that all mock engines give the same answer to the same
prompt, as lossless speculation does. Acceptance and jitter are drawn per engine and prompt.
"""

import asyncio
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import orjson
import pydantic
from pydantic import Field

DEFAULT_CLASS = "default"
_CLASS = re.compile(r"\[class:([\w-]+)\]")
_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s]+)|\s+")
_WORDS = ("the", "a", "of", "to", "in", "and", "is", "that", "we", "it", "as", "for", "with", "on", "from", "are")

Share = Annotated[float, Field(ge=0, le=1)]
AcceptanceLength = Annotated[float, Field(ge=1)]
FinishReason = Literal["stop", "length"]


class MockSpec(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The `mock:` block of an engine's configuration: the speed, the acceptance and the faults of a mock engine."""

    step_s: float = Field(0.002, ge=0, description="seconds of one decoding step at batch 1")
    step_s_per_request: float = Field(0.0, ge=0, description="more seconds per step for each further running request")
    prefill_s: float = Field(0.001, ge=0, description="seconds from a request's slot to its first token")
    prefill_s_per_token: float = Field(0.0, ge=0, description="more seconds of prefill per prompt token")
    acceptance_length: AcceptanceLength = Field(
        1.0, description="tau: mean tokens per step, bonus token included, of the classes that are not listed"
    )
    acceptance_by_class: dict[str, AcceptanceLength] = Field({}, description="tau by prompt class")
    num_speculative_tokens: int = Field(0, ge=0, description="upper bound of the tokens accepted per step")
    jitter: float = Field(0.0, ge=0, description="standard deviation of a step's duration over its mean")
    output_tokens: int = Field(32, ge=1, description="tokens of an answer, unless the request allows fewer")
    max_running: int = Field(256, ge=1, description="requests that run at once; the others wait in arrival order")
    fail_share: Share = Field(0.0, description="share of requests that get a 500 at once")
    refuse_share: Share = Field(0.0, description="share of requests that get a 503 with Retry-After at once")
    hang_share: Share = Field(0.0, description="share of requests that take a slot and never get an answer")
    break_share: Share = Field(0.0, description="share of requests whose connection is cut in mid-answer")
    garbage_share: Share = Field(0.0, description="share of requests that get 200 and bytes that are no JSON or SSE")
    seed: int = Field(0, description="seed of all draws; engines that shall give the same text need the same seed")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        most = 1 + self.num_speculative_tokens
        for name, tau in {"acceptance_length": self.acceptance_length, **self.acceptance_by_class}.items():
            if tau > most:
                raise ValueError(f"{name}: {tau} is more than 1 + num_speculative_tokens = {most}")
        if sum(self.fault_shares.values()) > 1 + 1e-9:
            raise ValueError("the shares of faults add up to more than 1")
        return self

    @property
    def fault_shares(self) -> dict[str, float]:
        """Share of requests by fault; the faults exclude one another."""
        names = ("fail", "refuse", "hang", "break", "garbage")
        return {name: getattr(self, f"{name}_share") for name in names}

    def prefill_duration_s(self, prompt_tokens: int) -> float:
        """Seconds from a request's slot to its first token."""
        return self.prefill_s + self.prefill_s_per_token * prompt_tokens

    def step_duration_s(self, running: int, rng: random.Random) -> float:
        """Seconds of one decoding step while `running` requests share the batch."""
        mean_s = self.step_s + self.step_s_per_request * (running - 1)
        return max(0.0, mean_s * rng.gauss(1.0, self.jitter))

    def tau(self, text: str) -> float:
        """Mean tokens per step, bonus token included, for a prompt; its class is its first marker `[class:NAME]`."""
        return self.acceptance_by_class.get(prompt_class(text), self.acceptance_length)


class StreamOptions(pydantic.BaseModel, frozen=True):
    """The `stream_options` of a request."""

    include_usage: bool = False


class MockRequest(pydantic.BaseModel, frozen=True):
    """The fields of an OpenAI request that a mock engine heeds; it accepts and ignores all others."""

    model: str | None = None
    messages: list[dict[str, Any]] | None = Field(None, min_length=1)
    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    n: int = Field(1, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_output_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool | int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    text: dict[str, Any] | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """Text of each prompt; only `/v1/completions` may send several."""
        if self.messages is not None:
            return (_text_of(self.messages),)
        if self.input is not None:
            return (_text_of([self.instructions, self.input]),)
        if isinstance(self.prompt, list) and not all(isinstance(token, int) for token in self.prompt):
            return tuple(_text_of(prompt) for prompt in self.prompt)
        return (_text_of(self.prompt),)

    @property
    def num_samples(self) -> int:
        """Answers per prompt; `/v1/responses` knows no `n`."""
        return 1 if self.input is not None else self.n

    @property
    def limit(self) -> int | None:
        """Most tokens that one answer may have; None: no limit was asked for."""
        return self.max_completion_tokens or self.max_tokens or self.max_output_tokens

    @property
    def stops(self) -> list[str]:
        """Stop strings that are not empty."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def include_usage(self) -> bool:
        """Whether a stream shall end with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def forced_tool(self) -> dict[str, Any] | None:
        """The function (`name`, `parameters`) that `tool_choice` forces the answer to call."""
        functions: list[dict[str, Any]] = [tool.get("function", tool) for tool in self.tools or []]
        if self.messages is None or not functions or self.tool_choice in (None, "auto", "none"):
            return None
        if isinstance(self.tool_choice, str):
            return functions[0]
        name = self.tool_choice.get("function", {}).get("name")
        return next((function for function in functions if function.get("name") == name), None)

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """JSON schema that the answer's text follows; None: plain text."""
        if self.forced_tool is not None:
            return self.forced_tool.get("parameters") or {"type": "object"}
        form = self.response_format or (self.text or {}).get("format") or {}
        if form.get("type") == "json_object":
            return {"type": "object", "properties": {"answer": {"type": "string"}}}
        schema = form.get("json_schema", form).get("schema") if form.get("type") == "json_schema" else None
        return schema if isinstance(schema, dict) else None


@dataclass(frozen=True, slots=True)
class Answer:
    """One sequence that the target generates: the texts of its tokens and why it ends."""

    tokens: tuple[str, ...]
    finish_reason: FinishReason
    stop_reason: str | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to sequence `index`: its tokens from `start` up to `end`; `last` when the sequence is over."""

    index: int
    start: int
    end: int
    last: bool


@dataclass(slots=True)
class Decoding:
    """One request in the making. The first step is the prefill and yields one token per sequence, as in vLLM; each
    further step yields 1 + accepted tokens. Times are seconds of the monotonic clock.
    """

    answers: list[Answer]
    prompt_tokens: int
    acceptance_rate: float
    rng: random.Random
    histogram: list[int]
    ends: list[int] = field(default_factory=list)
    queued_s: float = 0.0
    scheduled_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    due_s: float = 0.0

    @classmethod
    def start(cls, request: MockRequest, spec: MockSpec, engine: str) -> Self:
        """The decoding of a request on the engine of that name."""
        prompts, num_drafted = request.prompts, spec.num_speculative_tokens
        text = "\n".join(prompts)
        return cls(
            answers=[answer(request, prompt, i, spec) for prompt in prompts for i in range(request.num_samples)],
            prompt_tokens=sum(max(1, len(split(prompt))) for prompt in prompts),
            acceptance_rate=acceptance_rate(spec.tau(text), num_drafted),
            rng=random.Random(f"{spec.seed}|{engine}|{text}"),
            histogram=[0] * (num_drafted + 1),
            queued_s=time.monotonic(),
        )

    @property
    def done(self) -> bool:
        """Whether all sequences are over."""
        return self.output_tokens == sum(len(one.tokens) for one in self.answers)

    @property
    def output_tokens(self) -> int:
        """Tokens generated so far, over all sequences."""
        return sum(self.ends)

    def schedule(self) -> None:
        """The request has got its slot."""
        self.scheduled_s = self.due_s = time.monotonic()

    async def step(self, duration_s: float) -> list[Piece]:
        """Takes one step of that duration with each unfinished sequence."""
        # Steps follow a timetable: what one sleep is late, the next one makes up for.
        self.due_s += duration_s
        await asyncio.sleep(max(0.0, self.due_s - time.monotonic()))
        self.last_token_s = time.monotonic()
        return self._decode() if self.ends else self._prefill()

    def _prefill(self) -> list[Piece]:
        self.first_token_s, self.ends = self.last_token_s, [0] * len(self.answers)
        return [self._advance(index, 1) for index in range(len(self.answers))]

    def _decode(self) -> list[Piece]:
        unfinished = [i for i, one in enumerate(self.answers) if self.ends[i] < len(one.tokens)]
        return [self._advance(index, 1 + self._accept()) for index in unfinished]

    def _accept(self) -> int:
        """Number of drafted tokens that the target accepts: each one only if all before it were accepted."""
        accepted, most = 0, len(self.histogram) - 1
        while accepted < most and self.rng.random() < self.acceptance_rate:
            accepted += 1
        self.histogram[accepted] += 1
        return accepted

    def _advance(self, index: int, num_tokens: int) -> Piece:
        start, total = self.ends[index], len(self.answers[index].tokens)
        self.ends[index] = min(start + num_tokens, total)
        return Piece(index, start, self.ends[index], last=self.ends[index] == total)

    def metrics(self) -> dict[str, Any] | None:
        """The `metrics` object of vLLM's `enable_per_request_metrics`; None with several sequences, as there."""
        if len(self.answers) > 1:
            return None
        decode_s, total_s = self.last_token_s - self.first_token_s, self.last_token_s - self.scheduled_s
        metrics: dict[str, Any] = {
            "time_to_first_token_ms": (self.first_token_s - self.scheduled_s) * 1000,
            "generation_time_ms": decode_s * 1000,
            "queue_time_ms": (self.scheduled_s - self.queued_s) * 1000,
            "mean_itl_ms": decode_s / (self.output_tokens - 1) * 1000 if self.output_tokens > 1 else None,
            "tokens_per_second": self.output_tokens / total_s if total_s > 0 else None,
        }
        return metrics if len(self.histogram) == 1 else {**metrics, "speculative_decoding": self._speculation()}

    def _speculation(self) -> dict[str, Any]:
        """Names and formulas as in vLLM 0.29 (`RequestSpecDecodeMetrics.to_dict`)."""
        num_steps, most = sum(self.histogram), len(self.histogram) - 1
        accepted = sum(length * count for length, count in enumerate(self.histogram))
        return {
            "mean_acceptance_length": 1 + accepted / num_steps if num_steps else 1.0,
            "draft_acceptance_rate": accepted / (num_steps * most) if num_steps else 0.0,
            "acceptance_histogram": self.histogram,
            "num_spec_steps": num_steps,
            "num_accepted_draft_tokens": accepted,
            "num_draft_tokens": num_steps * most,
            "num_spec_tokens": most,
        }


def prompt_class(text: str) -> str:
    """Name in the first marker `[class:NAME]` of a prompt, else `DEFAULT_CLASS`."""
    found = _CLASS.search(text)
    return found[1] if found else DEFAULT_CLASS


def split(text: str) -> list[str]:
    """The tokens of a text; joined, they are the text again."""
    return _TOKEN.findall(text)


@lru_cache(maxsize=256)
def acceptance_rate(tau: float, num_speculative_tokens: int) -> float:
    """Chance p that a drafted token is accepted after its predecessors: solves p + p^2 + ... + p^k = tau - 1."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        short = sum(middle**i for i in range(1, num_speculative_tokens + 1)) < tau - 1
        low, high = (middle, high) if short else (low, middle)
    return high if tau > 1 else 0.0


def answer(request: MockRequest, prompt: str, sample: int, spec: MockSpec) -> Answer:
    """The target's answer number `sample` to a prompt."""
    rng, schema = random.Random(f"{spec.seed}|{sample}|{prompt}"), request.schema_of_answer
    tokens = _words(rng, spec.output_tokens) if schema is None else _json_tokens(schema, rng)
    tokens, stop_reason = _cut(tokens, request.stops)
    if request.limit is not None and request.limit < len(tokens):
        return Answer(tuple(tokens[: request.limit]), "length")
    return Answer(tuple(tokens), "stop", stop_reason)


def _words(rng: random.Random, count: int) -> list[str]:
    first, *others = rng.choices(_WORDS, k=count)
    return [first, *(f" {word}" for word in others)]


def _json_tokens(schema: dict[str, Any], rng: random.Random) -> list[str]:
    return split(orjson.dumps(_json_value(schema, rng)).decode())


def _json_value(schema: Any, rng: random.Random) -> Any:
    """A value for a plain schema (no references, no combinations: these become a string)."""
    if not isinstance(schema, dict):
        return rng.choice(_WORDS)
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    match schema.get("type"):
        case "object":
            return {name: _json_value(inner, rng) for name, inner in schema.get("properties", {}).items()}
        case "array":
            return [_json_value(schema.get("items"), rng)]
        case "integer" | "number":
            return rng.randint(0, 99)
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case _:
            return rng.choice(_WORDS)


def _cut(tokens: list[str], stops: Sequence[str]) -> tuple[list[str], str | None]:
    """Ends tokens before the first stop string; the token with the stop string's end still counts, as in vLLM."""
    text = "".join(tokens)
    found = [(text.index(stop), stop) for stop in stops if stop in text]
    if not found:
        return tokens, None
    at, stop = min(found)
    kept: list[str] = []
    position = 0
    while position < at + len(stop):
        token = tokens[len(kept)]
        kept.append(token[: max(0, at - position)])
        position += len(token)
    return kept, stop


def _text_of(content: Any) -> str:
    """All text in a message, a list of messages or of parts, or a list of token ids."""
    match content:
        case str():
            return content
        case int():
            return str(content)
        case list():
            return "\n".join(_text_of(part) for part in content)
        case {"text": inner} | {"content": inner}:
            return _text_of(inner)
        case _:
            return ""
