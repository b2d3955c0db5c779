"""A process that has imported vLLM, for engines one after the other: to import it takes longer than most engines run.

An engine runs in the process itself, so that a test may look into it and patch it; what a test patches it restores.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


def vllm_process() -> ProcessPoolExecutor:
    """Runs functions of modules, one at a time; the process starts with the first."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    os.environ.update(_ENVIRONMENT)
