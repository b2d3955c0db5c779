"""Tests of a changed copy of the tree: which fails first, the fastest first.

A `Session` imports and collects the tests of one module once, and runs them in forked processes: each puts the changed
function in the place of the old one (`patch`), so that a mutant costs its tests alone, and of these only those that
enter that function. What is changed outside of functions needs a session of its own.
"""

import ast
import gc
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

_TIMEOUT_S = 300.0
_HANGS = "hangs"
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Run:
    """What a forked process is to do. `source`: of the module, None if unchanged; `tests`: in order; None: all.

    `record`: note which functions of the module each test enters.
    """

    source: str | None = None
    tests: Sequence[str] | None = None
    skipped: Collection[str] = ()
    record: bool = False


@dataclass(slots=True)
class Found:
    """What a run found. `code`: the exit code of pytest; `fails`: the first test that failed, empty if none.

    `seconds`: of each test that passed; `entered`: tests by the function that they enter, if recorded.
    """

    code: int = 1
    fails: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    entered: dict[str, list[str]] = field(default_factory=dict)


class NotCollectedError(Exception):
    """The tests of a module cannot be imported."""


class Session:
    """Collected tests of a module, in a process of their own."""

    def __init__(self, copy: Path, module: str, paths: Sequence[str], seconds: dict[str, float]) -> None:
        """`seconds`: what tests took before."""
        self._report = copy / "found.json"
        self._runs, theirs = _FORK.Pipe()
        self._process = _FORK.Process(target=self._serve, args=(theirs, copy, module, tuple(paths), seconds))
        self._process.start()
        theirs.close()

    def run(self, run: Run) -> Found:
        """Run tests until one fails, or hangs. Raises `NotCollectedError`."""
        self._report.unlink(missing_ok=True)
        try:
            self._runs.send(run)
            ended = self._runs.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise NotCollectedError from None
        if not ended:
            return Found(fails=_HANGS)
        return Found(**json.loads(self._report.read_text())) if self._report.exists() else Found()

    def close(self) -> None:
        """End the process."""
        self._runs.close()
        self._process.join()

    def _serve(self, pipe: Any, copy: Path, module: str, paths: Sequence[str], seconds: dict[str, float]) -> None:
        self._runs.close()
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        for name in [name for name in sys.modules if name.split(".")[0] in ("draftpick", "tests")]:
            del sys.modules[name]
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        forks = _Forks(pipe, module, seconds, self._report)
        options = ["-x", "-q", "--tb=no", *(f"-pno:{name}" for name in ("cacheprovider", "xdist", "schemathesis"))]
        options += [
            "--timeout=30",
            "-mnot ray and not vllm and not load",
            "-Wignore::pytest.PytestAssertRewriteWarning",
        ]
        code = int(pytest.main([*options, *paths], plugins=[forks]))
        forks.end(code)


class _Forks:
    """A plugin of pytest that forks after collection, once for each `Run` that comes; failing examples are not
    simplified."""

    def __init__(self, pipe: Any, module: str, seconds: dict[str, float], report: Path) -> None:
        self._name = f"draftpick.{module[:-3].replace('/', '.')}"
        self._pipe, self._seconds, self._report = pipe, seconds, report
        self._tests, self._record, self._file = list[str](), False, ""
        self._functions: list[FunctionType] = []
        self._is_fork, self._fails = False, ""
        self._measured: dict[str, float] = {}
        self._entered: dict[str, dict[str, None]] = {}

    def pytest_runtestloop(self, session: Any) -> bool | None:
        import hypothesis

        phases = [phase for phase in hypothesis.Phase if phase.name in ("explicit", "generate")]
        hypothesis.settings.register_profile("mutants", hypothesis.settings(), phases=phases, database=None)
        hypothesis.settings.load_profile("mutants")
        self._file = str(sys.modules[self._name].__file__)
        self._functions = [one for one in gc.get_objects() if _is_of(one, self._file)]
        gc.collect()
        gc.freeze()  # what a child collects is its own, and memory stays shared
        while (run := self._next()) is not None:
            if (child := os.fork()) == 0:
                os.setpgid(0, 0)
                self._is_fork = True
                self._begin(session, run)
                return None  # pytest goes on with its own loop
            self._pipe.send(_wait(child))
        return True

    def end(self, code: int) -> None:
        """End this process; a fork reports what it found."""
        if self._is_fork:
            found = Found(code, self._fails, self._measured, {name: [*tests] for name, tests in self._entered.items()})
            self._report.write_text(json.dumps(asdict(found)))
        os._exit(0)

    def _next(self) -> Run | None:
        try:
            run: Run = self._pipe.recv()
            return run
        except EOFError:
            return None

    def _begin(self, session: Any, run: Run) -> None:
        items = {item.nodeid: item for item in session.items}
        tests = sorted(items, key=lambda test: self._seconds.get(test, 0.05)) if run.tests is None else run.tests
        session.items[:] = [items[test] for test in tests if test not in run.skipped]
        if run.source is not None:
            patch(self._functions, compile(run.source, self._file, "exec"))
        if run.record:
            session.shouldfail = False
            session.config.option.maxfail = 0
            self._record = True
            sys.modules[self._name].__dict__[_ENTER] = self._enter
            patch(self._functions, compile(recording(Path(self._file).read_text()), self._file, "exec"))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._tests = [nodeid]

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        """What a shared fixture enters is entered by all tests that use it."""
        before = self._tests
        if fixturedef.scope != "function":
            self._tests = [item.nodeid for item in request.session.items if fixturedef.argname in item.fixturenames]
        try:
            return (yield)
        finally:
            self._tests = before

    def _enter(self, function: str) -> None:
        self._entered.setdefault(function, {}).update(dict.fromkeys(self._tests))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._fails = self._fails or report.nodeid
            if not self._record:
                self.end(1)  # what a mutant breaks may not even end
        elif report.when == "call":
            self._measured[report.nodeid] = report.duration


def _wait(child: int) -> bool:
    """Wait for the end of a fork; False if it hangs. What it has started ends with it."""
    until, ended = time.monotonic() + _TIMEOUT_S, 0
    while not ended and time.monotonic() < until:
        ended, _ = os.waitpid(child, os.WNOHANG)
        time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
    return bool(ended)


def patch(functions: Iterable[FunctionType], code: CodeType) -> None:
    """Give functions of a module the code that they have in another version of it."""
    found = dict(_functions(code))
    for function in functions:
        if function.__code__.co_qualname in found:
            function.__code__ = found[function.__code__.co_qualname]


def _is_of(thing: object, file: str) -> bool:
    """True for a function that is defined in this file."""
    return isinstance(thing, FunctionType) and thing.__code__.co_filename == file


def _functions(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    """Code of all functions, by qualified name."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner.co_qualname, inner
            yield from _functions(inner)


_Function = ast.FunctionDef | ast.AsyncFunctionDef
_ENTER = "_enter_of_mutants"


def _outermost(tree: ast.Module) -> Iterator[tuple[str, _Function]]:
    """Functions that are in no other one, by qualified name."""
    scopes: list[tuple[str, ast.Module | ast.ClassDef]] = [("", tree)]
    for prefix, scope in scopes:
        for node in scope.body:
            if isinstance(node, ast.ClassDef):
                scopes.append((f"{prefix}{node.name}.", node))
            elif isinstance(node, _Function):
                yield prefix + node.name, node


def recording(source: str) -> ast.Module:
    """The source of a module whose outermost functions say when they are entered."""
    tree = ast.parse(source)
    for name, function in _outermost(tree):
        function.body[:0] = ast.parse(f"{_ENTER}({name!r})").body
    return ast.fix_missing_locations(tree)


@cache
def _function_at(source: str, line: int) -> str | None:
    """The outermost function whose body has this line."""
    functions = _outermost(ast.parse(source))
    return next((n for n, node in functions if node.body[0].lineno <= line <= (node.end_lineno or 0)), None)


class Tests:
    """Tests mutants of one module after the other. `fails`: the test that noticed the last one."""

    def __init__(self, copy: Path, file: Path) -> None:
        """`copy`: of the tree; `file`: keeps what is known of tests for the next run."""
        self._copy, self._file = copy, file
        known = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._seconds: dict[str, float] = known.get("seconds", {})
        self._steady: dict[str, bool] = known.get("steady", {})
        self._entered: dict[str, tuple[str, dict[str, list[str]]]] = known.get("entered", {})
        self._number, self.fails = int(10 * time.time()) % 2**31, ""
        self._session: Session | None = None
        self._module = self._state = ""
        self._paths: Sequence[str] = ()

    def begin(self, module: str, paths: Sequence[str], state: str) -> None:
        """Mutants of another module follow. `state`: a digest of it and its tests, for what is known of them."""
        self.close()
        self._module, self._paths, self._state = module, paths, state

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def notice(self, broken: str, line: int) -> bool:
        """True if one of these tests fails with another source of a module, or hangs. Those that fail anyway tell
        nothing. `line`: where the source differs. Raises `NotCollectedError` if they cannot be imported without it."""
        source = (self._copy / self._module).read_text()
        function = _function_at(source, line)
        skipped = set[str]()
        while True:
            if function is None:
                found = self._run_outside(broken, skipped)
            else:
                found = self._run(Run(broken, self._tests_of(function), skipped))
            self.fails = found.fails
            if found.code == 0 or not found.fails or self._is_steady(found.fails):
                return found.code != 0
            skipped.add(found.fails)

    def _run(self, run: Run) -> Found:
        if self._session is None:
            self._session = Session(self._copy, self._module, self._paths, self._seconds)
        found = self._session.run(run)
        self._seconds |= found.seconds
        if found.code == pytest.ExitCode.NO_TESTS_COLLECTED:  # none enters the function
            found.code = 0
        elif found.code == pytest.ExitCode.INTERNAL_ERROR:
            raise RuntimeError(f"{self._module}: the changed function cannot take the place of the old one")
        return found

    def _run_outside(self, broken: str, skipped: Collection[str]) -> Found:
        """Run with a module that is imported in its broken form."""
        file = self._copy / self._module
        whole = file.read_text()
        self._replace(file, broken)
        session = Session(self._copy, self._module, self._paths, self._seconds)
        try:
            return session.run(Run(skipped=skipped))
        except NotCollectedError:
            return Found()  # it fails as soon as it is imported
        finally:
            session.close()
            self._replace(file, whole)

    def _replace(self, file: Path, text: str) -> None:
        """Write a module with a time of its own: what Python has compiled is taken for files of one time and size."""
        file.write_text(text)
        self._number += 1
        os.utime(file, (self._number, self._number))

    def _tests_of(self, function: str) -> list[str]:
        """Tests that enter a function."""
        state, entered = self._entered.get(self._module, ("", {}))
        if state != self._state:
            entered = self._run(Run(record=True)).entered
            self._entered[self._module] = self._state, entered
        return sorted(entered.get(function, ()), key=lambda test: self._seconds.get(test, 0.05))

    def _is_steady(self, test: str) -> bool:
        """True if a test passes alone and without a mutant, so that its failure tells something."""
        if test not in self._steady and test != _HANGS:
            self._steady[test] = self._run(Run(tests=[test])).code == 0
        return self._steady.get(test, True)

    def write(self) -> None:
        """Keep what is known of tests for the next run."""
        known = {"seconds": self._seconds, "steady": self._steady, "entered": self._entered}
        self._file.write_text(json.dumps(known))


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
