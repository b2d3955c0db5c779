"""Checks of vLLM's arguments, engine by engine."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning
from draftpick.engines.config import did_you_mean

_ARGUMENTS = {
    "engine/arg_utils.py": ("EngineArgs", "AsyncEngineArgs"),
    "entrypoints/launchers/cli_args.py": ("BaseFrontendArgs", "FrontendArgs"),
}
_DRAFTER_OPTIONS = {"config/speculative.py": ("SpeculativeConfig",)}
_OURS = {"model", "tokenizer", "served_model_name", "speculative_config", "spec_method", "spec_model", "spec_tokens"}
"""What `target` and `drafter` say already."""


@check("fleet", "vLLM knows every argument of the engines")
def unknown_arguments(context: DoctorContext) -> Iterator[Finding]:
    """A name that the installed vLLM does not have ends every start."""
    known = fields_of_vllm(tuple(_ARGUMENTS))
    options = fields_of_vllm(tuple(_DRAFTER_OPTIONS))
    seen: set[str] = set()
    for at, engine, kwargs in context.started if known else ():
        for name in kwargs:
            place = context.place(at, name)
            if name not in known and place not in seen:
                seen.add(place)
                yield problem(
                    place, "the installed vLLM has no such argument",
                    f"{did_you_mean(name, known)}remove it".strip(), "Ray Serve LLM refuses unknown arguments at start",
                )  # fmt: skip
        drafter = engine.drafter
        if drafter is None or drafter.spec.options is not None or not options:
            continue
        for name in (drafter.model_extra or {}).keys() - options:
            yield problem(
                f"{at}.drafter.{name}", "the installed vLLM has no such option of speculative_config",
                f"{did_you_mean(name, options)}remove it".strip(), "vLLM refuses unknown options at start",
            )  # fmt: skip


@cache
def fields_of_vllm(files: tuple[str, ...]) -> frozenset[str]:
    """Names of the fields of vLLM's argument classes in these files, read without importing it; empty without vLLM."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    folder, names = Path(spec.submodule_search_locations[0]), set[str]()
    for file in files:
        if not (folder / file).is_file():
            return frozenset()  # another version keeps them elsewhere: nothing can be said
        wanted = {**_ARGUMENTS, **_DRAFTER_OPTIONS}[file]
        for node in ast.parse((folder / file).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name in wanted:
                targets = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


@check("fleet", "target and drafters are said in one place")
def said_twice(context: DoctorContext) -> Iterator[Finding]:
    """An argument that `target` or `drafter` stands for would win over it, or be lost."""
    for at, engine, kwargs in context.started:
        for name in sorted(_OURS & kwargs.keys()):
            yield problem(
                context.place(at, name), f"engine {engine.name}: `{name}` is what `target` and `drafter` say",
                "remove it; name the model in target.source and the drafter in engines.N.drafter",
                "engines that serve another model, or a drafter that nobody knows of, make every figure wrong",
            )  # fmt: skip


@check("fleet", "every engine tells of its answers")
def metrics(context: DoctorContext) -> Iterator[Finding]:
    """Acceptance and queue times come with each answer, if vLLM is asked to; on plain engines one flag is an error."""
    seen: set[str] = set()
    for at, engine, kwargs in context.started:
        name = "per_request_spec_decode_metrics"
        place, level = context.place(at, name), kwargs.get(name, "none" if engine.drafter is None else "summary")
        if engine.drafter is None and level != "none" and place not in seen:
            seen.add(place)
            yield problem(
                place, f"{level!r}, and engine {engine.name} has no drafter",
                "remove it: Draftpick sets it on engines that have one", "vLLM refuses it at start without a drafter",
            )  # fmt: skip
        elif engine.drafter is not None and level == "none":
            yield warning(
                place, f"engine {engine.name} does not tell what it accepted", "remove it",
                "without acceptance nothing is learned of the engine, and a lost drafter is not noticed",
            )  # fmt: skip
        if kwargs.get("enable_per_request_metrics", True) is False:
            yield warning(
                context.place(at, "enable_per_request_metrics"),
                f"engine {engine.name} is blind: no acceptance, no queue",
                "remove it: Draftpick sets it", "vLLM puts both metrics into an answer under this flag alone",
            )  # fmt: skip
        if kwargs.get("disable_log_stats"):
            yield warning(
                context.place(at, "disable_log_stats"), f"engine {engine.name} keeps no statistics", "remove it",
                "queue times and acceptance of answers, and /metrics, come from them",
            )  # fmt: skip


@check("fleet", "streams go out token by token")
def stream_interval(context: DoctorContext) -> Iterator[Finding]:
    """vLLM sends the first token at once and the rest in lumps: TTFT and totals stay right, what is between is lost."""
    for at, engine, kwargs in context.started:
        if (interval := kwargs.get("stream_interval", 1)) > 1:
            yield warning(
                context.place(at, "stream_interval"), f"engine {engine.name} sends {interval} tokens at a time",
                "remove it",
                "gaps between chunks say nothing any more, and a stream that breaks has lost up to as many tokens",
            )  # fmt: skip


@check("fleet", "prefills on CPUs are whole")
def chunked_prefill(context: DoctorContext) -> Iterator[Finding]:
    """A split prefill with a seed kills vLLM's CPU worker; whole ones must fit into a batch."""
    for at, engine, kwargs in context.started:
        cpu = engine.deployment.accelerator == "cpu"
        chunked = kwargs.get("enable_chunked_prefill", not cpu)
        if cpu and chunked:
            yield problem(
                context.place(at, "enable_chunked_prefill"), f"true for engine {engine.name}, on CPUs", "remove it",
                "one request with a seed whose prefill is split kills the worker (CPU Generator does not use offset)",
            )  # fmt: skip
        elif not cpu and not chunked:
            yield warning(
                context.place(at, "enable_chunked_prefill"), f"false for engine {engine.name}, on GPUs", "remove it",
                "a long prompt then stops all running answers; vLLM does not support it for most models",
            )  # fmt: skip
        batch, longest = (kwargs.get(name) for name in ("max_num_batched_tokens", "max_model_len"))
        running = kwargs.get("max_num_seqs", 0)
        if isinstance(batch, int) and isinstance(longest, int) and not chunked and batch < longest:
            yield problem(
                context.place(at, "max_num_batched_tokens"), f"{batch}, below max_model_len {longest}",
                f"max_num_batched_tokens: {longest}", "vLLM refuses to start: without chunks a prompt must fit at once",
            )  # fmt: skip
        if isinstance(batch, int) and isinstance(running, int) and batch < running:
            yield problem(
                context.place(at, "max_num_batched_tokens"), f"{batch}, below max_num_seqs {running}",
                f"max_num_batched_tokens: {running} or more", "vLLM refuses to start: a request needs a token a step",
            )  # fmt: skip


@check("fleet", "no drafter sleeps")
def sleep_mode(context: DoctorContext) -> Iterator[Finding]:
    """A drafter may be lost in a sleep, while all answers stay right."""
    for at, engine, kwargs in context.started:
        if kwargs.get("enable_sleep_mode") and engine.drafter is not None:
            yield warning(
                context.place(at, "enable_sleep_mode"), f"engine {engine.name} may sleep, and has a drafter",
                "leave it awake, or look at its acceptance after it wakes (draftpick doctor --url NAME=URL)",
                "sleep and wake can silently kill a drafter: nothing is accepted any more, and answers stay right",
            )  # fmt: skip


@check("fleet", "seeds are left to requests")
def seeds(context: DoctorContext) -> Iterator[Finding]:
    """An engine's seed is no promise: what is drafted changes how random numbers are used up."""
    values = {kwargs.get("seed", 0) for _, _, kwargs in context.started}
    if len(values) > 1:
        yield note(
            "engine_kwargs.seed", f"engines have different seeds: {', '.join(map(str, sorted(values)))}", "remove them",
            "a sampled answer depends on the engine anyhow; a seed belongs into the request",
        )  # fmt: skip
