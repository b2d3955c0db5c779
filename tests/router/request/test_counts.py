"""The request path costs no more than is written down (`python -m tests.bench.counts`)."""

import json
import subprocess
import sys

from tests.bench.counts import FILE

_TOLERANCE = 0.05


def test_a_request_and_a_chunk_cost_no_more_than_before() -> None:
    # In a process of its own: its clock is not that of threads that other tests left.
    command = [sys.executable, "-m", "tests.bench.counts", "--dry-run"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    known = json.loads(FILE.read_text())
    assert known.keys() == found.keys()
    dearer = {name: (value, known[name]) for name, value in found.items() if value > (1 + _TOLERANCE) * known[name]}
    assert not dearer, f"more than in tests/bench/counts.json (now, then): {dearer}"
    cheaper = {name: (value, known[name]) for name, value in found.items() if value < 0.75 * known[name]}
    assert not cheaper, f"less: write it down with `python -m tests.bench.counts` (now, then): {cheaper}"
