"""The available featurizers, and the contexts of the drafters' training domains."""

import os
from collections.abc import Sequence

import numpy as np

from draftpick.deploy.workflows.drafter_corpus import Corpus
from draftpick.policy_training.data.contexts import contexts
from draftpick.policy_training.workloads import Prompt
from draftpick.router.features.featurizer import Featurizer
from draftpick.router.router import sentence_featurizer, static_featurizer
from draftpick.router.types import Vector

_HOME = 300  # texts per training domain


def featurizers() -> list[Featurizer]:
    """The featurizers whose contexts datasets store: the sentence encoder's and the static one's."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return [sentence_featurizer(), static_featurizer()]


def read_training_domains(sources: Sequence[str], featurizer: str) -> dict[str, Vector]:
    """Contexts [n, d] of texts of the drafters' training domains, by arm.

    Each source is `ARM=PROMPTS`, with prompts as in `draftpick drafters`: `math=gsm8k.jsonl`,
    `code=generated:code@300`. Raises ValueError for an unreadable source, and for an unavailable featurizer.
    """
    if not sources:
        return {}
    made = next((one for one in featurizers() if one.id == featurizer), None)
    if made is None:
        raise ValueError(f"--training-domain: the featurizer {featurizer!r} is not available here")
    homes: dict[str, Vector] = {}
    for source in sources:
        arm, _, prompts = source.partition("=")
        if not (arm and prompts):
            raise ValueError(f"--training-domain {source!r}: give ENGINE=PROMPTS, as in code=generated:code@{_HOME}")
        domain = [prompt for part in Corpus((prompts,), n=_HOME).parts() for prompt in part]
        asked = [Prompt(f"{arm}-{i}", arm, one.text, history=one.history) for i, one in enumerate(domain)]
        found = contexts([made], asked)
        homes[arm] = np.stack([found[prompt.id][featurizer] for prompt in asked])
    return homes
