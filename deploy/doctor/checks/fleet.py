"""Checks of the engines beside one another: what must be alike, and who is there at all."""

from collections.abc import Iterator
from typing import Any

from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning

_OUTPUT = (
    *("dtype", "quantization", "quantization_config", "kv_cache_dtype", "revision", "tokenizer_revision"),
    *("tokenizer_mode", "hf_overrides", "chat_template", "chat_template_content_format", "generation_config"),
    *("override_generation_config", "load_format", "enable_lora", "lora_modules", "model_impl"),
)
"""Arguments that change what an engine answers."""
_SHAPE = (
    *("reasoning_parser", "enable_auto_tool_choice", "tool_call_parser", "max_logprobs", "logprobs_mode"),
    *("return_tokens_as_token_ids", "enable_prompt_tokens_details", "structured_outputs_config"),
)
"""Arguments that change what may be asked of it, or how an answer looks."""


def _values(context: DoctorContext, name: str) -> dict[str, Any]:
    """What every engine that Draftpick starts says of an argument, None: nothing."""
    return {engine.name: kwargs.get(name) for _, engine, kwargs in context.started}


def _differs(values: dict[str, Any]) -> str | None:
    """Who says what, where not all say the same."""
    said: dict[str, list[str]] = {}
    for name, value in values.items():
        said.setdefault("nothing" if value is None else str(value), []).append(name)
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in said.items()) if len(said) > 1 else None


@check("fleet", "all engines would answer alike")
def same_output(context: DoctorContext) -> Iterator[Finding]:
    """Whichever engine runs a request, the answer must be the target's."""
    for name in _OUTPUT:
        if said := _differs(_values(context, name)):
            yield problem(
                f"engines.*.engine_kwargs.{name}", f"engines differ ({said})", f"say {name} once, in engine_kwargs",
                "answers then depend on the engine, and routing is no longer free of risk",
            )  # fmt: skip
    for name in _SHAPE:
        if said := _differs(_values(context, name)):
            yield warning(
                f"engines.*.engine_kwargs.{name}", f"engines differ ({said})", f"say {name} once, in engine_kwargs",
                "clients then get answers of another form, or an error, from one engine and not from the other",
            )  # fmt: skip


@check("fleet", "all engines take requests of one length, and cache alike")
def same_capacity(context: DoctorContext) -> Iterator[Finding]:
    """A request must fit wherever it is sent, and its time must come from its drafter, not from other settings."""
    whys = {
        "max_model_len": "a request that one engine answers is refused with 400 by the other",
        "enable_prefix_caching": "times to the first token then differ by engine, whatever the drafter does",
        "max_num_seqs": "one engine then queues at a load that the other takes, whatever the drafter does",
    }
    for name, why in whys.items():
        if said := _differs(_values(context, name)):
            say = note if name == "max_num_seqs" else warning
            cure = f"say {name} once, in engine_kwargs"
            yield say(f"engines.*.engine_kwargs.{name}", f"engines differ ({said})", cure, why)


@check("fleet", "there is an engine without a drafter")
def plain_engine(context: DoctorContext) -> Iterator[Finding]:
    """At high load, and for sampled requests, drafting costs more than it saves."""
    drafts = {engine.name: engine.drafts for engine in context.config.engines}
    drafts |= {name: one.drafts for name, one in context.answering.items() if one.drafts is not None}
    if any(value is False for value in drafts.values()):
        return
    why = "under heavy load and for sampled requests drafts cost more than they save, and nothing else could serve"
    if unknown := [name for name, value in drafts.items() if value is None]:
        yield note(
            "engines", f"whether {', '.join(unknown)} have drafters is not known, and no other engine has none",
            "say `drafter` at each engine, and run one engine without", why,
        )  # fmt: skip
    else:
        yield warning("engines", "every engine has a drafter", "add an engine without one: {name: plain}", why)


@check("fleet", "there is something to choose from")
def one_engine(context: DoctorContext) -> Iterator[Finding]:
    """Routing needs two engines that differ."""
    if len(context.config.engines) == 1:
        yield warning(
            "engines", "the fleet has one engine", "add one with another drafter, or serve it without a router",
            "there is nothing to choose from: `vllm serve` alone does the same with one part less",
        )  # fmt: skip


@check("router", "the default engine is without a drafter")
def default_engine(context: DoctorContext) -> Iterator[Finding]:
    """Who serves when the policy cannot must be right for everything."""
    default = context.config.router.default_engine
    drafts = {engine.name: engine.drafts for engine in context.config.engines}
    plain = [name for name, value in drafts.items() if value is False]
    if drafts[default] and plain:
        yield note(
            "router.default_engine", f"{default} has a drafter", f"default_engine: {plain[0]}",
            "it serves when the policy fails or knows nothing, also what is sampled, and under any load",
        )  # fmt: skip


@check("fleet", "no engine is a mock")
def mocks(context: DoctorContext) -> Iterator[Finding]:
    """A mock answers words without sense."""
    fake = [engine.name for engine in context.config.engines if engine.kind == "mock"]
    if fake and len(fake) < len(context.config.engines):
        yield problem(
            "engines", f"{', '.join(fake)}: mock engines among real ones", "leave them out",
            "they answer without a model: clients would get words without sense",
        )  # fmt: skip
    elif fake:
        yield note("engines", "all engines are mocks", "", "for trying things out: they answer without a model")
