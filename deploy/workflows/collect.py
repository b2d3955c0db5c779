"""`draftpick collect`: measures prompts under every engine of a fleet, part by part."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.progress import Progress

from draftpick.deploy.config import resolve, with_router
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.policy_training.data.collect import arms_of, measure, model_of, pinned_tasks
from draftpick.policy_training.data.contexts import contexts
from draftpick.policy_training.data.dataset import DatasetParts, Measurement
from draftpick.policy_training.workloads import Prompt
from draftpick.router.features.featurizer import Featurizer

_WARM_UP = Prompt("warm-up", "chat", "Say hello.", max_tokens=8)


@contextmanager
def fleet_at(config: str | None, url: str, port: int, bar: Progress) -> Iterator[str]:
    """Yield the base URL of the running fleet, or of one started for the block."""
    if config is None:
        yield url
        return
    from draftpick.deploy.launch.ray_serve import running  # needed only to start a fleet

    fleet = with_router(resolve(config), policy="uniform", featurizer="none")
    prepare_models(fleet)
    row = bar.add_task("starting engines", total=len(fleet.engines) + 1)

    def ready(states: dict[str, str]) -> None:
        bar.update(row, completed=sum(state == "ready" for state in states.values()))

    with running(fleet, port=port, progress=ready) as started:
        yield started


def measure_parts(
    url: str,
    todo: Sequence[Sequence[Prompt]],
    parts: DatasetParts,
    featurizers: Sequence[Featurizer],
    concurrency: int,
    seed: int,
    bar: Progress,
) -> tuple[int, int]:
    """Measure parts of prompts and write each; return the numbers of sent and failed requests."""
    arms, model = asyncio.run(arms_of(url)), model_of(url)
    row = bar.add_task("collecting", total=sum(map(len, todo)) * len(arms))
    sent, failed = 0, 0
    # Warm up: an engine's first answer is slow.
    asyncio.run(measure(url, model, pinned_tasks([_WARM_UP], arms, seed)))
    for prompts in todo:
        tasks = pinned_tasks(prompts, arms, seed)
        # Under load, one engine after another: concurrent ones would slow each other.
        groups = [[t for t in tasks if t.arm == arm] for arm in arms] if concurrency > 1 else [tasks]
        measured: list[Measurement] = []
        for group in groups:
            asked = measure(url, model, group, concurrency=concurrency, progress=lambda *_: bar.advance(row))
            measured += asyncio.run(asked)
        sent, failed = sent + len(measured), failed + sum(m.outcome.status != "ok" for m in measured)
        parts.add(measured, contexts(featurizers, prompts))
    return sent, failed
