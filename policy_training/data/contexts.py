"""Computes the contexts that the router would compute for prompts."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from draftpick.policy_training.data.dataset import Contexts, load, save
from draftpick.policy_training.workloads import Prompt
from draftpick.router.features.featurizer import Featurizer
from draftpick.router.openai_request import Request, parse
from draftpick.router.types import Vector


def contexts(featurizers: Sequence[Featurizer], prompts: Sequence[Prompt]) -> Contexts:
    """Return feature vectors by prompt id and featurizer."""
    return asyncio.run(_contexts(featurizers, prompts))


def refresh_contexts(folder: Path, prompts: Sequence[Prompt], featurizers: Sequence[Featurizer]) -> int:
    """Recompute the contexts of a dataset folder with these featurizers; return the number of changed requests.

    Parts with complete contexts, and requests outside `prompts`, stay unchanged.
    """
    by_id, wanted, changed = {prompt.id: prompt for prompt in prompts}, {f.id for f in featurizers}, 0
    for file in sorted(folder.glob("*.parquet")):
        data = load(file)
        asked = {
            m.prompt_id: replace(by_id[m.prompt_id], temperature=m.temperature, max_tokens=m.max_tokens)
            for m in data.measurements
            if m.prompt_id in by_id and not wanted <= data.contexts.get(m.prompt_id, {}).keys()
        }
        if asked:
            save(file, data.measurements, {**data.contexts, **contexts(featurizers, list(asked.values()))})
            changed += len(asked)
    return changed


async def _contexts(featurizers: Sequence[Featurizer], prompts: Sequence[Prompt]) -> Contexts:
    found: dict[str, dict[str, Vector]] = {prompt.id: {} for prompt in prompts}
    for featurizer in featurizers:
        made = await asyncio.gather(*(featurizer(request_from_prompt(prompt)) for prompt in prompts))
        for prompt, context in zip(prompts, made, strict=True):
            found[prompt.id][featurizer.id] = context.vector
    return found


def request_from_prompt(prompt: Prompt) -> Request:
    """Return the request of a prompt, parsed as the router parses it."""
    return parse("/v1/chat/completions", orjson.dumps(prompt.request_fields))
