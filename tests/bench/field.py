"""Reports from the field as scripts: `python -m tests.bench.field --scripts FOLDER ... --json-file FILE`.

Each script of the folders tries one report on the product and prints lines that begin with PASS or FAIL. It is run in
turn, with the product's own interpreter, as often as `--repeats` says. It passes if every run ended in time, had a line
that begins with PASS and none that begins with FAIL. Scripts that print neither are counted as `unjudged`, apart from
both. `--root`: folder to run in, whose modules the scripts import; default: this checkout.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.evaluation.evaluate import Interval

_VERDICT = re.compile(r"^\W*(PASS|FAIL)\b", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", type=Path, nargs="+", required=True, help="folders of scripts, or scripts")
    parser.add_argument("--skip", nargs="*", default=(), help="names of scripts that are no reports, such as a harness")
    parser.add_argument("--root", type=Path, default=Path(), help="folder to run in")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=150.0, help="seconds of a run")
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    scripts = [one for path in args.scripts for one in (sorted(path.glob("[0-9ch]*.py")) if path.is_dir() else [path])]
    scripts = [script for script in scripts if script.stem not in args.skip]
    seen: dict[str, list[str]] = {script.stem: [] for script in scripts}
    with progress_bar() as bar:
        row = bar.add_task("running", total=args.repeats * len(scripts))
        for _ in range(args.repeats):
            for script in scripts:
                seen[script.stem].append(run(script, args.root, args.timeout))
                bar.advance(row)
    outcomes = {name: {"expected": "pass", "seen": runs} for name, runs in seen.items()}
    for name, runs in seen.items():
        out.print(f"{name:44} {', '.join(runs)}")
    passed = sum(set(runs) == {"pass"} for runs in seen.values())
    unjudged = sum(set(runs) == {"unjudged"} for runs in seen.values())
    share = passed / max(len(seen) - unjudged, 1)
    out.print(f"{passed} of {len(seen)} pass, {unjudged} print no verdict")
    if args.json_file:
        figures = {"passed_share": share, "passed": passed, "unjudged": unjudged}
        exact = {name: Interval(value, value, value) for name, value in figures.items()}
        write(args.json_file, len(seen), exact, repeats=args.repeats, scripts=outcomes)


def run(script: Path, root: Path, timeout_s: float) -> str:
    """Run a script; return `pass`, `fail`, `unjudged`, or `timeout`."""
    env = {**os.environ, "DRAFTPICK": str(root.absolute()), "PYTHONPATH": str(root.absolute())}
    try:
        done = subprocess.run(
            [sys.executable, str(script.absolute())],
            cwd=root, env=env, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "timeout"
    return judge(_VERDICT.findall(done.stdout), done.returncode)


def judge(verdicts: Sequence[str], exit_code: int) -> str:
    """The outcome of a run from the verdicts that it printed."""
    if "FAIL" in verdicts:
        return "fail"
    if "PASS" in verdicts:
        return "pass"
    return "unjudged" if exit_code == 0 else "fail"


if __name__ == "__main__":
    main()
