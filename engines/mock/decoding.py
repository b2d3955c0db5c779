"""Text, speed and acceptance of a mock engine, drawn from seeds; no HTTP.

The text follows from the request and `MockSpec.seed` alone, so that all mock engines give the same answer to the same
prompt, as lossless speculation does. Acceptance and jitter are drawn per engine and prompt.
"""

import asyncio
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import orjson

from draftpick.engines.mock.acceptance import acceptance_rate
from draftpick.engines.mock.pool import PoolDrafts
from draftpick.engines.mock.spec import MockRequest, MockSpec
from draftpick.engines.pool.report import FIELD

_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s]+)|\s+")
_WORDS = ("the", "a", "of", "to", "in", "and", "is", "that", "we", "it", "as", "for", "with", "on", "from", "are")

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated sequence: the texts of its tokens and its finish reason."""

    tokens: tuple[str, ...]
    finish_reason: FinishReason
    stop_reason: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class Piece:
    """Output of one step for sequence `index`: tokens `start` up to `end`; `last` at the end of the sequence."""

    index: int
    start: int
    end: int
    last: bool


@dataclass(slots=True)
class Decoding:
    """One request in progress. The first step is the prefill and yields one token per sequence, as in vLLM; each
    further step yields 1 + accepted tokens of the `drafted` ones; `varies`: drafts have any length; `pool`: its drafts
    at a pool. Times are seconds of the monotonic clock.
    """

    answers: list[Answer]
    prompt_tokens: int
    acceptance_rate: float
    mode: int
    varies: bool
    rng: random.Random
    histogram: list[int]
    pool: PoolDrafts | None = None
    drafted: int = 0
    num_drafted: int = 0
    ends: list[int] = field(default_factory=list)
    queued_s: float = 0.0
    scheduled_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    due_s: float = 0.0

    @classmethod
    def start(cls, request: MockRequest, spec: MockSpec, engine: str) -> Self:
        """Create the decoding of a request on the named engine."""
        prompts = request.prompts
        num_drafted = max((spec.num_speculative_tokens, *map(spec.draft_length, spec.drafters)))
        text = "\n".join(prompts)
        rng = random.Random(f"{spec.seed}|{engine}|{text}")
        return cls(
            answers=[answer(request, prompt, i, spec) for prompt in prompts for i in range(request.num_samples)],
            prompt_tokens=sum(max(1, len(split(prompt))) for prompt in prompts),
            acceptance_rate=acceptance_rate(spec.tau(text, request.mock_class), num_drafted),
            mode=request.mode,
            varies=spec.step_s_per_drafted_token > 0,
            rng=rng,
            histogram=[0] * (num_drafted + 1),
            pool=PoolDrafts.start(request, spec, rng),
            queued_s=time.monotonic(),
        )

    @property
    def done(self) -> bool:
        """True if all sequences have ended."""
        return self.output_tokens == sum(len(one.tokens) for one in self.answers)

    @property
    def output_tokens(self) -> int:
        """Tokens generated so far, over all sequences."""
        return sum(self.ends)

    def schedule(self) -> None:
        """Record that the request has got its slot."""
        self.scheduled_s = self.due_s = time.monotonic()

    def draft(self) -> int:
        """Draft the next step; returns the number of tokens."""
        most = len(self.histogram) - 1
        self.drafted = self.rng.randint(0, most) if self.varies else most
        return self.drafted

    async def step(self, duration_s: float) -> list[Piece]:
        """Run one step of that duration for each unfinished sequence."""
        # Steps follow a timetable: the next step makes up for a late wake-up.
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
        """Draw the number of accepted draft tokens: each only if all before it were accepted."""
        accepted = 0 if self.pool is None else self.pool.accept()
        while self.pool is None and accepted < self.drafted and self.rng.random() < self.acceptance_rate:
            accepted += 1
        self.histogram[accepted] += 1
        self.num_drafted += self.drafted
        return accepted

    def _advance(self, index: int, num_tokens: int) -> Piece:
        start, total = self.ends[index], len(self.answers[index].tokens)
        self.ends[index] = min(start + num_tokens, total)
        return Piece(index, start, self.ends[index], last=self.ends[index] == total)

    def metrics(self) -> dict[str, Any] | None:
        """Return `metrics` as vLLM's `enable_per_request_metrics` does; None with several sequences."""
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
        by_drafter = {} if self.pool is None else {FIELD: self.pool.to_fields()}
        return {
            "mean_acceptance_length": 1 + accepted / num_steps if num_steps else 1.0,
            "draft_acceptance_rate": accepted / self.num_drafted if self.num_drafted else 0.0,
            "acceptance_histogram": self.histogram,
            "num_spec_steps": num_steps,
            "num_accepted_draft_tokens": accepted,
            "num_draft_tokens": self.num_drafted,
            "num_spec_tokens": most,
            **by_drafter,
        }


def split(text: str) -> list[str]:
    """Split a text into tokens; joined, they equal the text."""
    return _TOKEN.findall(text)


def answer(request: MockRequest, prompt: str, sample: int, spec: MockSpec) -> Answer:
    """Return the target's answer number `sample` to a prompt."""
    rng, schema = random.Random(f"{spec.seed}|{sample}|{prompt}"), request.schema_of_answer
    endless = request.ignore_eos and request.limit is not None
    count = 1 + (request.limit or 0) if endless else spec.output_tokens
    tokens = _words(rng, count) if schema is None else _json_tokens(schema, rng)
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
    """Return a value for a plain schema; references and combinations become strings."""
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
    """Truncate before the first stop string; the token with the end of the stop string still counts, as in vLLM."""
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
