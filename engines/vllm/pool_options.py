"""The drafters of a pool, as `additional_config["draftpick_pool"]` names them."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from draftpick.engines.config import Drafter as DrafterConfig
from draftpick.engines.drafter_options import HybridOptions, SuffixOptions, TrigramOptions
from draftpick.engines.drafters.proposer import Drafter
from draftpick.engines.pool.forecast import NONE

KEY = "draftpick_pool"
HEAD = "eagle3"


class PoolOptions(BaseModel):
    """Drafters by name, in order; `none` is implied."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drafters: dict[str, DrafterConfig] = Field(min_length=1)

    @classmethod
    def from_config(cls, vllm_config: Any) -> Self | None:
        """Read vLLM's configuration; None if it asks for no pool."""
        fields = (vllm_config.additional_config or {}).get(KEY)
        return None if fields is None else cls.model_validate(fields)

    @field_validator("drafters", mode="before")
    @classmethod
    def _named(cls, drafters: Any) -> Any:
        if isinstance(drafters, list):
            names = [fields.get("name") for fields in drafters]
            if len(set(names)) < len(names) or None in names or NONE in names:
                raise ValueError(f"each drafter needs a `name` of its own, other than {NONE!r}")
            return {fields["name"]: {key: v for key, v in fields.items() if key != "name"} for fields in drafters}
        return drafters

    @model_validator(mode="after")
    def _with_heads(self) -> Self:
        if not self.heads:
            raise ValueError("a pool needs at least one `eagle3` head; without one, use method `hybrid`")
        for name, drafter in self.drafters.items():
            if drafter.method != HEAD and drafter.method not in _BUILDERS:
                raise ValueError(f"{name}: method {drafter.method!r} has no place in a pool; use eagle3, "
                                 f"{', '.join(_BUILDERS)}")  # fmt: skip
        return self

    @property
    def heads(self) -> dict[str, DrafterConfig]:
        return {name: one for name, one in self.drafters.items() if one.method == HEAD}

    @property
    def length(self) -> int:
        """Greatest draft length of all."""
        return max(one.num_speculative_tokens for one in self.drafters.values())


def build_drafter(config: DrafterConfig) -> Drafter:
    """Build a model-free drafter."""
    return _BUILDERS[config.method](config.model_extra or {}, config.num_speculative_tokens)


def _suffix(options: dict[str, Any], length: int) -> Drafter:
    from draftpick.engines.drafters.suffix import SuffixDrafter

    return SuffixDrafter(length, SuffixOptions.model_validate(options))


def _ngram(options: dict[str, Any], length: int) -> Drafter:
    from draftpick.engines.drafters.prompt_lookup import NgramDrafter

    return NgramDrafter(length, int(options.get("prompt_lookup_max", 8)))


def _trigram(options: dict[str, Any], length: int) -> Drafter:
    from draftpick.engines.drafters.trigram.proposer import TrigramDrafter

    return TrigramDrafter(TrigramOptions.model_validate(options), length)


def _hybrid(options: dict[str, Any], length: int) -> Drafter:
    from draftpick.engines.drafters.hybrid import HybridProposer

    return HybridProposer.build(HybridOptions.model_validate(options), length)


_BUILDERS = {"suffix": _suffix, "ngram": _ngram, "trigram": _trigram, "hybrid": _hybrid}
