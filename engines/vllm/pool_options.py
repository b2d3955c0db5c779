"""A pool's drafters on their way to vLLM: the arguments of an engine, and what its processes read of them."""

from collections.abc import Callable, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from draftpick.engines.config import PoolDrafter
from draftpick.engines.drafter_options import HybridOptions, SuffixOptions, TrigramOptions
from draftpick.engines.drafters.proposer import Drafter
from draftpick.engines.errors import ConfigError
from draftpick.engines.models.paths import drafter_model

KEY = "draftpick_pool"
"""Key of vLLM's `additional_config`."""
HEAD = "eagle3"


class PoolOptions(BaseModel):
    """The drafters of a pool, in order; models as vLLM takes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drafters: tuple[PoolDrafter, ...]

    @classmethod
    def from_config(cls, vllm_config: Any) -> Self | None:
        """Read vLLM's configuration; None for an engine that is no pool."""
        fields = (vllm_config.additional_config or {}).get(KEY)
        return None if fields is None else cls.model_validate(fields)

    @property
    def heads(self) -> dict[str, PoolDrafter]:
        return {one.name: one for one in self.drafters if one.method == HEAD}

    @property
    def model_free(self) -> dict[str, PoolDrafter]:
        return {one.name: one for one in self.drafters if one.method != HEAD}

    @property
    def length(self) -> int:
        """Greatest draft length of all."""
        return max(one.num_speculative_tokens for one in self.drafters)


def pool_arguments(drafters: Sequence[PoolDrafter]) -> dict[str, Any]:
    """Return vLLM's engine arguments of a pool. Raises `ConfigError` for a pool without a head.

    The heads' method is the one by which vLLM hands out hidden states; which head it names is of no importance.
    """
    named = [
        {**one.model_dump(exclude_none=True), **({"model": model} if (model := drafter_model(one)) else {})}
        for one in drafters
    ]
    options = PoolOptions.model_validate({"drafters": named})
    if not options.heads:
        raise ConfigError("drafters", "a pool needs an eagle3 head", "add one, or use `drafter: {method: hybrid}`")
    first = next(iter(options.heads.values()))
    return {
        "speculative_config": {
            "method": HEAD,
            "model": first.model,
            "num_speculative_tokens": options.length,
            "disable_padded_drafter_batch": True,
            "use_local_argmax_reduction": True,
        },
        "additional_config": {KEY: {"drafters": named}},
        "scheduler_cls": "draftpick.engines.vllm.pool_scheduler.PoolScheduler",
        "per_request_spec_decode_metrics": "summary",
    }


def build_drafter(config: PoolDrafter) -> Drafter:
    """Build a model-free drafter."""
    return _BUILDERS[config.method](config.model_extra or {}, config.num_speculative_tokens)


def _suffix(options: dict[str, Any], length: int) -> Drafter:
    from draftpick.engines.drafters.suffix import SuffixDrafter

    return SuffixDrafter(length, SuffixOptions.model_validate(options))


def _ngram(options: dict[str, Any], length: int) -> Drafter:
    from draftpick.engines.drafters.prompt_lookup import NgramDrafter

    return NgramDrafter.as_in_vllm(length, options)


def _trigram(options: dict[str, Any], length: int) -> Drafter:
    from draftpick.engines.drafters.trigram.proposer import TrigramDrafter

    return TrigramDrafter(TrigramOptions.model_validate(options), length)


def _hybrid(options: dict[str, Any], length: int) -> Drafter:
    from draftpick.engines.drafters.hybrid import HybridProposer

    return HybridProposer.build(HybridOptions.model_validate(options), length)


_BUILDERS: dict[str, Callable[[dict[str, Any], int], Drafter]] = {
    "suffix": _suffix,
    "ngram": _ngram,
    "trigram": _trigram,
    "hybrid": _hybrid,
}
