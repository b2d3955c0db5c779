"""Checks of running engines, by their own pages and answers."""

from collections.abc import Iterator
from typing import Any

from packaging.version import InvalidVersion, Version

from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning
from draftpick.deploy.doctor.probe import RunningEngine
from draftpick.engines.pool import report
from draftpick.engines.vllm.support import supported_versions

_MIN_DRAFTED = 200
_LOST = 0.01
"""Acceptance rate below which a drafter counts as lost."""
_PAYS = 0.05
"""Acceptance rate below which verifying a token takes more time than it saves."""
_UNEVEN = 1.5
"""Maximum tokens per event of an engine without a drafter, which streams single tokens."""
_MANY_PREEMPTIONS = 0.01


def _other(values: dict[str, Any]) -> tuple[str, list[str]] | None:
    """The first name, and those with a different value; None if all agree."""
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return None
    first = next(iter(known))
    others = [name for name, value in known.items() if value != known[first]]
    return (first, others) if others else None


@check("engines", "all engines answer")
def answers(context: DoctorContext) -> Iterator[Finding]:
    """An engine that does not answer the doctor does not answer the router."""
    for name, one in context.running.items():
        if one.error is not None:
            yield problem(
                name, f"{one.url} {one.error}", "start it, or fix its url",
                "the router ejects it while it does not answer",
            )  # fmt: skip
        elif one.answer is None:
            yield problem(
                name, "no answer to a short chat in time", "test it: POST /v1/chat/completions",
                "it lists its models, but does not answer",
            )  # fmt: skip


@check("engines", "all pools report on their drafters")
def pools(context: DoctorContext) -> Iterator[Finding]:
    """An engine whose configuration lists drafters, and that does not run our plugin, ignores forecasts."""
    for engine in context.config.engines:
        one = context.answering.get(engine.name)
        if not engine.is_pool or one is None or one.answer is None or (one.answer.output_tokens or 0) < 2:
            continue
        speculation = (one.answer.metrics or {}).get("speculative_decoding")
        if not (isinstance(speculation, dict) and report.parse(speculation.get(report.FIELD))):
            yield warning(
                engine.name, "its answer says nothing of drafters: it is no pool, and ignores forecasts",
                "start it with the flags of `draftpick vllm-args`, or remove its `drafters`",
                "the router's choice of a drafter has no effect there, and learns nothing",
            )  # fmt: skip


@check("engines", "all engines serve the target")
def same_model(context: DoctorContext) -> Iterator[Finding]:
    """The router forwards the model's name unchanged."""
    target = context.config.target.name
    for name, one in context.answering.items():
        served = [model.id for model in one.models]
        if target not in served:
            yield problem(
                name, f"serves {', '.join(served) or 'no model'}, not {target}",
                f"--served-model-name {target}, or target.name", "it answers 404 to every request",
            )  # fmt: skip
    roots = {name: one.models[0].root for name, one in context.answering.items() if one.models}
    if (found := _other(roots)) is not None:
        yield warning(
            ", ".join(found[1]), f"loaded {roots[found[1][0]]}, {found[0]} loaded {roots[found[0]]}",
            "load the same files on all engines", "different weights give different answers, unless these are copies",
        )  # fmt: skip


@check("engines", "all engines have the same maximum length")
def same_length(context: DoctorContext) -> Iterator[Finding]:
    """A request must fit on every engine."""
    longest = {name: one.models[0].max_model_len for name, one in context.answering.items() if one.models}
    if _other(longest) is not None:
        said = ", ".join(f"{name} {value}" for name, value in longest.items())
        yield warning(
            "max_model_len", f"engines differ: {said}", "set the same --max-model-len on all engines",
            "a request that one engine answers gets a 400 from the other",
        )  # fmt: skip


@check("engines", "all engines run a supported vLLM, and the same one")
def engine_versions(context: DoctorContext) -> Iterator[Finding]:
    """By /version."""
    versions, supported = {name: one.version for name, one in context.answering.items()}, supported_versions()
    for name, version in versions.items():
        try:
            tried = version is None or Version(version) in supported
        except InvalidVersion:
            continue  # a mock, or a custom build
        if not tried:
            yield warning(name, f"vLLM {version}", f"vLLM {supported}", "metrics and drafters differ in other versions")
    if (found := _other(versions)) is not None:
        yield note(
            ", ".join(found[1]), f"vLLM {versions[found[1][0]]}, {found[0]} {versions[found[0]]}",
            "use the same build on all engines", "kernels and templates change between builds, and answers with them",
        )  # fmt: skip


@check("engines", "all engines tokenize a chat identically")
def same_tokens(context: DoctorContext) -> Iterator[Finding]:
    """By /tokenize, or by the number of tokens: covers tokenizer and chat template."""
    tokens: dict[str, Any] = {name: one.tokens for name, one in context.answering.items()}
    if any(value is None for value in tokens.values()):
        tokens = {name: one.answer.prompt_tokens if one.answer else None for name, one in context.answering.items()}
    if (found := _other(tokens)) is not None:
        yield problem(
            ", ".join(found[1]), f"tokenizes the same chat differently from {found[0]}",
            "set the same --chat-template and --tokenizer on all engines", "the engines get different prompts",
        )  # fmt: skip


@check("engines", "all engines give the same greedy answer")
def same_answer(context: DoctorContext) -> Iterator[Finding]:
    """One short answer: a difference at the first word is not a near-tie."""
    texts = {name: one.answer.text for name, one in context.answering.items() if one.answer and one.answer.text}
    if (found := _other(texts)) is None:
        return
    first, others = found
    begins = {name: text.split()[:1] for name, text in texts.items()}
    apart = [name for name in others if begins[name] != begins[first]]
    say, who = (warning, apart) if apart else (note, others)
    yield say(
        ", ".join(who), f"answers a greedy chat differently from {first}" + ("from the first word on" if apart else ""),
        "the same weights, --dtype, --quantization and --kv-cache-dtype on all engines",
        "in bfloat16 near-ties may go either way; any other difference means another model",
    )  # fmt: skip


@check("engines", "every engine reports metrics of its answers")
def metrics_of_answers(context: DoctorContext) -> Iterator[Finding]:
    """The router reads acceptance and queue times from the answers."""
    for name, one in context.answering.items():
        if one.answer is None:
            continue
        if one.answer.metrics is None:
            yield warning(
                name, "its answers have no metrics", "vllm serve ... --enable-per-request-metrics"
                + (" --per-request-spec-decode-metrics summary" if _drafts(context, name) else ""),
                "the router gets no acceptance and no queue times, and does not detect a lost drafter",
            )  # fmt: skip
        elif _drafts(context, name) and not isinstance(one.answer.metrics.get("speculative_decoding"), dict):
            yield warning(
                name, "its answers have no acceptance metrics",
                "vllm serve ... --per-request-spec-decode-metrics summary",
                "without acceptance the router cannot learn about its drafter, or detect its loss",
            )  # fmt: skip


def _drafts(context: DoctorContext, name: str) -> bool | None:
    """True if an engine has a drafter, by its own metrics, or by the configuration; None if unknown."""
    measured = context.running[name].drafts
    configured = {engine.name: engine.drafts for engine in context.config.engines}
    return measured if measured is not None else configured.get(name)


@check("engines", "every engine reports its load")
def load_pages(context: DoctorContext) -> Iterator[Finding]:
    """Other clients' requests are only visible on the engine's load page."""
    if dark := [name for name, one in context.answering.items() if not one.load]:
        yield note(
            ", ".join(dark), "GET /draftpick/load is 404",
            "vllm serve ... --middleware draftpick.engines.vllm.middleware.VLLMPages, with Draftpick installed there",
            "the router only knows its own requests, not other clients' or queued ones",
        )  # fmt: skip


@check("engines", "drafts are accepted")
def lost_drafters(context: DoctorContext) -> Iterator[Finding]:
    """Sleep and wake can disable a drafter: answers stay right, and nothing is accepted."""
    configured = {engine.name: engine.drafts for engine in context.config.engines}
    for name, one in context.answering.items():
        drafted, accepted = (one.sample(f"spec_decode_num_{what}_tokens_total") for what in ("draft", "accepted"))
        if drafted >= _MIN_DRAFTED and accepted < _LOST * drafted:
            yield problem(
                name, f"{accepted:.0f} of {drafted:.0f} drafted tokens were accepted",
                "restart it, and disable sleep; otherwise check that the drafter fits the target",
                "every draft is verified and rejected (sleep and wake can disable a drafter; answers stay right)",
            )  # fmt: skip
        elif one.drafts and not drafted and one.sample("generation_tokens_total") >= _MIN_DRAFTED:
            yield warning(
                name, f"no drafts in {one.sample('generation_tokens_total'):.0f} tokens",
                "change the lookup bounds, or the drafter", "it finds no drafts in this traffic",
            )  # fmt: skip
        if configured.get(name) and one.drafts is False:
            yield problem(
                name, "it runs without the configured drafter", "start it with its drafter",
                "it is only as fast as the baseline, and the policy predicts more",
            )  # fmt: skip


@check("engines", "draft lengths match the acceptance")
def draft_length(context: DoctorContext) -> Iterator[Finding]:
    """By acceptance per position: the last positions must pay off."""
    for name, one in context.answering.items():
        drafts = one.sample("spec_decode_num_drafts_total")
        if drafts < _MIN_DRAFTED or not one.positions or not sum(one.positions):
            continue
        survival = [accepted / drafts for accepted in one.positions]
        paying = sum(share >= _PAYS for share in survival)
        if paying < len(survival):
            yield note(
                name, f"of {drafts:.0f} drafts of {len(survival)} tokens {survival[-1]:.1%} were accepted to their end",
                f"num_speculative_tokens: {max(paying, 1)}", "tokens that are rarely accepted are drafted and verified",
            )  # fmt: skip


@check("engines", "streams go out token by token")
def uneven_streams(context: DoctorContext) -> Iterator[Finding]:
    """An engine without a drafter streams single tokens."""
    for name, one in context.answering.items():
        answer = one.answer
        if answer is None or _drafts(context, name) is not False or not answer.events or not answer.output_tokens:
            continue
        if (tokens := answer.output_tokens / answer.events) > _UNEVEN:
            yield warning(
                name, f"it has no drafter, and sends {tokens:.1f} tokens at a time", "remove --stream-interval",
                "gaps between chunks are meaningless, and a broken stream loses up to that many tokens",
            )  # fmt: skip


@check("engines", "all engines have the same, sufficient cache")
def caches(context: DoctorContext) -> Iterator[Finding]:
    """By vLLM's metrics page."""
    for what, fix in (("enable_prefix_caching", "--enable-prefix-caching"), ("cache_dtype", "--kv-cache-dtype")):
        values = {name: one.cache.get(what) for name, one in context.answering.items()}
        if (found := _other(values)) is not None:
            yield warning(
                ", ".join(found[1]), f"{what} is {values[found[1][0]]}, on {found[0]} {values[found[0]]}",
                f"set the same {fix} on all engines",
                "TTFT, or answers, then differ by engine, regardless of the drafter",
            )  # fmt: skip
    for name, one in context.answering.items():
        done, preempted = _finished(one), one.sample("num_preemptions_total")
        if done and preempted > _MANY_PREEMPTIONS * done:
            yield warning(
                name, f"{preempted:.0f} requests were preempted, {done:.0f} finished",
                "more memory for its cache, or a lower --max-num-seqs", "preempted requests are recomputed, and slow",
            )  # fmt: skip


def _finished(one: RunningEngine) -> float:
    return one.sample("request_success_total")


@check("engines", "no engine sleeps or has development endpoints")
def awake(context: DoctorContext) -> Iterator[Finding]:
    """A sleeping engine does not answer; development endpoints can put it to sleep."""
    for name, one in context.answering.items():
        if one.samples.get("vllm:engine_sleep_state:awake") == 0.0:
            yield problem(name, "it sleeps", "POST /wake_up, then check its acceptance", "it does not answer")
        if one.open_to_developers:
            yield warning(
                name, "its development endpoints are enabled", "VLLM_SERVER_DEV_MODE=0",
                "they can put it to sleep, reset its caches and run calls in its workers, without a key",
            )  # fmt: skip
