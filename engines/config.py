"""Configuration of a fleet: one target and its engines, each with one drafter or several, spelled as in vLLM."""

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError, field_validator, model_validator

from draftpick.engines.arms import NONE, pool_arm
from draftpick.engines.drafter_options import DRAFTERS, DrafterSpec, spec_of
from draftpick.engines.mock.spec import MockSpec

OWN_METHODS = tuple(method for method, spec in DRAFTERS.items() if spec.options is not None)
"""Methods that any vLLM has with Draftpick installed beside it."""
_POOLED_METHODS = tuple(method for method, spec in DRAFTERS.items() if spec.pooled)

EMBEDDED = "embedded"
"""Source of a model that ships with the project."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class Model(BaseModel):
    """Base of all configuration models: frozen; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """Return `did you mean 'x' or 'y'? `, with up to `most` of `known` that are close to `word`; "" without any."""
    matches = difflib.get_close_matches(word, list(known), n=most)
    return f"did you mean {' or '.join(map(repr, matches))}? " if matches else ""


class Target(Model):
    """The model whose output every engine preserves."""

    name: str = Field("smollm2-135m-instruct", min_length=1, description="the `model` in client requests")
    source: str = Field(EMBEDDED, min_length=1, description="`embedded`, a Hugging Face id, or a path")


class Drafter(BaseModel):
    """vLLM's `speculative_config`; fields not listed here pass through to vLLM unchanged."""

    model_config = ConfigDict(frozen=True, extra="allow")

    method: str = Field(
        min_length=1,
        description="a method that the engine's vLLM accepts, for example ngram, eagle3, draft_model, mtp, dflash or "
        f"dspark, or one of ours: {', '.join(OWN_METHODS)}",
    )
    model: str | None = Field(
        None, description="`embedded:<name>`, a Hugging Face id, a path, or a class for custom_class"
    )
    num_speculative_tokens: int = Field(3, ge=1, le=64, description="tokens drafted per step")

    @model_validator(mode="after")
    def _model_where_needed(self) -> Self:
        if self.model is None and self.spec.needs_model:
            raise ValueError(f"method {self.method!r} needs a `model` (a path, a Hugging Face id, or embedded:<name>)")
        return self

    @model_validator(mode="after")
    def _own_options(self) -> Self:
        if (options := self.spec.options or self.spec.added_options) is not None:
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
        return spec_of(self.method)


class PoolDrafter(Drafter):
    """A drafter of a pool: spelled as `drafter`, and with a name."""

    name: Name = Field(description=f"its arm is `<engine>/<name>`; `{NONE}` is always among a pool's drafters")

    @model_validator(mode="after")
    def _fits_a_pool(self) -> Self:
        if self.name == NONE:
            raise ValueError(f"{NONE!r} is the name for no draft, which every pool has; remove it or rename it")
        if not self.spec.pooled:
            raise ValueError(
                f"method {self.method!r} cannot share an engine; {did_you_mean(self.method, _POOLED_METHODS)}"
                "give it an engine of its own, or use one of: "
                f"{', '.join(_POOLED_METHODS)}"
            )
        return self


class Autoscaling(Model):
    """Serve's `autoscaling_config`, on requests in flight. At least one replica stays, to receive requests."""

    min_replicas: int = Field(1, ge=1, description="fewest replicas")
    max_replicas: int = Field(1, ge=1, description="maximum replicas, within `draftpick.router.load.autoscaler.budget`")
    initial_replicas: int | None = Field(None, ge=1, description="initial replicas; absent: `min_replicas`")
    target_ongoing_requests: float = Field(8.0, gt=0, description="target number of requests in flight per replica")
    upscale_delay_s: float = Field(
        30.0, ge=0, description="time for which demand must exceed capacity before replicas are added"
    )
    downscale_delay_s: float = Field(
        600.0, ge=0, description="time for which demand must stay below capacity before replicas are removed"
    )
    metrics_interval_s: float | None = Field(
        None, gt=0, description="interval of replica reports to Serve's controller; absent: Serve's default"
    )
    look_back_period_s: float | None = Field(
        None, gt=0, description="averaging window of the reports; absent: Serve's default"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must be at least min_replicas")
        return self


class Deployment(Model):
    """Ray Serve settings of an engine; other Serve deployment options go into `options`."""

    num_replicas: int = Field(1, ge=1, description="number of replicas; ignored with `autoscaling`")
    autoscaling: Autoscaling | None = Field(None, description="replaces `num_replicas`")
    accelerator: Literal["cpu", "gpu"] = Field("cpu", description="device of the engine's workers")
    accelerator_type: str | None = Field(None, description="Ray's accelerator type, for example H100")
    num_cpus: float = Field(0.5, ge=0, description="CPUs per worker; on CPUs also its number of threads")
    drain_timeout_s: float = Field(300.0, gt=0, description="maximum wait for running streams when a replica stops")
    profile: Literal["auto", "off"] = Field(
        "auto",
        description="auto: measure step times at the first start on a machine, in seconds, one engine per node at a "
        "time, before the first request or while the node is idle; off: only `draftpick profile` measures",
    )
    env: dict[str, str] = Field(default_factory=dict, description="environment variables of the replica")
    options: dict[str, Any] = Field(default_factory=dict, description="further Ray Serve deployment options")


class Engine(Model):
    """One engine. Its name is the arm that policies choose; a pool has an arm `<engine>/<drafter>` for each drafter."""

    name: Name = Field(description="the arm's name in policies, records and metrics")
    kind: Literal["vllm", "mock", "url"] = Field(
        "vllm", description="vllm: started by Draftpick; url: run externally (implied by `url`); mock: no model"
    )
    drafter: Drafter | None = Field(None, description="drafter; absent: no speculation, the baseline engine")
    drafters: tuple[PoolDrafter, ...] | None = Field(
        None, description="several drafters, which share the target: the engine is a pool; replaces `drafter`"
    )
    engine_kwargs: dict[str, Any] = Field(default_factory=dict, description="vLLM engine arguments, passed through")
    deployment: Deployment = Field(default_factory=Deployment, description="Ray Serve settings; not for kind `url`")
    url: HttpUrl | None = Field(None, description="address of an externally run engine")
    api_key_env: str | None = Field(
        None, min_length=1, description="environment variable with the engine's own API key (`vllm serve --api-key`)"
    )
    api_key_file: Path | None = Field(None, description="file with the engine's own API key")
    ca_file: Path | None = Field(
        None, description="PEM file of the authorities that may have signed the engine's certificate"
    )
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
            raise ValueError("an engine of kind `url` needs `url`; remove `url` for other kinds")
        if self.url is None and any((self.api_key_env, self.api_key_file, self.ca_file)):
            raise ValueError("`api_key_env`, `api_key_file` and `ca_file` need `url`; remove them")
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("`api_key_env` and `api_key_file` exclude each other; remove one")
        if self.mock is not None and self.kind != "mock":
            raise ValueError("`mock` needs `kind: mock`; set it or remove `mock`")
        if self.kind == "mock" and self.drafters is not None:
            raise ValueError("the drafters of a mock pool are in `mock.drafters`; remove `drafters`")
        if self.drafter is not None and self.drafters is not None:
            raise ValueError("`drafter` and `drafters` exclude each other; move the one into the list, or remove it")
        return self

    @field_validator("drafters")
    @classmethod
    def _unique_drafters(cls, drafters: tuple[PoolDrafter, ...] | None) -> tuple[PoolDrafter, ...] | None:
        if drafters is None:
            return None
        if not drafters:
            raise ValueError("a pool needs at least one drafter; add one, or remove `drafters`")
        if twice := _twice([drafter.name for drafter in drafters]):
            raise ValueError(f"duplicate drafter names: {', '.join(twice)}; rename them")
        return drafters

    @property
    def pooled_names(self) -> tuple[str, ...]:
        """Names of a pool's drafters but `none`; empty for other engines."""
        return tuple(self.mock.drafters if self.mock is not None else (one.name for one in self.drafters or ()))

    @property
    def is_pool(self) -> bool:
        """True if the engine holds several drafters."""
        return bool(self.pooled_names)

    @property
    def arms(self) -> tuple[str, ...]:
        """The engine's arms: its name; of a pool, one for each drafter, `none` first."""
        if not self.is_pool:
            return (self.name,)
        return tuple(pool_arm(self.name, drafter) for drafter in (NONE, *self.pooled_names))

    def placed_drafters(self) -> Iterator[tuple[str, Drafter]]:
        """Yield the path of each drafter in the engine's configuration, and the drafter."""
        if self.drafter is not None:
            yield "drafter", self.drafter
        for i, drafter in enumerate(self.drafters or ()):
            yield f"drafters.{i}", drafter

    def drafter_of_arm(self) -> dict[str, Drafter | None]:
        """Return the drafter of each of its arms, None for one without."""
        if self.drafters is None:
            return {self.name: self.drafter}
        return dict(zip(self.arms, (None, *self.drafters), strict=True))

    @property
    def has_drafter(self) -> bool:
        """True if a drafter is configured, or several."""
        return self.drafter is not None or self.is_pool

    @property
    def drafts(self) -> bool | None:
        """True if the engine has a drafter; None if unknown (an external engine without a declared drafter)."""
        if self.mock is not None:
            return self.mock.num_speculative_tokens > 0 or self.is_pool
        return True if self.has_drafter else None if self.kind == "url" else False

    @property
    def can_replay(self) -> bool:
        """True if its acceptance can be replayed from the target's answers; False for mock engines and for external
        engines without a declared drafter.
        """
        if self.kind == "mock" or not self.has_drafter:
            return self.kind == "vllm"
        return all(drafter.spec.replayable for _, drafter in self.placed_drafters())


class FleetConfig(Model):
    """One target and the engines that serve it."""

    target: Target = Field(default_factory=Target, description="model whose output every engine preserves")
    engines: tuple[Engine, ...] = Field(description="at least one engine, each with a unique name")
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="vLLM engine arguments shared by all engines"
    )
    engine_host: str = Field("127.0.0.1", description="address that engines bind to; `node`: the address of their node")

    @field_validator("engines")
    @classmethod
    def _unique_names(cls, engines: tuple[Engine, ...]) -> tuple[Engine, ...]:
        if not engines:
            raise ValueError("at least one engine is needed")
        if twice := _twice([engine.name for engine in engines]):
            raise ValueError(f"duplicate engine names: {', '.join(twice)}; rename them")
        return engines

    @property
    def drain_timeout_s(self) -> float:
        """Maximum wait for running streams at shutdown: the longest of all engines."""
        return max(engine.deployment.drain_timeout_s for engine in self.engines)

    @property
    def accelerators(self) -> dict[str, int]:
        """Accelerators (CPU workers for engines on CPUs) per replica of each engine."""
        sizes = ("tensor_parallel_size", "pipeline_parallel_size")
        merged = {engine.name: {**self.engine_kwargs, **engine.engine_kwargs} for engine in self.engines}
        return {name: math.prod(int(kwargs.get(size, 1)) for size in sizes) for name, kwargs in merged.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the engines, in configuration order."""
        return tuple(engine.name for engine in self.engines)

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms, in configuration order: an engine's name, or those of a pool's drafters."""
        return tuple(arm for engine in self.engines for arm in engine.arms)


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
