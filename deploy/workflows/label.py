"""`draftpick label`: from prompts to a dataset of replayed answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftpick.deploy.console import progress_bar
from draftpick.deploy.workflows.featurizers import featurizers
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.engines.errors import ConfigError
from draftpick.engines.models.paths import target_path
from draftpick.policy_training.data.contexts import refresh_contexts
from draftpick.policy_training.data.dataset import DatasetParts
from draftpick.policy_training.data.replay_labels import PART, Labeller, on_ray
from draftpick.policy_training.workloads import Prompt
from draftpick.router.config.router_config import DraftpickConfig


@dataclass(frozen=True, slots=True)
class Labelled:
    """Result. `prompts`: newly labelled; `renewed`: labelled before, with recomputed features.

    `engines`: the replayed ones; `left_out`: those without a replayable drafter.
    """

    prompts: int
    renewed: int
    engines: list[str]
    left_out: list[str]


def label_prompts(
    fleet: DraftpickConfig,
    prompts: Sequence[Prompt],
    output: Path,
    *,
    seed: int,
    answers: int = 1,
    alone_tokens: int = 0,
    lengths: bool = True,
    workers: int = 0,
) -> Labelled:
    """Label the unlabelled prompts into the folder `output`, in this process or on `workers` of Ray Data.

    `answers`: per sampled prompt; `lengths`: also replay other draft lengths; `alone_tokens`: tokens that each drafter
    generates alone. Raises `ConfigError` if fewer than two engines can be replayed.
    """
    prepare_models(fleet)
    engines = tuple(engine for engine in fleet.engines if engine.can_replay)
    if len(engines) < 2:
        raise ConfigError(
            "engines",
            "fewer than two engines can be replayed",
            "name engines whose drafters are known to `draftpick label`",
        )
    parts, made = DatasetParts(output), featurizers()
    renewed = refresh_contexts(output, prompts, made)
    todo = parts.pending(prompts, max(PART // answers, 1))
    done = sum(map(len, todo))
    target = target_path(fleet.target)
    options: dict[str, Any] = {"seed": seed, "answers": answers, "standalone_tokens": alone_tokens, "lengths": lengths}
    if workers:
        on_ray(target, engines, todo, output, workers, **options)
    elif todo:
        with progress_bar() as bar:
            row = bar.add_task("labelling", total=done)
            labeller = Labeller(target, engines, made, **options)
            for part in todo:
                parts.add(*labeller.label(part, lambda count: bar.advance(row, count)))
    left_out = [engine.name for engine in fleet.engines if engine not in engines]
    return Labelled(done, renewed, [engine.name for engine in engines], left_out)
