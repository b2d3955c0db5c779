"""Reports from the field as scripts: `python -m tests.bench.field --scripts FOLDER ... --json-file FILE`.

Each script of the folders tries one report on the product. It is run in turn, with the product's own interpreter, as
often as `--repeats` says, and judged by what it prints: lines that begin with PASS or FAIL, or the patterns that
field.yaml has for it. What cannot run on this machine is in the same list, with what it lacks. `--root`: folder to run
in, whose modules the scripts import; default: this checkout.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.evaluation.evaluate import Interval

_JUDGEMENTS = Path(__file__).with_name("field.yaml")
_VERDICT = re.compile(r"^\W*(PASS|CLEAR|FAIL)\b.*", re.MULTILINE)


class Judgement(BaseModel):
    """How the output of a script is judged. All patterns are of `re`, by line.

    `shows`: must be found; `never`: must not be; `outdated`: lines with FAIL that are right today. `expected`: outcome
    in words. `needs`: programs, modules and `$VARIABLES` without which it cannot run; `not_run`: why it is not run
    anywhere. `replace`: former names in its text by today's; `environment`: how much it does.
    """

    model_config = ConfigDict(extra="forbid")

    expected: str = "it prints PASS, and no FAIL"
    shows: list[str] = []
    never: list[str] = []
    outdated: list[str] = []
    needs: list[str] = []
    not_run: str = ""
    replace: dict[str, str] = {}
    environment: dict[str, str] = {}

    def judge(self, output: str) -> str:
        """`pass`, or `fail: ` and what was found or is missing."""
        for line in (found[0] for found in _VERDICT.finditer(output) if found[1] == "FAIL"):
            if not any(re.search(pattern, line) for pattern in self.outdated):
                return f"fail: {line.strip()[:160]}"
        for pattern in self.never:
            if (bad := re.search(pattern, output, re.MULTILINE)) is not None:
                return f"fail: {bad[0][:160]}"
        for pattern in self.shows:
            if re.search(pattern, output, re.MULTILINE) is None:
                return f"fail: not found: {pattern}"
        return "pass" if self.shows or _VERDICT.search(output) else "fail: it printed no verdict"

    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        lacking = [name for name in self.needs if not (_has_variable(name) or _is_installed(name))]
        return self.not_run or (f"needs {', '.join(lacking)}" if lacking else "")


def _has_variable(name: str) -> bool:
    return name.startswith("$") and name[1:] in os.environ


def _is_installed(name: str) -> bool:
    return shutil.which(name) is not None or importlib.util.find_spec(name) is not None


def judgements(file: Path = _JUDGEMENTS) -> Mapping[str, Judgement]:
    """Judgements by the name of the script."""
    return {name: Judgement.model_validate(fields) for name, fields in yaml.safe_load(file.read_text()).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", type=Path, nargs="+", required=True, help="folders of scripts, or scripts")
    parser.add_argument("--root", type=Path, default=Path(), help="folder to run in")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="scripts at once")
    parser.add_argument("--timeout", type=float, default=400.0, help="seconds of a run")
    parser.add_argument("--outputs", type=Path, help="folder for what the scripts print")
    parser.add_argument("--judge-only", action="store_true", help="judge what --outputs has from an earlier run")
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    places = [sorted(path.glob("[0-9ch]*_*.py")) if path.is_dir() else [path] for path in args.scripts]
    scripts = [script for there in places for script in there]
    known = judgements()
    rows = {script.stem: known.get(script.stem, Judgement()) for script in scripts}
    seen: dict[str, list[str]] = {name: [] for name in rows}
    with progress_bar() as bar, ThreadPoolExecutor(args.jobs) as pool:
        row = bar.add_task("running", total=args.repeats * len(scripts))

        def one(script: Path, repeat: int) -> None:
            judgement = rows[script.stem]
            file = args.outputs and args.outputs / f"{script.stem}.{repeat}.txt"
            if why := judgement.missing():
                seen[script.stem] = [f"not run: {why}"]
            elif file.exists() if args.judge_only else True:
                output = file.read_text() if args.judge_only else run(script, judgement, args.root, args.timeout)
                seen[script.stem].append("timeout" if output is None else judgement.judge(output))
                if file and not args.judge_only:
                    file.write_text(output or "")
            bar.advance(row)

        for repeat in range(args.repeats):
            list(pool.map(partial(one, repeat=repeat), scripts))
    for name, runs in seen.items():
        out.print(f"{name:44} {'; '.join(runs)}", highlight=False)
    ran = [runs for runs in seen.values() if not runs[0].startswith("not run")]
    passed = sum(set(runs) == {"pass"} for runs in ran)
    out.print(f"{passed} of {len(ran)} pass, {len(seen) - len(ran)} cannot run here")
    if args.json_file:
        figures = {"passed_share": passed / max(len(ran), 1), "passed": passed, "not_run": len(seen) - len(ran)}
        exact = {name: Interval(value, value, value) for name, value in figures.items()}
        shown = {name: {"expected": rows[name].expected, "seen": runs} for name, runs in seen.items()}
        write(args.json_file, len(seen), exact, repeats=args.repeats, scripts=shown)


def run(script: Path, judgement: Judgement, root: Path, timeout_s: float) -> str | None:
    """What a script prints; None if it does not end in time."""
    text = script.read_text()
    for former, now in judgement.replace.items():
        text = text.replace(former, now)
    places = os.pathsep.join((str(root.absolute()), str(script.parent.absolute())))
    env = {
        **os.environ,
        **judgement.environment,
        "DRAFTPICK": str(root.absolute()),
        "PYTHONPATH": places,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with tempfile.TemporaryDirectory(prefix="draftpick-field-") as folder:
        copy = Path(folder) / script.name
        copy.write_text(text)
        try:
            done = subprocess.run(
                [sys.executable, str(copy if judgement.replace else script.absolute())],
                cwd=root, env=env, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
