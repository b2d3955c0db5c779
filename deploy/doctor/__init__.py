"""Diagnoses a user's engines and router: `examine` runs every check.

A new check is one function under `@check`, in the file of its subject below `checks/`.
"""

from importlib import import_module

from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import CHECKS, Finding

__all__ = ["DoctorContext", "Finding", "examine"]

_SUBJECTS = ("environment", "fleet", "vllm_args", "drafters", "router", "network", "live_engines", "records")
"""Files of checks, in order of execution."""


def examine(context: DoctorContext) -> list[Finding]:
    """Run every applicable check; a check without a problem returns one finding that all is well."""
    for subject in _SUBJECTS:
        import_module(f"{__name__}.checks.{subject}")
    return [finding for check in CHECKS if context.has(check.about) for finding in check(context)]
