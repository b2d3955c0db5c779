"""A process that has imported vLLM, for engines one after the other: to import it takes longer than most engines run.

An engine runs in the process itself, so that a job may look into it and patch it; what a job patches it restores.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

_P, _R = ParamSpec("_P"), TypeVar("_R")
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


class VLLMProcess:
    """Runs functions of modules, with arguments and results that can be pickled."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def run(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """The function's result, or what it raises."""
        return self._executor.submit(function, *args, **kwargs).result()


@contextmanager
def vllm_process() -> Iterator[VLLMProcess]:
    """The process starts with the first function."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin) as executor:
        yield VLLMProcess(executor)


def _begin() -> None:
    os.environ.update(_ENVIRONMENT)
