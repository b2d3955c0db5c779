"""Checks of running engines, by what they said of themselves."""

from collections.abc import Iterator
from typing import Any

from packaging.version import InvalidVersion, Version

from draftpick.deploy.doctor.checks.environment import SUPPORTED
from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning
from draftpick.deploy.doctor.probe import RunningEngine

_MIN_DRAFTED = 200
_LOST = 0.01
"""Of the drafted tokens: below this share of accepted ones a drafter is lost."""
_PAYS = 0.05
"""A drafted token that is accepted less often than this costs more to verify than it saves."""
_UNEVEN = 1.5
"""Tokens in an event of an engine without a drafter, which sends each by itself."""
_MANY_PREEMPTIONS = 0.01


def _other(values: dict[str, Any]) -> tuple[str, list[str]] | None:
    """The first of these names, and those whose value is another one than its; None where all agree."""
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return None
    first = next(iter(known))
    others = [name for name, value in known.items() if value != known[first]]
    return (first, others) if others else None


@check("engines", "all engines that were asked answer")
def answers(context: DoctorContext) -> Iterator[Finding]:
    """Who does not answer the doctor does not answer the router."""
    for name, one in context.running.items():
        if one.error is not None:
            yield problem(
                name, f"{one.url} {one.error}", "start it, or mend its url",
                "the router leaves it alone while it does not answer",
            )  # fmt: skip
        elif one.answer is None:
            yield problem(
                name, "no answer to a short chat in time", "ask it yourself: /v1/chat/completions",
                "it is listed, and does not answer",
            )  # fmt: skip


@check("engines", "all engines serve the target")
def same_model(context: DoctorContext) -> Iterator[Finding]:
    """The router sends the model's name on as it is."""
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
            "load the same files everywhere", "other weights give other answers, unless these are copies",
        )  # fmt: skip


@check("engines", "all engines take requests of one length")
def same_length(context: DoctorContext) -> Iterator[Finding]:
    """A request must fit wherever it is sent."""
    longest = {name: one.models[0].max_model_len for name, one in context.answering.items() if one.models}
    if _other(longest) is not None:
        said = ", ".join(f"{name} {value}" for name, value in longest.items())
        yield warning(
            "max_model_len", f"engines differ: {said}", "the same --max-model-len everywhere",
            "a request that one engine answers is refused with 400 by the other",
        )  # fmt: skip


@check("engines", "all engines run a supported vLLM, and the same one")
def engine_versions(context: DoctorContext) -> Iterator[Finding]:
    """By /version."""
    versions = {name: one.version for name, one in context.answering.items()}
    for name, version in versions.items():
        try:
            supported = version is None or Version(version) in SUPPORTED
        except InvalidVersion:
            continue  # a mock, or a build of somebody's own
        if not supported:
            yield warning(
                name, f"vLLM {version}", f"vLLM {SUPPORTED}", "metrics of answers and drafters differ in other versions"
            )
    if (found := _other(versions)) is not None:
        yield note(
            ", ".join(found[1]), f"vLLM {versions[found[1][0]]}, {found[0]} {versions[found[0]]}",
            "the same build everywhere", "kernels and templates change from one to the next, and answers with them",
        )  # fmt: skip


@check("engines", "all engines read a chat as the same tokens")
def same_tokens(context: DoctorContext) -> Iterator[Finding]:
    """By /tokenize, or else by the number of tokens: the tokenizer and the chat template in one."""
    tokens: dict[str, Any] = {name: one.tokens for name, one in context.answering.items()}
    if any(value is None for value in tokens.values()):
        tokens = {name: one.answer.prompt_tokens if one.answer else None for name, one in context.answering.items()}
    if (found := _other(tokens)) is not None:
        yield problem(
            ", ".join(found[1]), f"reads the same chat as other tokens than {found[0]}",
            "the same --chat-template and --tokenizer everywhere", "the engines are asked different things",
        )  # fmt: skip


@check("engines", "all engines give the same greedy answer")
def same_answer(context: DoctorContext) -> Iterator[Finding]:
    """One short answer: what differs at its first word is no near-tie."""
    texts = {name: one.answer.text for name, one in context.answering.items() if one.answer and one.answer.text}
    if (found := _other(texts)) is None:
        return
    first, others = found
    begins = {name: text.split()[:1] for name, text in texts.items()}
    apart = [name for name in others if begins[name] != begins[first]]
    say, who = (warning, apart) if apart else (note, others)
    yield say(
        ", ".join(who), f"answers a greedy chat otherwise than {first}" + (", from the first word on" if apart else ""),
        "the same weights, --dtype, --quantization and --kv-cache-dtype everywhere",
        "in bfloat16 near-ties may fall either way; anything else is another model",
    )  # fmt: skip


@check("engines", "every engine tells of its answers")
def metrics_of_answers(context: DoctorContext) -> Iterator[Finding]:
    """The router reads acceptance and queue times from the answers themselves."""
    for name, one in context.answering.items():
        if one.answer is None:
            continue
        if one.answer.metrics is None:
            yield warning(
                name, "its answers have no metrics", "vllm serve ... --enable-per-request-metrics"
                + (" --per-request-spec-decode-metrics summary" if _drafts(context, name) else ""),
                "the router is blind there: no acceptance, no queue times, a lost drafter is not noticed",
            )  # fmt: skip
        elif _drafts(context, name) and not isinstance(one.answer.metrics.get("speculative_decoding"), dict):
            yield warning(
                name, "its answers do not tell what was accepted",
                "vllm serve ... --per-request-spec-decode-metrics summary",
                "without acceptance nothing is learned of its drafter, and its loss is not noticed",
            )  # fmt: skip


def _drafts(context: DoctorContext, name: str) -> bool | None:
    """Whether an engine has a drafter, by its own metrics, or else by the configuration."""
    measured = context.running[name].drafts
    configured = {engine.name: engine.drafts for engine in context.config.engines}
    return measured if measured is not None else configured.get(name)


@check("engines", "every engine shows its load")
def load_pages(context: DoctorContext) -> Iterator[Finding]:
    """What others send to an engine, the router sees on its page alone."""
    if dark := [name for name, one in context.answering.items() if not one.load]:
        yield note(
            ", ".join(dark), "GET /draftpick/load is 404",
            "vllm serve ... --middleware draftpick.engines.vllm.middleware.VLLMPages, with Draftpick installed there",
            "the router knows its own requests alone: what others send there, and what waits, it cannot see",
        )  # fmt: skip


@check("engines", "drafts are accepted")
def lost_drafters(context: DoctorContext) -> Iterator[Finding]:
    """A drafter that sleep and wake has killed leaves all answers right, and accepts nothing."""
    configured = {engine.name: engine.drafts for engine in context.config.engines}
    for name, one in context.answering.items():
        drafted, accepted = (one.sample(f"spec_decode_num_{what}_tokens_total") for what in ("draft", "accepted"))
        if drafted >= _MIN_DRAFTED and accepted < _LOST * drafted:
            yield problem(
                name, f"{accepted:.0f} of {drafted:.0f} drafted tokens were accepted",
                "restart it, and do not let it sleep; else look for the right drafter and target",
                "each draft is paid for and thrown away (sleep and wake can kill a drafter; answers stay right)",
            )  # fmt: skip
        elif one.drafts and not drafted and one.sample("generation_tokens_total") >= _MIN_DRAFTED:
            yield warning(
                name, f"nothing was drafted in {one.sample('generation_tokens_total'):.0f} tokens",
                "other bounds of the lookup, or another drafter", "it finds nothing to draft in this traffic",
            )  # fmt: skip
        if configured.get(name) and one.drafts is False:
            yield problem(
                name, "it runs without a drafter, the configuration gives it one", "start it with its drafter",
                "it is as fast as the plain engine, and the policy expects more of it",
            )  # fmt: skip


@check("engines", "drafts are no longer than what is accepted")
def draft_length(context: DoctorContext) -> Iterator[Finding]:
    """By the tokens accepted at each place of a draft: the last places must pay for themselves."""
    for name, one in context.answering.items():
        drafts = one.sample("spec_decode_num_drafts_total")
        if drafts < _MIN_DRAFTED or not one.positions or not sum(one.positions):
            continue
        survival = [accepted / drafts for accepted in one.positions]
        paying = sum(share >= _PAYS for share in survival)
        if paying < len(survival):
            yield note(
                name, f"of {drafts:.0f} drafts of {len(survival)} tokens {survival[-1]:.1%} were accepted to their end",
                f"num_speculative_tokens: {max(paying, 1)}", "what is hardly ever accepted is drafted and verified",
            )  # fmt: skip


@check("engines", "streams go out token by token")
def uneven_streams(context: DoctorContext) -> Iterator[Finding]:
    """An engine without a drafter sends every token by itself."""
    for name, one in context.answering.items():
        answer = one.answer
        if answer is None or _drafts(context, name) is not False or not answer.events or not answer.output_tokens:
            continue
        if (tokens := answer.output_tokens / answer.events) > _UNEVEN:
            yield warning(
                name, f"it has no drafter, and sends {tokens:.1f} tokens at a time", "no --stream-interval",
                "gaps between chunks say nothing any more, and a stream that breaks has lost up to as many tokens",
            )  # fmt: skip


@check("engines", "all engines cache alike, and have room")
def caches(context: DoctorContext) -> Iterator[Finding]:
    """By vLLM's own page of metrics."""
    for what, cure in (("enable_prefix_caching", "--enable-prefix-caching"), ("cache_dtype", "--kv-cache-dtype")):
        values = {name: one.cache.get(what) for name, one in context.answering.items()}
        if (found := _other(values)) is not None:
            yield warning(
                ", ".join(found[1]), f"{what} is {values[found[1][0]]}, at {found[0]} {values[found[0]]}",
                f"the same {cure} everywhere",
                "times to the first token, or answers, then differ by engine, whatever the drafter does",
            )  # fmt: skip
    for name, one in context.answering.items():
        done, preempted = _finished(one), one.sample("num_preemptions_total")
        if done and preempted > _MANY_PREEMPTIONS * done:
            yield warning(
                name, f"{preempted:.0f} requests were pushed out of its cache, {done:.0f} finished",
                "more memory for its cache, or a lower --max-num-seqs", "what is pushed out is read anew, and is slow",
            )  # fmt: skip


def _finished(one: RunningEngine) -> float:
    return one.sample("request_success_total")


@check("engines", "no engine sleeps, and none is open to developers")
def awake(context: DoctorContext) -> Iterator[Finding]:
    """A sleeping engine answers nothing; pages for development put it to sleep."""
    for name, one in context.answering.items():
        if one.samples.get("vllm:engine_sleep_state:awake") == 0.0:
            yield problem(name, "it sleeps", "POST /wake_up, then look at its acceptance", "it answers nothing")
        if one.open_to_developers:
            yield warning(
                name, "its pages for development answer", "VLLM_SERVER_DEV_MODE=0",
                "they put it to sleep, reset its caches and run calls in its workers, and ask for no key",
            )  # fmt: skip
