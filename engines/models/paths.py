"""Resolves the sources of a target and of a drafter to paths."""

from draftpick.engines.config import EMBEDDED, Drafter, Target
from draftpick.engines.models.embedded import drafter_path, prepare_target


def target_path(target: Target) -> str:
    """Return the target's path or Hugging Face id for vLLM. Creates the embedded target if necessary."""
    return str(prepare_target()) if target.source == EMBEDDED else target.source


def drafter_model(drafter: Drafter) -> str | None:
    """Return the drafter's model for vLLM: a path, an id, a class, or None."""
    if drafter.model is None or not drafter.model.startswith(EMBEDDED + ":"):
        return drafter.model
    return str(drafter_path(drafter.model.removeprefix(EMBEDDED + ":")))
