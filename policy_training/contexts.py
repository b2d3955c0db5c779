"""The contexts that the router would have made of prompts."""

import asyncio
from collections.abc import Sequence

from policy_training.dataset import Contexts
from policy_training.workloads import Prompt
from router.features import Featurizer
from router.openai import Request, cut
from router.types import Vector


def contexts(featurizers: Sequence[Featurizer], prompts: Sequence[Prompt]) -> Contexts:
    """Feature vectors by prompt id and featurizer."""
    return asyncio.run(_contexts(featurizers, prompts))


async def _contexts(featurizers: Sequence[Featurizer], prompts: Sequence[Prompt]) -> Contexts:
    found: dict[str, dict[str, Vector]] = {prompt.id: {} for prompt in prompts}
    for featurizer in featurizers:
        made = await asyncio.gather(*(featurizer(as_request(prompt)) for prompt in prompts))
        for prompt, context in zip(prompts, made, strict=True):
            found[prompt.id][featurizer.id] = context.vector
    return found


def as_request(prompt: Prompt) -> Request:
    """The request that a prompt is sent as, as far as features see it."""
    sampling = {"temperature": prompt.temperature, "max_tokens": float(prompt.max_tokens)}
    return Request("/v1/chat/completions", b"", cut(prompt.text), sampling=sampling)
