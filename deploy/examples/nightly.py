"""Retraining from the router's records, for a scheduler: local, or as a Ray Job on the cluster with the records.

    python -m draftpick.deploy.examples.nightly --records records --registry registry
    python -m draftpick.deploy.examples.nightly --records s3://fleet/records --registry /shared/policies --cluster
    http://HEAD:8265

The fleet has `router: {policy: registry, exploration: {rate: 0.03}, records: {dir: records}}` and follows the
registry. Further options are those of `draftpick retrain`. Exit codes: 0 done, even if the candidate was rejected;
1 failed, retry later; 2 wrong usage, do not retry.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DRAFTPICK = Path(sys.executable).with_name("draftpick")
REFUSED = 3
"""The exit code of `draftpick retrain` for a candidate that failed its gate."""


@dataclass(frozen=True, slots=True)
class Retrained:
    """Result of a retraining. `report`: `action`, `id`, `reason` and the gate's checks; empty after a failure."""

    code: int
    report: dict[str, Any]

    def in_words(self) -> str:
        """One line for a log."""
        match self.report.get("action"):
            case "promoted":
                return f"{self.report['id']} is active: it is the first policy of its registry"
            case "candidate":
                return f"{self.report['id']} is a candidate: `draftpick retrain --watch` rolls it out"
            case "refused":
                return f"{self.report['id']} is rejected, the active policy stays: {self.report['reason']}"
            case _:
                return f"failed with exit code {self.code}: see its output above"


def retrain(records: str, registry: str, cluster: str | None = None, more: Sequence[str] = ()) -> Retrained:
    """Run `draftpick retrain` once; its own messages go to stderr. `more`: further options of it."""
    places = ["--records", records, "--registry", registry]
    job = ["--submit", cluster] if cluster else []
    # A job's log is one stream: the report is one of its lines.
    run = subprocess.run([_DRAFTPICK, "retrain", *places, *job, *more, "--json"], stdout=subprocess.PIPE, text=True)
    told = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"action"')]
    return Retrained(run.returncode, told[-1] if told else {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", required=True, help="folder or URL of the router's records")
    parser.add_argument("--registry", required=True, help="folder of the registry that the router follows")
    parser.add_argument("--cluster", help="run it as a Ray Job there: http://HEAD:8265")
    args, more = parser.parse_known_args()
    done = retrain(args.records, args.registry, args.cluster, more)
    print(done.in_words())
    return 0 if done.code == REFUSED else done.code


if __name__ == "__main__":
    sys.exit(main())
