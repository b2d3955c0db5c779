"""The table of drafters: their properties, and the options of our own drafters. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FULL_DEPTH = 4
"""Maximum draft length of the full search, which may visit 24 successors per token."""


class _DrafterOptions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def problem(self, num_speculative_tokens: int) -> str | None:
        """Return why these options do not suit a draft length, or None."""
        return None

    def components(self) -> tuple[str, ...]:
        """Methods of the component drafters."""
        return ()


class TrigramOptions(_DrafterOptions):
    """A tri-gram table with tree search (ADED, arXiv 2407.12021); the search depth is `num_speculative_tokens`."""

    table: str | None = Field(None, description="initial table from `draftpick drafters corpus`; absent: empty")
    search: Literal["tree", "greedy", "full"] = Field("tree", description="search algorithm")
    iterations: int = Field(150, ge=1, le=10_000, description="iterations of the tree search")
    shared: bool = Field(
        False, description="requests learn from each other's text; response times then leak information about it"
    )
    num_bigrams: int = Field(65_536, ge=8, le=2**24, description="size of the shared table, 120 bytes each")
    num_own_bigrams: int = Field(1024, ge=8, le=2**20, description="size of a request's own table")
    learn_prompt: bool = Field(True, description="learn from the prompt as if it had been decoded token by token")
    seed: int = Field(0, ge=0, description="seed of the tree search")

    def problem(self, num_speculative_tokens: int) -> str | None:
        if self.search != "full" or num_speculative_tokens <= FULL_DEPTH:
            return None
        return f"search: `full` visits every chain; set num_speculative_tokens to at most {FULL_DEPTH}"


_TOKEN_COST = Field(
    0.05,
    ge=0,
    le=1,
    description="time to verify one more token, as a share of a plain step; 0: never shorten",
)


class SuffixOptions(_DrafterOptions):
    """Suffix decoding (arXiv 2411.04975), with vLLM's names; only tokens that are likely enough are verified."""

    token_cost: float = _TOKEN_COST
    suffix_decoding_max_tree_depth: int = Field(24, ge=1, description="longest match plus draft, in tokens")
    suffix_decoding_max_cached_requests: int = Field(
        10_000, ge=0, description="answers kept to draft from for later requests; response times then leak them"
    )
    suffix_decoding_max_spec_factor: float = Field(1.0, ge=0, description="maximum draft length per matched token")
    suffix_decoding_min_token_prob: float = Field(0.1, ge=0, le=1, description="least frequency of a drafted token")


class HeadOptions(_DrafterOptions):
    """An EAGLE-3 head; other options are vLLM's. On CPUs only, where the drafting loop is ours."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    draft_exit: bool = Field(
        False, description="draft, and verify, only tokens that are likely enough to be accepted to pay for their time"
    )
    draft_cost: float = Field(0.02, ge=0, le=1, description="time to draft one more token, as a share of a step")
    verify_cost: float = Field(0.03, ge=0, le=1, description="time to verify one more token, as a share of a step")
    pass_cost: float = Field(0.05, ge=0, le=1, description="time of the head to read a step's tokens, as a share of it")


class HybridOptions(_DrafterOptions):
    """Several model-free drafters; each step proposes the best draft."""

    parts: tuple[Literal["ngram", "suffix", "trigram"], ...] = Field(
        ("ngram", "suffix", "trigram"), min_length=1, description="drafters to choose from"
    )
    token_cost: float = _TOKEN_COST
    trigram: TrigramOptions = Field(default_factory=TrigramOptions, description="options of the tri-gram part")

    def problem(self, num_speculative_tokens: int) -> str | None:
        return self.trigram.problem(num_speculative_tokens)

    def components(self) -> tuple[str, ...]:
        return self.parts


@dataclass(frozen=True, slots=True)
class SharedText:
    """The option that makes a drafter keep one request's text for later ones; `off` disables it."""

    path: tuple[str, ...]
    default: int
    off: int

    def value(self, options: Mapping[str, Any]) -> Any:
        """Return the option's value in a drafter's options."""
        for name in self.path:
            if not isinstance(options, Mapping) or options.get(name) is None:
                return self.default
            options = options[name]
        return options

    def switch_off(self, options: dict[str, Any]) -> None:
        """Set the option in place so that the drafter keeps no text."""
        if self.value(options) != self.off:
            *above, name = self.path
            for one in above:
                options = options.setdefault(one, {})
            options[name] = self.off


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterSpec:
    """Properties of a drafting method.

    `needs_model`: `model` is required: a path, an id, or a class. `model_free`: drafts without a trained model.
    `weights`: expected format of the model, if checked. `same_as_target`: keys of `config.json` that must equal the
    target's. `replayable`: acceptance follows from the answer alone. `shares_text_across_requests`: the option that
    enables sharing, if any. `pooled`: can share an engine with other drafters. `packages`: required distributions
    besides vLLM. `options`, `class_path`: for our own drafters, the options model and the class that vLLM's
    `custom_class` loads. `added_options`: ours, for a drafter of vLLM.
    """

    needs_model: bool = False
    model_free: bool = False
    weights: Literal["causal_lm", "eagle3"] | None = None
    same_as_target: tuple[str, ...] = ()
    replayable: bool = False
    shares_text_across_requests: SharedText | None = None
    pooled: bool = False
    packages: tuple[str, ...] = ()
    options: type[_DrafterOptions] | None = None
    class_path: str | None = None
    added_options: type[_DrafterOptions] | None = None

    def needed_packages(self, options: Mapping[str, Any]) -> set[str]:
        """Return the packages required by a drafter with these options, including its component drafters'."""
        parts = self.options.model_validate(options).components() if self.options is not None else ()
        return {*self.packages, *(package for part in parts for package in DRAFTERS[part].packages)}


DRAFTERS: dict[str, DrafterSpec] = {
    "ngram": DrafterSpec(model_free=True, replayable=True, pooled=True),
    "draft_model": DrafterSpec(needs_model=True, weights="causal_lm", same_as_target=("vocab_size",), replayable=True),
    "eagle": DrafterSpec(needs_model=True, same_as_target=("hidden_size",)),
    "eagle3": DrafterSpec(
        needs_model=True,
        weights="eagle3",
        same_as_target=("vocab_size", "hidden_size"),
        replayable=True,
        pooled=True,
        added_options=HeadOptions,
    ),
    "custom_class": DrafterSpec(needs_model=True, model_free=True),
    "medusa": DrafterSpec(needs_model=True, same_as_target=("hidden_size",)),
    "mlp_speculator": DrafterSpec(needs_model=True, same_as_target=("hidden_size",)),
    "dflash": DrafterSpec(needs_model=True),
    "ngram_gpu": DrafterSpec(model_free=True),
    "suffix": DrafterSpec(
        model_free=True,
        replayable=True,
        shares_text_across_requests=SharedText(("suffix_decoding_max_cached_requests",), default=10_000, off=0),
        pooled=True,
        packages=("arctic-inference",),
        options=SuffixOptions,
        class_path="draftpick.engines.drafters.hybrid.SuffixProposer",
    ),
    "trigram": DrafterSpec(
        model_free=True,
        replayable=True,
        shares_text_across_requests=SharedText(("shared",), default=False, off=False),
        pooled=True,
        options=TrigramOptions,
        class_path="draftpick.engines.drafters.trigram.proposer.TrigramProposer",
    ),
    "hybrid": DrafterSpec(
        model_free=True,
        replayable=True,
        shares_text_across_requests=SharedText(("trigram", "shared"), default=False, off=False),
        pooled=True,
        options=HybridOptions,
        class_path="draftpick.engines.drafters.hybrid.HybridProposer",
    ),
}
"""Methods of which more is known than their names: vLLM's, then our own."""


def spec_of(method: str) -> DrafterSpec:
    """Return the properties of a method; of one that is not in the table, nothing is known or checked."""
    return DRAFTERS.get(method, _UNKNOWN)


_UNKNOWN = DrafterSpec()
