"""What a user's engines and router suffer from, or soon will: `examine` asks every check.

A new check is one function under `@check`, in the file of its subject below `checks/`.
"""

from importlib import import_module

from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import CHECKS, Finding

__all__ = ["DoctorContext", "Finding", "examine"]

_SUBJECTS = ("environment", "fleet", "vllm_args", "drafters", "router", "network", "live_engines", "records")
"""Files of checks, in the order in which these are asked."""


def examine(context: DoctorContext) -> list[Finding]:
    """What every check found that this case has something for; one that found nothing says that all is well."""
    for subject in _SUBJECTS:
        import_module(f"{__name__}.checks.{subject}")
    return [finding for check in CHECKS if context.has(check.about) for finding in check(context)]
