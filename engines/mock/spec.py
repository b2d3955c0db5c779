"""Inputs of a mock engine: its configuration (`MockSpec`) and a request (`MockRequest`)."""

import random
import re
from typing import Annotated, Any, Self

import pydantic
from pydantic import Field

from draftpick.engines.arms import NONE
from draftpick.engines.profile.identity import EngineIdentity, digest
from draftpick.engines.profile.profile import GREEDY, MODES, Profile, sampling_mode

DEFAULT_CLASS = "default"
_SHORTEST_STEP_S = 1e-6
_CLASS = re.compile(r"\[class:([\w-]+)\]")

Share = Annotated[float, Field(ge=0, le=1)]
AcceptanceLength = Annotated[float, Field(ge=1)]


class MockDrafter(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A drafter of a mock pool."""

    num_speculative_tokens: int = Field(3, ge=1, description="number of drafted tokens")
    acceptance_length: AcceptanceLength = Field(1.0, description="tau of unlisted prompt classes")
    acceptance_by_class: dict[str, AcceptanceLength] = Field({}, description="tau by prompt class")
    step_s: float = Field(0.0, ge=0, description="additional seconds of a step that it drafts")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        _check_taus(self.num_speculative_tokens, self.acceptance_length, self.acceptance_by_class)
        return self

    def tau(self, text: str, named: str | None = None) -> float:
        """Mean tokens per step; see `MockSpec.tau`."""
        return self.acceptance_by_class.get(named or prompt_class(text), self.acceptance_length)


class MockSpec(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The `mock:` block of an engine's configuration: speed, acceptance and faults of a mock engine."""

    step_s: float = Field(0.002, ge=0, description="seconds of one decoding step at batch 1")
    step_s_per_request: float = Field(
        0.0, ge=0, description="additional seconds per step for each further running request"
    )
    free_requests: int = Field(
        0, ge=0, description="further requests without additional step time, as while a step is memory-bound"
    )
    step_s_per_drafted_token: float = Field(
        0.0,
        ge=0,
        description="additional seconds per step for each drafted token; drafts then have any length up to "
        "`num_speculative_tokens`",
    )
    step_s_sampled: float = Field(0.0, ge=0, description="additional seconds per step of a sampled request")
    step_s_truncated: float = Field(
        0.0, ge=0, description="additional seconds per step of a request sampled with top_p or top_k"
    )
    shared_steps: bool = Field(
        False,
        description="a step takes that of its whole batch: of the most expensive sampling mode in it, and of each "
        "drafter of a pool in it once, with a share for each further request",
    )
    prefill_s: float = Field(0.001, ge=0, description="seconds from a request's slot to its first token")
    prefill_s_per_token: float = Field(0.0, ge=0, description="additional seconds of prefill per prompt token")
    acceptance_length: AcceptanceLength = Field(
        1.0, description="tau: mean tokens per step, bonus token included, of unlisted prompt classes"
    )
    acceptance_by_class: dict[str, AcceptanceLength] = Field({}, description="tau by prompt class")
    num_speculative_tokens: int = Field(0, ge=0, description="maximum number of accepted tokens per step")
    drafters: dict[str, MockDrafter] = Field({}, description="drafters by name: the engine is a pool")
    adapters: tuple[str, ...] = Field((), description="adapters of the target that it serves, by name")
    jitter: float = Field(0.0, ge=0, description="coefficient of variation of a step's duration")
    output_tokens: int = Field(32, ge=1, description="tokens per answer, unless the request allows fewer")
    max_running: int = Field(256, ge=1, description="maximum concurrent requests; the others wait in arrival order")
    fail_share: Share = Field(0.0, description="share of requests that get an immediate 500")
    refuse_share: Share = Field(0.0, description="share of requests that get an immediate 503 with Retry-After")
    hang_share: Share = Field(0.0, description="share of requests that occupy a slot and get no answer")
    break_share: Share = Field(0.0, description="share of requests with a connection cut in mid-answer")
    garbage_share: Share = Field(
        0.0, description="share of requests that get 200 and bytes that are neither JSON nor SSE"
    )
    seed: int = Field(0, description="random seed; engines with the same seed give the same text")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        _check_taus(self.num_speculative_tokens, self.acceptance_length, self.acceptance_by_class)
        if self.drafters and self.num_speculative_tokens:
            raise ValueError("`drafters` and `num_speculative_tokens` exclude each other: remove one")
        if NONE in self.drafters:
            raise ValueError(f"drafters: {NONE!r} is always among them; remove it")
        if sum(self.fault_shares.values()) > 1 + 1e-9:
            raise ValueError("the fault shares sum to more than 1: reduce them")
        return self

    @property
    def fault_shares(self) -> dict[str, float]:
        """Share of requests by fault; faults are mutually exclusive."""
        names = ("fail", "refuse", "hang", "break", "garbage")
        return {name: getattr(self, f"{name}_share") for name in names}

    def prefill_duration_s(self, prompt_tokens: int) -> float:
        """Seconds from a request's slot to its first token."""
        return self.prefill_s + self.prefill_s_per_token * prompt_tokens

    def drafter_s(self, name: str) -> float:
        """Additional seconds of a step that this drafter of a pool drafts."""
        drafter = self.drafters.get(name)
        return 0.0 if drafter is None else drafter.step_s

    def draft_length(self, name: str) -> int:
        """Tokens of a draft of this drafter of a pool."""
        drafter = self.drafters.get(name)
        return 0 if drafter is None else drafter.num_speculative_tokens

    def step_duration_s(
        self, running: int, rng: random.Random, mode: int = GREEDY, drafted: int = 0, added_s: float = 0.0
    ) -> float:
        """Seconds of one decoding step with `running` requests in the batch, for one that drafted so many tokens, by a
        drafter that adds `added_s`."""
        mean_s = self.mean_step_s(running, mode) + self.step_s_per_drafted_token * (drafted - self.mean_drafted)
        mean_s += added_s
        return max(0.0, mean_s * rng.gauss(1.0, self.jitter))

    def mean_step_s(self, running: int, mode: int = GREEDY) -> float:
        """Mean of `step_duration_s`: constant within the free requests, linear beyond."""
        grown_s = self.step_s_per_request * max(0, running - 1 - self.free_requests)
        added_s = (0.0, self.step_s_sampled, self.step_s_truncated)[mode]
        return self.step_s + grown_s + added_s + self.step_s_per_drafted_token * self.mean_drafted

    @property
    def mean_drafted(self) -> float:
        """Mean number of drafted tokens of a step."""
        return self.num_speculative_tokens * (0.5 if self.step_s_per_drafted_token else 1.0)

    def identity(self) -> EngineIdentity:
        """The identity shared by all engines with this specification."""
        return EngineIdentity(digest(self.model_dump(mode="json")), "mock", self.max_running, tuple(self.drafters))

    def profile(self) -> Profile:
        """The profile that a noise-free measurement of this engine would give."""
        bend = min(1 + self.free_requests, self.max_running)
        batches = sorted({1, bend, self.max_running})
        # A profile needs positive step times.
        steps = tuple(
            tuple((max(self.mean_step_s(running, mode), _SHORTEST_STEP_S),) for running in batches)
            for mode in range(len(MODES))
        )
        who = self.identity()
        return Profile(
            build=who.build, machine=who.machine, batches=tuple(batches), contexts=(0,), step_s=steps,
            prefill_s=self.prefill_s, prefill_s_per_token=self.prefill_s_per_token, max_running=self.max_running,
            drafter_s={name: self.drafter_s(name) for name in self.drafters},
        )  # fmt: skip

    def tau(self, text: str, named: str | None = None) -> float:
        """Mean tokens per step, bonus token included, for a prompt of class `named`, or of its first marker
        `[class:NAME]`."""
        return self.acceptance_by_class.get(named or prompt_class(text), self.acceptance_length)


class StreamOptions(pydantic.BaseModel, frozen=True):
    include_usage: bool = False


class MockRequest(pydantic.BaseModel, frozen=True):
    """Supported fields of an OpenAI request; all others are accepted and ignored."""

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
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool | int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    vllm_xargs: dict[str, Any] | None = None
    mock_class: str | None = Field(None, description="the prompt's class, instead of a marker in its text")

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
    def mode(self) -> int:
        """The sampling mode, one of `draftpick.engines.profile.profile.MODES`."""
        return sampling_mode({"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k})

    @property
    def num_samples(self) -> int:
        """Answers per prompt; `/v1/responses` has no `n`."""
        return 1 if self.input is not None else self.n

    @property
    def limit(self) -> int | None:
        """Maximum tokens of one answer; None: no limit requested."""
        return self.max_completion_tokens or self.max_tokens or self.max_output_tokens

    @property
    def stops(self) -> list[str]:
        """Stop strings that are not empty."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def include_usage(self) -> bool:
        """True if a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def forced_tool(self) -> dict[str, Any] | None:
        """The function (`name`, `parameters`) forced by `tool_choice`."""
        functions: list[dict[str, Any]] = [tool.get("function", tool) for tool in self.tools or []]
        if self.messages is None or not functions or self.tool_choice in (None, "auto", "none"):
            return None
        if isinstance(self.tool_choice, str):
            return functions[0]
        name = self.tool_choice.get("function", {}).get("name")
        return next((function for function in functions if function.get("name") == name), None)

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """JSON schema of the answer; None: plain text."""
        if self.forced_tool is not None:
            return self.forced_tool.get("parameters") or {"type": "object"}
        form = self.response_format or (self.text or {}).get("format") or {}
        if form.get("type") == "json_object":
            return {"type": "object", "properties": {"answer": {"type": "string"}}}
        schema = form.get("json_schema", form).get("schema") if form.get("type") == "json_schema" else None
        return schema if isinstance(schema, dict) else None


def _check_taus(length: int, tau: float, by_class: dict[str, float]) -> None:
    for name, value in {"acceptance_length": tau, **by_class}.items():
        if value > 1 + length:
            raise ValueError(f"{name}: {value} exceeds 1 + num_speculative_tokens = {1 + length}")


def prompt_class(text: str) -> str:
    """Return the name in the first marker `[class:NAME]` of a prompt, or `DEFAULT_CLASS`."""
    found = _CLASS.search(text)
    return found[1] if found else DEFAULT_CLASS


def _text_of(content: Any) -> str:
    """Return all text in a message, a list of messages or parts, or a list of token ids."""
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
