"""Checks of the engines against each other: required agreement, and the composition of the fleet."""

from collections.abc import Iterator
from typing import Any

from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning
from draftpick.engines.arms import engine_of

_OUTPUT = (
    *("dtype", "quantization", "quantization_config", "kv_cache_dtype", "revision", "tokenizer_revision"),
    *("tokenizer_mode", "hf_overrides", "chat_template", "chat_template_content_format", "generation_config"),
    *("override_generation_config", "load_format", "enable_lora", "lora_modules", "model_impl"),
)
"""Arguments that change an engine's answers."""
_SHAPE = (
    *("reasoning_parser", "enable_auto_tool_choice", "tool_call_parser", "max_logprobs", "logprobs_mode"),
    *("return_tokens_as_token_ids", "enable_prompt_tokens_details", "structured_outputs_config"),
)
"""Arguments that change accepted requests, or the format of answers."""


def _values(context: DoctorContext, name: str) -> dict[str, Any]:
    """Value of an argument by engine started by Draftpick; None: not set."""
    return {engine.name: kwargs.get(name) for _, engine, kwargs in context.started}


def _differs(values: dict[str, Any]) -> str | None:
    """Describe the values by engine if they differ, else None."""
    said: dict[str, list[str]] = {}
    for name, value in values.items():
        said.setdefault("nothing" if value is None else str(value), []).append(name)
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in said.items()) if len(said) > 1 else None


@check("fleet", "all engines would give the same answers")
def same_output(context: DoctorContext) -> Iterator[Finding]:
    """The answer must be the target's on every engine."""
    for name in _OUTPUT:
        if said := _differs(_values(context, name)):
            yield problem(
                f"engines.*.engine_kwargs.{name}", f"engines differ ({said})", f"set {name} once, in engine_kwargs",
                "answers then depend on the engine, and routing is no longer lossless",
            )  # fmt: skip
    for name in _SHAPE:
        if said := _differs(_values(context, name)):
            yield warning(
                f"engines.*.engine_kwargs.{name}", f"engines differ ({said})", f"set {name} once, in engine_kwargs",
                "clients then get another format, or an error, depending on the engine",
            )  # fmt: skip


@check("fleet", "all engines have the same maximum length and cache settings")
def same_capacity(context: DoctorContext) -> Iterator[Finding]:
    """A request must fit on every engine, and its time must depend on the drafter, not on other settings."""
    whys = {
        "max_model_len": "a request that one engine answers gets a 400 from the other",
        "enable_prefix_caching": "TTFT then differs by engine, regardless of the drafter",
        "max_num_seqs": "one engine then queues at a load that the other can run, regardless of the drafter",
    }
    for name, why in whys.items():
        if said := _differs(_values(context, name)):
            say = note if name == "max_num_seqs" else warning
            fix = f"set {name} once, in engine_kwargs"
            yield say(f"engines.*.engine_kwargs.{name}", f"engines differ ({said})", fix, why)


@check("fleet", "there is an engine without a drafter")
def plain_engine(context: DoctorContext) -> Iterator[Finding]:
    """At high load, and for sampled requests, drafting costs more than it saves. A pool may draft nothing."""
    drafts = {engine.name: engine.drafts for engine in context.config.engines}
    drafts |= {name: one.drafts for name, one in context.answering.items() if one.drafts is not None}
    if any(value is False for value in drafts.values()) or any(one.is_pool for one in context.config.engines):
        return
    why = "under heavy load and for sampled requests drafts cost more than they save, and nothing else could serve"
    if unknown := [name for name, value in drafts.items() if value is None]:
        yield note(
            "engines", f"whether {', '.join(unknown)} have drafters is unknown, and all other engines have one",
            "set `drafter` for each engine, and run one engine without", why,
        )  # fmt: skip
    else:
        yield warning("engines", "every engine has a drafter", "add an engine without one: {name: plain}", why)


@check("fleet", "there is something to choose from")
def one_engine(context: DoctorContext) -> Iterator[Finding]:
    """Routing needs two different engines, or a pool."""
    if len(context.config.arms) == 1:
        yield warning(
            "engines", "the fleet has one engine", "add one with another drafter, or serve it without a router",
            "there is nothing to choose from: `vllm serve` alone is simpler",
        )  # fmt: skip


@check("router", "the default engine is without a drafter")
def default_engine(context: DoctorContext) -> Iterator[Finding]:
    """The engine that serves when the policy cannot must suit every request."""
    default = engine_of(context.config.router.default_engine)
    drafts = {engine.name: engine.drafts and not engine.is_pool for engine in context.config.engines}
    plain = [name for name, value in drafts.items() if value is False]
    if drafts[default] and plain:
        yield note(
            "router.default_engine", f"{default} has a drafter", f"default_engine: {plain[0]}",
            "it serves whenever the policy fails, including sampled requests, under any load",
        )  # fmt: skip


@check("fleet", "no engine is a mock")
def mocks(context: DoctorContext) -> Iterator[Finding]:
    """A mock answers random words."""
    fake = [engine.name for engine in context.config.engines if engine.kind == "mock"]
    if fake and len(fake) < len(context.config.engines):
        yield problem(
            "engines", f"{', '.join(fake)}: mock engines among real ones", "remove them",
            "they answer without a model: clients would get random words",
        )  # fmt: skip
    elif fake:
        yield note("engines", "all engines are mocks", "", "for experiments: they answer without a model")
