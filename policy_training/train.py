"""From measurements to a policy's artefact, and from an artefact to what it would have chosen."""

import asyncio
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from policy_training.dataset import DatasetError, Matrix, Measurement, matrix
from policy_training.learners import Progress, TrainOptions, train
from policy_training.workloads import Prompt
from router.features import Featurizer
from router.openai import Request, cut
from router.policies import artifact
from router.policies.base import Policy
from router.types import Context

_FEWEST_PROMPTS = 10


async def _contexts(featurizer: Featurizer, prompts: Sequence[Prompt]) -> npt.NDArray[np.float32]:
    contexts = await asyncio.gather(*(featurizer(as_request(p)) for p in prompts))
    return np.stack([c.vector for c in contexts])


def as_request(prompt: Prompt) -> Request:
    """The request that a prompt is sent as, as far as features see it."""
    sampling = {"temperature": prompt.temperature, "max_tokens": float(prompt.max_tokens)}
    return Request("/v1/chat/completions", b"", cut(prompt.text), sampling=sampling)


def dataset(
    measurements: Sequence[Measurement], prompts: Mapping[str, Prompt], labels: Sequence[str], featurizer: Featurizer
) -> Matrix:
    """The matrix of measurements with the contexts that the router would have made of the prompts."""
    data = matrix(measurements, labels)
    unknown = [i for i in data.prompt_ids if i not in prompts]
    if unknown:
        raise DatasetError(f"prompt {unknown[0]!r} was measured and is not among the prompts (same seed and file?)")
    contexts = asyncio.run(_contexts(featurizer, [prompts[i] for i in data.prompt_ids]))
    return replace(data, contexts=contexts)


def train_policy(
    data: Matrix,
    featurizer_id: str,
    default: str,
    out: Path,
    options: TrainOptions,
    provenance: dict[str, Any],
    progress: Progress | None = None,
) -> None:
    """Fit the seed's policy on `data` and write its artefact to `out`."""
    if data.contexts is None:
        raise DatasetError("the data has no contexts: make it with `dataset`")
    if default not in data.arms:
        raise DatasetError(f"the default engine {default!r} was not measured (measured: {', '.join(data.arms)})")
    if len(data) < _FEWEST_PROMPTS or len(data.arms) < 2:
        raise DatasetError(
            f"{len(data)} usable prompts under {len(data.arms)} arms are too few: at least {_FEWEST_PROMPTS} prompts "
            f"under 2 arms are needed (dropped: {data.dropped})"
        )
    if not (np.isfinite(data.time_s).all() and np.isfinite(data.contexts).all()):
        raise DatasetError("times or contexts hold values that are not finite")
    arrays = train(data.contexts, data.time_s, data.arms.index(default), options, progress)
    manifest = {
        "kind": "mlp",
        "arms": list(data.arms),
        "featurizer": featurizer_id,
        "options": {"greedy": True, "floor": 0.0},
        "provenance": {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "prompts": len(data),
            "kinds": sorted(set(data.kinds)),
            "dropped": data.dropped,
            "train_options": asdict(options),
            "torch": torch.__version__,
            **provenance,
        },
    }
    artifact.write(out, manifest, arrays)


def choices(policy: Policy, data: Matrix, featurizer_id: str) -> npt.NDArray[np.float64]:
    """The probabilities that served: shape [n, arms], in the arms' order of `data`."""
    if data.contexts is None:
        raise DatasetError("the data has no contexts")
    if set(policy.arms) != set(data.arms):
        raise DatasetError(f"the policy has the arms {list(policy.arms)}, the data {list(data.arms)}")
    everywhere = np.ones(len(policy.arms), bool)
    rows = np.stack([policy.probabilities(Context(v, featurizer_id), everywhere) for v in data.contexts])
    return np.asarray(rows[:, [policy.arms.index(arm) for arm in data.arms]])
