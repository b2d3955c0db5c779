"""Tests of a changed copy of the tree: which fails first, the fastest first, each run in a forked process."""

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

_TIMEOUT_S = 300.0
_HANGS = "hangs"


class Tests:
    """Runs tests of a copy of the tree, the fastest first, until one fails. `fails`: the one of the last run."""

    def __init__(self, copy: Path, file: Path) -> None:
        """`copy`: of the tree; `file`: keeps what is known of tests for the next run."""
        self._copy, self._file = copy, file
        known = json.loads(self._file.read_text()) if self._file.exists() else {"seconds": {}, "steady": {}}
        self._seconds: dict[str, float] = known["seconds"]
        self._steady: dict[str, bool] = known["steady"]
        self._number, self.fails = int(10 * time.time()) % 2**31, ""

    def notice(self, module: str, broken: str, paths: Sequence[str]) -> bool:
        """True if one of these tests fails with another source of a module, or hangs. Those that fail anyway tell
        nothing."""
        file, skipped = self._copy / module, set[str]()
        whole = file.read_text()
        while True:
            self._replace(file, broken)
            try:
                code, fails = self.run(paths, skipped), self.fails
            finally:
                self._replace(file, whole)
            if code == 0 or not fails or self._is_steady(fails):
                return code != 0
            skipped.add(fails)

    def _replace(self, file: Path, text: str) -> None:
        """Write a module with a time of its own: what Python has compiled is taken for files of one time and size."""
        file.write_text(text)
        self._number += 1
        os.utime(file, (self._number, self._number))

    def _is_steady(self, test: str) -> bool:
        """True if a test passes alone and without a mutant, so that its failure tells something."""
        name = test.partition("[")[0]
        if name not in self._steady and name != _HANGS:
            self._steady[name] = self.run([name]) == 0
            self.fails = test
        return self._steady.get(name, True)

    def write(self) -> None:
        """Keep what is known of tests for the next run."""
        self._file.write_text(json.dumps({"seconds": self._seconds, "steady": self._steady}))

    def run(self, paths: Sequence[str], skipped: Collection[str] = ()) -> int:
        """Exit code of pytest in a forked process, which has other packages loaded already; 1 if it hangs."""
        report = self._copy / "seconds.json"
        report.write_text("{}")
        process = multiprocessing.get_context("fork").Process(target=self._pytest, args=(tuple(paths), report, skipped))
        process.start()
        process.join(_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
            self.fails = _HANGS
            return 1
        found = json.loads(report.read_text())
        self.fails = found.pop("", "")
        self._seconds |= found
        return process.exitcode or 0

    def _pytest(self, paths: Sequence[str], report: Path, skipped: Collection[str]) -> None:
        import pytest

        os.chdir(self._copy)
        sys.path.insert(0, str(self._copy))
        for name in [name for name in sys.modules if name.split(".")[0] in ("draftpick", "tests")]:
            del sys.modules[name]
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        order = _FastestFirst(self._seconds, skipped)
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "30"]
        options += ["-m", "not ray and not vllm and not load", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = int(pytest.main([*options, *paths], plugins=[order]))
        report.write_text(json.dumps({"": order.fails, **order.measured}))
        os._exit(code)


class _FastestFirst:
    """A plugin of pytest that orders tests by their seconds and measures these; failing examples are not simplified."""

    def __init__(self, seconds: dict[str, float], skipped: Collection[str]) -> None:
        self._seconds, self._skipped = seconds, skipped
        self.measured, self.fails = dict[str, float](), ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        import hypothesis

        phases = [phase for phase in hypothesis.Phase if phase.name in ("explicit", "generate")]
        hypothesis.settings.register_profile("mutants", hypothesis.settings(), phases=phases, database=None)
        hypothesis.settings.load_profile("mutants")
        items[:] = [item for item in items if item.nodeid not in self._skipped]
        items.sort(key=lambda item: self._seconds.get(item.nodeid, 0.05))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.fails = self.fails or report.nodeid
        elif report.when == "call":
            self.measured[report.nodeid] = report.duration


def preload() -> None:
    """Import the packages that tests need, once for all."""
    import httpx  # noqa: F401
    import hypothesis  # noqa: F401
    import numpy.testing  # noqa: F401
    import opentelemetry.sdk.trace  # noqa: F401
    import prometheus_client  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import starlette.applications  # noqa: F401
    import uvicorn  # noqa: F401


def copy_tree(root: Path, to: Path) -> None:
    """Copy what tests need, over an earlier copy, so that Python need not compile it again."""
    ignored = shutil.ignore_patterns("results", "__pycache__", "node_modules", "*.pt", "*.onnx")
    for name in ("router", "engines", "policy_training", "deploy", "tests", "docs"):
        shutil.copytree(root / name, to / name, ignore=ignored, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(to / "draftpick", ignore_errors=True)
    shutil.copytree(root / "draftpick", to / "draftpick", symlinks=True)
    shutil.copy(root / "pyproject.toml", to)
