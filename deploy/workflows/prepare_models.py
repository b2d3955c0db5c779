"""Prepares the embedded models, with a progress bar."""

from typing import Any

from draftpick.deploy.console import progress_bar


def prepare_models(config: Any) -> None:
    """Prepare the embedded target if the fleet uses it."""
    from draftpick.engines.config import EMBEDDED
    from draftpick.engines.models.embedded import prepare_target

    if config.target.source != EMBEDDED or all(e.kind != "vllm" for e in config.engines):
        return
    with progress_bar() as shown:
        task = shown.add_task("target", total=100)
        prepare_target(lambda what, share: shown.update(task, description=what, completed=100 * share))
