"""The fleet as a user writes it: one target, a list of engines, each with one drafter spelled as vLLM spells it."""

import difflib
import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError, field_validator, model_validator

from draftpick.engines.drafter_options import DRAFTERS, DrafterSpec
from draftpick.engines.mock.spec import MockSpec

DRAFTER_METHODS = tuple(DRAFTERS)
"""Methods that an engine may name: the values of vLLM's `speculative_config.method`, and our own."""
_OWN_METHODS = sum(spec.options is not None for spec in DRAFTERS.values())

EMBEDDED = "embedded"
"""The source of a model that comes with the project."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class Model(BaseModel):
    """Base of all configuration: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? ` when one of `known` is close to `word`, else nothing."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {match[0]!r}? " if match else ""


class Target(Model):
    """The model whose output every engine preserves."""

    name: str = Field("smollm2-135m-instruct", min_length=1, description="the `model` that clients name")
    source: str = Field(EMBEDDED, min_length=1, description="`embedded`, a Hugging Face id, or a path")


class Drafter(BaseModel):
    """vLLM's `speculative_config`; what is not named here passes through to vLLM as it is written."""

    model_config = ConfigDict(frozen=True, extra="allow")

    method: str = Field(description=f"one of {', '.join(DRAFTER_METHODS)}: all but the last {_OWN_METHODS} are vLLM's")
    model: str | None = Field(
        None, description="`embedded:<name>`, a Hugging Face id, a path, or a class for custom_class"
    )
    num_speculative_tokens: int = Field(3, ge=1, le=64, description="tokens drafted in one step")

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        if method not in DRAFTER_METHODS:
            raise ValueError(
                f"unknown method {method!r} ({did_you_mean(method, DRAFTER_METHODS)}allowed: "
                f"{', '.join(DRAFTER_METHODS)})"
            )
        return method

    @model_validator(mode="after")
    def _model_where_needed(self) -> Self:
        if self.model is None and self.spec.needs_model:
            raise ValueError(f"method {self.method!r} needs a `model` (a path, a Hugging Face id, or embedded:<name>)")
        return self

    @model_validator(mode="after")
    def _own_options(self) -> Self:
        if (options := self.spec.options) is not None:
            try:
                checked = options.model_validate(self.model_extra or {})
            except ValidationError as error:
                first = error.errors()[0]
                *above, name = path = [str(part) for part in first["loc"]]
                problem = first["msg"]
                if first["type"] == "extra_forbidden":
                    known: Any = options
                    for part in above:
                        known = known.model_fields[part].annotation
                    fields = sorted(known.model_fields)
                    problem = f"unknown field ({did_you_mean(name, fields)}allowed: {', '.join(fields)})"
                raise ValueError(f"{'.'.join(path)}: {problem}") from error
            if (wrong := checked.problem(self.num_speculative_tokens)) is not None:
                raise ValueError(wrong)
        return self

    @property
    def spec(self) -> DrafterSpec:
        """What is known of its method."""
        return DRAFTERS[self.method]


class Autoscaling(Model):
    """Serve's `autoscaling_config`, on requests in flight. One replica stays at least: none would ask for another."""

    min_replicas: int = Field(1, ge=1, description="fewest replicas")
    max_replicas: int = Field(1, ge=1, description="most replicas, within `router.autoscaling.max_accelerators`")
    initial_replicas: int | None = Field(None, ge=1, description="replicas to begin with; absent: `min_replicas`")
    target_ongoing_requests: float = Field(8.0, gt=0, description="requests in flight that one replica should have")
    upscale_delay_s: float = Field(30.0, ge=0, description="how long more must be wanted until replicas are added")
    downscale_delay_s: float = Field(
        600.0, ge=0, description="how long fewer must be wanted until replicas are removed"
    )
    metrics_interval_s: float | None = Field(
        None, gt=0, description="how often replicas report to Serve's controller; absent: Serve's default"
    )
    look_back_period_s: float | None = Field(
        None, gt=0, description="time that reports are averaged over; absent: Serve's default"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must be at least min_replicas")
        return self


class Deployment(Model):
    """How Ray Serve runs an engine; what is not named here goes into `options`, which are Serve's own."""

    num_replicas: int = Field(1, ge=1, description="replicas, unless `autoscaling` is given")
    autoscaling: Autoscaling | None = Field(None, description="replaces `num_replicas`")
    accelerator: Literal["cpu", "gpu"] = Field("cpu", description="what the engine's workers run on")
    accelerator_type: str | None = Field(None, description="Ray's accelerator type, such as H100")
    num_cpus: float = Field(0.5, ge=0, description="CPUs of one worker; on CPUs also its number of threads")
    drain_timeout_s: float = Field(300.0, gt=0, description="longest wait for running streams when a replica stops")
    profile: Literal["auto", "off"] = Field(
        "off",
        description="auto: measure what a step takes at the first start on a machine, one engine of a node at a time; "
        "off: leave that to `draftpick profile`",
    )
    env: dict[str, str] = Field(default_factory=dict, description="environment of the replica")
    options: dict[str, Any] = Field(default_factory=dict, description="further options of a Serve deployment")


class Engine(Model):
    """One engine. Its name is the arm that policies choose."""

    name: Name = Field(description="the arm, as policies, records and metrics call it")
    kind: Literal["vllm", "mock", "url"] = Field(
        "vllm", description="vllm: started here; url: somebody else runs it, as one with a `url` is; mock: no model"
    )
    drafter: Drafter | None = Field(None, description="what proposes tokens; absent: nothing does, the plain engine")
    engine_kwargs: dict[str, Any] = Field(default_factory=dict, description="vLLM's engine arguments, passed through")
    deployment: Deployment = Field(default_factory=Deployment, description="how Ray Serve runs it; not for a `url`")
    url: HttpUrl | None = Field(None, description="where an engine that somebody else runs listens")
    mock: MockSpec | None = Field(None, description="speed, acceptance and faults of a mock engine")

    @model_validator(mode="before")
    @classmethod
    def _kind_of_url(cls, data: Any) -> Any:
        if isinstance(data, dict) and "url" in data and "kind" not in data:
            return {**data, "kind": "url"}
        return data

    @model_validator(mode="after")
    def _fields_of_kind(self) -> Self:
        if (self.kind == "url") != (self.url is not None):
            raise ValueError("an engine of kind `url` needs `url`, and no other kind takes it")
        if self.mock is not None and self.kind != "mock":
            raise ValueError("`mock` goes with `kind: mock`")
        return self

    @property
    def drafts(self) -> bool | None:
        """Whether it has a drafter; None: nobody says, of an engine that somebody else runs."""
        if self.mock is not None:
            return self.mock.num_speculative_tokens > 0
        return True if self.drafter is not None else None if self.kind == "url" else False

    @property
    def can_replay(self) -> bool:
        """Whether what it accepts follows from the target's answers: of a mock engine it does not, nor of one that
        somebody else runs and whose drafter is not given here."""
        if self.kind == "mock" or self.drafter is None:
            return self.kind == "vllm"
        return self.drafter.spec.replayable


class FleetConfig(Model):
    """One target and the engines that serve it."""

    target: Target = Field(default_factory=Target, description="the model whose output every engine preserves")
    engines: tuple[Engine, ...] = Field(description="one or more, each with a name and at most one drafter of its own")
    engine_kwargs: dict[str, Any] = Field(default_factory=dict, description="vLLM arguments that all engines share")
    engine_host: str = Field(
        "127.0.0.1", description="address that engines listen on; `node`: the address of their node"
    )

    @field_validator("engines")
    @classmethod
    def _unique_names(cls, engines: tuple[Engine, ...]) -> tuple[Engine, ...]:
        if not engines:
            raise ValueError("at least one engine is needed")
        names = [engine.name for engine in engines]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"engine names must be unique, found twice: {', '.join(twice)} (rename one of them)")
        return engines

    @property
    def drain_timeout_s(self) -> float:
        """Longest wait for running streams when everything stops."""
        return max(engine.deployment.drain_timeout_s for engine in self.engines)

    @property
    def accelerators(self) -> dict[str, int]:
        """Accelerators, or workers on CPUs, of one replica of each engine."""
        sizes = ("tensor_parallel_size", "pipeline_parallel_size")
        merged = {engine.name: {**self.engine_kwargs, **engine.engine_kwargs} for engine in self.engines}
        return {name: math.prod(int(kwargs.get(size, 1)) for size in sizes) for name, kwargs in merged.items()}

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the engines, in the order of the configuration."""
        return tuple(engine.name for engine in self.engines)
