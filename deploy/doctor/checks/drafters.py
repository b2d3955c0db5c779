"""Checks of the configured drafters."""

import json
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning
from draftpick.engines.cache_dir import cache_dir
from draftpick.engines.config import EMBEDDED, Drafter
from draftpick.engines.errors import ConfigError
from draftpick.engines.models.embedded import TARGET_NAME
from draftpick.engines.models.paths import drafter_model
from draftpick.engines.preflight_checks import check_methods, check_models
from draftpick.router.config.router_config import DraftpickConfig

_TREE_DEPTH = 24
_NGRAM = 5
_SHARED_WHY = (
    "one client's text then leaks through the speed of another's answers, and repeated prompts bias measurements"
)


def options(drafter: Drafter) -> dict[str, Any]:
    """The drafter's options besides method, model and length."""
    return {name: value for name, value in (drafter.model_extra or {}).items() if value is not None}


@check("fleet", "vLLM has every drafting method")
def methods(context: DoctorContext) -> Iterator[Finding]:
    """By vLLM's own list; of engines that another vLLM runs, by what is known of its versions."""
    why = "vLLM rejects a method that it does not know, at startup"
    for at, fleet in of_each_engine(context):
        try:
            for error in check_methods(fleet):
                yield warning(at(error.field), error.problem, error.fix, why)
        except ConfigError as error:
            yield problem(at(error.field), error.problem, error.fix, why)


@check("fleet", "every drafter fits its target")
def models(context: DoctorContext) -> Iterator[Finding]:
    """By their `config.json`, per engine: an incompatible model fails at startup."""
    for at, fleet in of_each_engine(context):
        try:
            check_models(fleet)
        except ConfigError as error:
            why = f"engine {fleet.names[0]} would fail at startup, or later"
            yield problem(at(error.field), error.problem, error.fix, why)


def of_each_engine(context: DoctorContext) -> Iterator[tuple[Callable[[str], str], DraftpickConfig]]:
    """The configuration with each engine alone, and what makes a field of it one of the whole fleet."""
    for i, engine in enumerate(context.config.engines):
        place = f"engines.{i}"
        yield (
            lambda field, place=place: field.replace("engines.0", place, 1),  # type: ignore[misc]
            context.config.model_copy(update={"engines": (engine,)}),
        )


@check("fleet", "draft models have the target's vocabulary")
def tokenizers(context: DoctorContext) -> Iterator[Finding]:
    """A vocabulary of the same size may number its tokens differently; then almost no draft is accepted."""
    models = [one for one in context.drafters if one[2].spec.weights == "causal_lm"]
    source = context.config.target.source
    target = _vocabulary(cache_dir() / TARGET_NAME if source == EMBEDDED else Path(source)) if models else None
    for at, engine, drafter in models if target else ():
        try:
            own = _vocabulary(Path(drafter_model(drafter) or ""))
        except ConfigError:
            continue  # reported by `models`
        if own is not None and own != target and not options(drafter).get("use_heterogeneous_vocab"):
            yield problem(
                f"{at}.model", f"the draft model of engine {engine.name} has a vocabulary other than the target's",
                "use one of the target's family, or set use_heterogeneous_vocab: true",
                "its token ids mean other words to the target: every draft is rejected",
            )  # fmt: skip


def _vocabulary(folder: Path) -> dict[str, int] | None:
    """Token ids by token; None without a tokenizer."""
    try:
        found = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


@check("fleet", "drafters keep no text from one request to the next")
def shared_text(context: DoctorContext) -> Iterator[Finding]:
    """The suffix drafter keeps recent answers of all clients by default, as in vLLM; others do so on request."""
    for at, engine, drafter in context.drafters:
        sharing = drafter.spec.shares_text_across_requests
        kept = sharing.value(options(drafter)) if sharing is not None else 0
        if sharing is not None and isinstance(kept, int) and kept > sharing.off:
            field, text = ".".join(sharing.path), "text" if kept is True else f"last {kept:,} answers"
            yield warning(
                f"{at}.{field}", f"engine {engine.name} keeps the {text} of all clients",
                f"{field}: {str(sharing.off).lower()}, unless clients may learn of each other", _SHARED_WHY,
            )  # fmt: skip


@check("fleet", "suffix trees are deep enough")
def suffix_depth(context: DoctorContext) -> Iterator[Finding]:
    """A tree too shallow for its draft length."""
    for at, engine, drafter in context.drafters:
        if drafter.method != "suffix":
            continue
        depth = options(drafter).get("suffix_decoding_max_tree_depth", _TREE_DEPTH)
        if depth <= drafter.num_speculative_tokens:
            yield note(
                f"{at}.suffix_decoding_max_tree_depth",
                f"engine {engine.name}: {depth}, and drafts of {drafter.num_speculative_tokens} tokens",
                f"a depth of {2 * drafter.num_speculative_tokens} or more, or a lower num_speculative_tokens",
                "the depth bounds the matched text plus the draft: it limits the draft length",
            )  # fmt: skip


@check("fleet", "n-gram lookups have sensible bounds")
def ngram_bounds(context: DoctorContext) -> Iterator[Finding]:
    """Matched tokens: min at least 1, min at most max, and neither all nor a single token."""
    for at, engine, drafter in context.drafters:
        if drafter.method not in ("ngram", "ngram_gpu"):
            continue
        own = options(drafter)
        # vLLM replaces a missing bound by the other.
        least = own.get("prompt_lookup_min", own.get("prompt_lookup_max"))
        if least is None:
            yield note(
                f"{at}.prompt_lookup_max", f"engine {engine.name} sets neither prompt_lookup_min nor _max",
                "prompt_lookup_min: 2, prompt_lookup_max: 4",
                f"vLLM then matches exactly {_NGRAM} tokens, and drafts rarely",
            )  # fmt: skip
            continue
        most = own.get("prompt_lookup_max", least)
        if not 1 <= least <= most:
            yield problem(
                f"{at}.prompt_lookup_min", f"engine {engine.name} matches {least} to {most} tokens",
                "1 <= prompt_lookup_min <= prompt_lookup_max", "vLLM rejects it at startup",
            )  # fmt: skip
        elif least == 1:
            yield note(
                f"{at}.prompt_lookup_min", f"engine {engine.name} drafts after a match of a single token",
                "prompt_lookup_min: 2", "most such drafts are coincidental, and each costs verification time",
            )  # fmt: skip


@check("fleet", "drafts are verified against the target")
def synthetic(context: DoctorContext) -> Iterator[Finding]:
    """Synthetic acceptance is for benchmarks: it accepts at random."""
    for at, engine, drafter in context.drafters:
        if options(drafter).get("rejection_sample_method") != "synthetic":
            continue
        cpu = engine.deployment.accelerator == "cpu"
        yield problem(
            f"{at}.rejection_sample_method", f"engine {engine.name}: synthetic", "remove it",
            "vLLM's sampler on CPUs rejects it at the first request" if cpu
            else "drafts are accepted at random, so the answers are not the target's",
        )  # fmt: skip


@check("fleet", "no two engines draft alike")
def duplicate_drafters(context: DoctorContext) -> Iterator[Finding]:
    """Engines that differ only by name give a policy nothing to choose from."""
    drafting = {
        engine.name: ([one.model_dump() for _, one in engine.placed_drafters()], {**kwargs, "seed": None})
        for _, engine, kwargs in context.started
        if engine.has_drafter
    }
    plain: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]
    plain = {engine.name: ([], dict(kwargs)) for _, engine, kwargs in context.started if not engine.has_drafter}
    for group in (drafting, plain):
        for one, other in combinations(group, 2):
            if group[one] == group[other]:
                yield warning(
                    f"engines.{context.config.names.index(other)}", f"engines {one} and {other} are identical",
                    "remove one, and set deployment.num_replicas: 2 for the other",
                    "a policy learns each arm separately, from half of the requests; replicas of one arm share them",
                )  # fmt: skip
