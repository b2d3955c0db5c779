"""Where the weights of a target and of a drafter lie."""

from draftpick.engines.config import EMBEDDED, Drafter, Target
from draftpick.engines.models.embedded import drafter_path, prepare_target


def target_path(target: Target) -> str:
    """What vLLM loads as the model: a path or a Hugging Face id. Prepares the embedded target if need be."""
    return str(prepare_target()) if target.source == EMBEDDED else target.source


def drafter_model(drafter: Drafter) -> str | None:
    """What vLLM loads as the drafter's model: a path, an id, a class, or nothing."""
    if drafter.model is None or not drafter.model.startswith(EMBEDDED + ":"):
        return drafter.model
    return str(drafter_path(drafter.model.removeprefix(EMBEDDED + ":")))
