"""The request path costs no more than is written down (`python -m tests.bench.counts`)."""

import json

from tests.bench.counts import FILE, counts

_TOLERANCE = 0.05


def test_a_request_and_a_chunk_cost_no_more_than_before() -> None:
    known, found = json.loads(FILE.read_text()), counts()
    assert known.keys() == found.keys()
    dearer = {name: (value, known[name]) for name, value in found.items() if value > (1 + _TOLERANCE) * known[name]}
    assert not dearer, f"more than in tests/bench/counts.json (now, then): {dearer}"
    cheaper = {name: (value, known[name]) for name, value in found.items() if value < 0.75 * known[name]}
    assert not cheaper, f"less: write it down with `python -m tests.bench.counts` (now, then): {cheaper}"
