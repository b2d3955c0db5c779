"""Checks of vLLM's arguments by engine."""

import ast
from collections.abc import Iterator
from functools import cache

from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning
from draftpick.engines.config import did_you_mean
from draftpick.engines.vllm.support import vllm_folder

_ARGUMENTS = {
    "engine/arg_utils.py": ("EngineArgs", "AsyncEngineArgs"),
    "entrypoints/launchers/cli_args.py": ("BaseFrontendArgs", "FrontendArgs"),
}
_DRAFTER_OPTIONS = {"config/speculative.py": ("SpeculativeConfig",)}
_OURS = {"model", "tokenizer", "served_model_name", "speculative_config", "spec_method", "spec_model", "spec_tokens"}
"""Arguments set by `target` and `drafter`."""


@check("fleet", "vLLM supports every argument of the engines")
def unknown_arguments(context: DoctorContext) -> Iterator[Finding]:
    """An unknown argument fails at startup."""
    known = fields_of_vllm(tuple(_ARGUMENTS))
    options = fields_of_vllm(tuple(_DRAFTER_OPTIONS))
    seen: set[str] = set()
    for at, _, kwargs in context.started if known else ():
        for name in kwargs:
            place = context.place(at, name)
            if name not in known and place not in seen:
                seen.add(place)
                yield problem(
                    place, "the installed vLLM has no such argument",
                    f"{did_you_mean(name, known)}remove it".strip(), "Ray Serve LLM rejects unknown arguments",
                )  # fmt: skip
    for at, _, drafter in context.drafters if options else ():
        if drafter.spec.options is not None:
            continue
        ours = drafter.spec.added_options
        for name in (drafter.model_extra or {}).keys() - options - (ours.model_fields.keys() if ours else set()):
            yield problem(
                f"{at}.{name}", "the installed vLLM has no such option of speculative_config",
                f"{did_you_mean(name, options)}remove it".strip(), "vLLM rejects unknown options at startup",
            )  # fmt: skip


@cache
def fields_of_vllm(files: tuple[str, ...]) -> frozenset[str]:
    """Field names of vLLM's argument classes in these files, read without importing it; empty without vLLM."""
    if (folder := vllm_folder()) is None:
        return frozenset()
    names = set[str]()
    for file in files:
        if not (folder / file).is_file():
            return frozenset()  # another version has them elsewhere: unknown
        wanted = {**_ARGUMENTS, **_DRAFTER_OPTIONS}[file]
        for node in ast.parse((folder / file).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name in wanted:
                targets = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


@check("fleet", "target and drafters are configured in one place")
def said_twice(context: DoctorContext) -> Iterator[Finding]:
    """An argument set by `target` or `drafter` would override it, or be lost."""
    for at, engine, kwargs in context.started:
        for name in sorted(_OURS & kwargs.keys()):
            yield problem(
                context.place(at, name), f"engine {engine.name}: `{name}` duplicates `target` or `drafter`",
                "remove it; set the model in target.source and the drafter in engines.N.drafter",
                "an engine with another model, or an undeclared drafter, makes every figure wrong",
            )  # fmt: skip


@check("fleet", "every engine reports metrics of its answers")
def metrics(context: DoctorContext) -> Iterator[Finding]:
    """vLLM reports acceptance and queue times on request; without a drafter one of the flags is an error."""
    seen: set[str] = set()
    for at, engine, kwargs in context.started:
        name = "per_request_spec_decode_metrics"
        place, level = context.place(at, name), kwargs.get(name, "summary" if engine.has_drafter else "none")
        if not engine.has_drafter and level != "none" and place not in seen:
            seen.add(place)
            yield problem(
                place, f"{level!r}, and engine {engine.name} has no drafter",
                "remove it: Draftpick sets it on engines with one", "vLLM rejects it at startup without a drafter",
            )  # fmt: skip
        elif engine.has_drafter and level == "none":
            yield warning(
                place, f"engine {engine.name} does not report acceptance", "remove it",
                "without acceptance the router cannot learn about the engine, or detect a lost drafter",
            )  # fmt: skip
        if kwargs.get("enable_per_request_metrics", True) is False:
            yield warning(
                context.place(at, "enable_per_request_metrics"),
                f"engine {engine.name} reports no acceptance and no queue times",
                "remove it: Draftpick sets it", "vLLM reports both only with this flag",
            )  # fmt: skip
        if kwargs.get("disable_log_stats"):
            yield warning(
                context.place(at, "disable_log_stats"), f"engine {engine.name} keeps no statistics", "remove it",
                "they provide queue times, acceptance, and /metrics",
            )  # fmt: skip


@check("fleet", "streams go out token by token")
def stream_interval(context: DoctorContext) -> Iterator[Finding]:
    """vLLM sends the first token immediately and the rest in blocks: TTFT and totals stay right, gaps do not."""
    for at, engine, kwargs in context.started:
        if (interval := kwargs.get("stream_interval", 1)) > 1:
            yield warning(
                context.place(at, "stream_interval"), f"engine {engine.name} sends {interval} tokens at a time",
                "remove it",
                "gaps between chunks are meaningless, and a broken stream loses up to that many tokens",
            )  # fmt: skip


@check("fleet", "prefills on CPUs are not chunked")
def chunked_prefill(context: DoctorContext) -> Iterator[Finding]:
    """A chunked prefill with a seed kills vLLM's CPU worker; complete ones must fit into a batch."""
    for at, engine, kwargs in context.started:
        cpu = engine.deployment.accelerator == "cpu"
        chunked = kwargs.get("enable_chunked_prefill", not cpu)
        if cpu and chunked:
            yield problem(
                context.place(at, "enable_chunked_prefill"), f"true for engine {engine.name}, on CPUs", "remove it",
                "one request with a seed and a chunked prefill kills the worker (CPU Generator does not use offset)",
            )  # fmt: skip
        elif not cpu and not chunked:
            yield warning(
                context.place(at, "enable_chunked_prefill"), f"false for engine {engine.name}, on GPUs", "remove it",
                "a long prompt then blocks all running answers; vLLM does not support it for most models",
            )  # fmt: skip
        batch, longest = (kwargs.get(name) for name in ("max_num_batched_tokens", "max_model_len"))
        running = kwargs.get("max_num_seqs", 0)
        if isinstance(batch, int) and isinstance(longest, int) and not chunked and batch < longest:
            yield problem(
                context.place(at, "max_num_batched_tokens"), f"{batch}, below max_model_len {longest}",
                f"max_num_batched_tokens: {longest}", "vLLM does not start: an unchunked prompt must fit a batch",
            )  # fmt: skip
        if isinstance(batch, int) and isinstance(running, int) and batch < running:
            yield problem(
                context.place(at, "max_num_batched_tokens"), f"{batch}, below max_num_seqs {running}",
                f"max_num_batched_tokens: {running} or more", "vLLM does not start: a request needs a token per step",
            )  # fmt: skip


@check("fleet", "engines with drafters do not sleep")
def sleep_mode(context: DoctorContext) -> Iterator[Finding]:
    """Sleep can disable a drafter, while all answers stay right."""
    for at, engine, kwargs in context.started:
        if kwargs.get("enable_sleep_mode") and engine.has_drafter:
            yield warning(
                context.place(at, "enable_sleep_mode"), f"engine {engine.name} may sleep, and has a drafter",
                "disable it, or check the acceptance after each wake-up (draftpick doctor --url NAME=URL)",
                "sleep and wake can silently disable a drafter: nothing is accepted, and answers stay right",
            )  # fmt: skip


@check("fleet", "seeds are set by requests")
def seeds(context: DoctorContext) -> Iterator[Finding]:
    """An engine's seed guarantees nothing: drafting changes the use of random numbers."""
    values = {kwargs.get("seed", 0) for _, _, kwargs in context.started}
    if len(values) > 1:
        yield note(
            "engine_kwargs.seed", f"engines have different seeds: {', '.join(map(str, sorted(values)))}", "remove them",
            "a sampled answer depends on the engine anyway; set the seed in the request",
        )  # fmt: skip
