"""What the chaos run says of its own clients: why a request failed, and whether a hostile client moved the others."""

from pathlib import Path

import numpy as np
import pytest

from draftpick.router.records import encode
from draftpick.router.types import Decision, Outcome, Record
from tests.load.chaos import Story, fleet, judge, routing_shift
from tests.load.clients import ClientResult


def result(number: int, arm: str = "a", **changes: object) -> ClientResult:
    made = ClientResult(
        f"r{number}", True, float(number), number + 0.5, 200, began=True, done=True, attempts=1, arm=arm
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def record(number: int, **changes: object) -> Record:
    fields = {
        "request_id": f"own-{number}", "attempt": 1, "time": float(number), "path": "/v1/chat/completions",
        "stream": True, "sampling": {}, "in_flight": {}, "context": None,
        "decision": Decision("a", 1.0, {"a": 1.0}, "p"), "outcome": Outcome("ok", 200),
        "client_request_id": f"r{number}",
    }  # fmt: skip
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


def test_each_failure_is_counted_with_its_reason(tmp_path: Path) -> None:
    results = [
        result(0),
        result(1, done=False, began=False, status=503, error="no_engine", attempts=0),
        result(20, done=False, began=False, error="ServerDisconnectedError", attempts=0),
        result(3, done=False, error="cut"),
        result(4, slow=True, attempts=2),
    ]
    (tmp_path / "records-1.jsonl").write_bytes(b"".join(map(encode, [record(0), record(3), record(4)])))
    story = Story(done={"kill_router": 20.2}, over={"kill_router": 21.0})
    figures, _ = judge(results, tmp_path, story, [{"records": {"dropped": 7}}])
    assert figures["failed_before_first_byte"] == figures["failed_before_first_byte/no_engine"] == 1
    assert figures["cut_by_killed_router"] == figures["failed_before_first_byte/killed_router"] == 1
    assert figures["broken_after_first_byte"] == figures["broken_after_first_byte/cut"] == 1
    assert figures["slow_readers"] == figures["retried"] == figures["unrecorded_attempts"] == 1
    assert (figures["answered"], figures["records_dropped_and_counted"]) == (2, 7)


def test_a_pool_is_among_the_mock_engines(tmp_path: Path) -> None:
    made = fleet(tmp_path / "records", tmp_path, real=False)
    assert {"pool/none", "pool/copy", "pool/head"} < set(made.arms)


@pytest.mark.parametrize("moved", [False, True])
def test_routing_that_a_hostile_client_moves_is_not_by_chance(moved: bool) -> None:
    rng, turns = np.random.default_rng(0), [(float(at), at + 49.9) for at in range(0, 4000, 100)]
    share = {True: 0.7 if moved else 0.5, False: 0.5}
    results = [result(i, "ab"[int(rng.random() > share[i % 100 < 50])]) for i in range(4000)]
    story = Story(done={"hang": 1000.0}, over={"hang": 1500.0})
    shift = routing_shift(results, story, turns)
    assert shift["arm_share_requests"] == pytest.approx(3497, abs=5)
    assert (shift["arm_share_p_value"] < 1e-6) == moved
    assert (shift["arm_share_difference"] > 0.12) == moved
