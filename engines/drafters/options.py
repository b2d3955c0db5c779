"""What our own drafters may be told, and the classes that vLLM loads for them. Imports nothing heavy."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrigramOptions(_Options):
    """A tri-gram table with tree search (ADED, arXiv 2407.12021); the search depth is `num_speculative_tokens`."""

    table: str | None = Field(None, description="starting table, of `draftpick drafters corpus`; absent: empty")
    search: Literal["tree", "greedy", "full"] = Field("tree", description="how the chain of tokens is found")
    iterations: int = Field(150, ge=1, le=10_000, description="iterations of the tree search")
    shared: bool = Field(False, description="requests learn from one another's text, which then shows in their speed")
    num_bigrams: int = Field(65_536, ge=8, le=2**24, description="size of the shared table, 120 bytes each")
    num_own_bigrams: int = Field(1024, ge=8, le=2**20, description="size of one request's own table")
    learn_prompt: bool = Field(True, description="the prompt counts as if it had been decoded token by token")
    seed: int = Field(0, ge=0, description="seed of the tree search")


class HybridOptions(_Options):
    """Several model-free drafters, of which each step takes the best."""

    parts: tuple[Literal["ngram", "suffix", "trigram"], ...] = Field(
        ("ngram", "suffix", "trigram"), min_length=1, description="drafters to choose from"
    )
    token_cost: float = Field(0.03, ge=0, le=1, description="time to verify one more token, as a share of a step")
    trigram: TrigramOptions = Field(default_factory=TrigramOptions, description="options of the tri-gram part")


FULL_DEPTH = 4
"""Longest drafts of the full search, which may visit 24 successors at each token."""

OWN_DRAFTERS: dict[str, tuple[type[TrigramOptions | HybridOptions], str]] = {
    "trigram": (TrigramOptions, "engines.drafters.trigram.TrigramProposer"),
    "hybrid": (HybridOptions, "engines.drafters.hybrid.HybridProposer"),
}
"""Methods that Draftpick adds to vLLM's: their options, and the class that vLLM's `custom_class` loads."""
