"""Which replicas may serve a request next, if the chosen one fails."""

from types import SimpleNamespace
from typing import Any

import pytest

from draftpick.engines.replicas import ReplicaTable
from draftpick.router.openai_request import Request
from draftpick.router.request.fallbacks import fallbacks
from draftpick.router.request.state import ClientRequest, RequestState
from draftpick.router.types import Decision

PROBABILITIES = {"a": 0.6, "b": 0.1, "c": 0.3}


def found(
    most: int = 9,
    *,
    times: list[float] | None = None,
    replicas: int = 1,
    tried: str = "a0",
    unable: str = "",
    suspects: str = "",
) -> list[str]:
    """Addresses of the fallbacks of a request that was sent to `a0`; the replicas of `a` are `a0`, `a1`, ..."""
    table = ReplicaTable(list("abc"))
    for arm in table.arms:
        table.update(arm, [f"{arm}{i}" for i in range(replicas)])
    request = ClientRequest(Request("/v1/completions", b"", ""), "POST", "/v1/completions", [], "id", "id", 0.0)
    state = RequestState(request, decision=Decision("a", 0.6, PROBABILITIES, "p", predicted_tpot_s=times))
    state.tried = {one for there in table.by_arm.values() for one in there if one.url in tried.split()}
    state.unable = dict.fromkeys(unable, "takes no images")
    decide: Any = SimpleNamespace(healthy=lambda arms: ([arm for arm in arms if arm not in suspects], None))
    made = fallbacks(state, table, decide, most)
    assert all(replica.url.startswith(engine) for engine, replica in made)
    assert len(state.tried) == len(tried.split())
    return [replica.url for _, replica in made]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["c0", "b0"]),  # by probability
        ({"times": [3.0, 1.0, 2.0]}, ["b0", "c0"]),  # by time, where it is predicted
        ({"most": 1}, ["c0"]),
        ({"most": 0}, []),
        ({"replicas": 2}, ["a1", "c0", "b0"]),  # another replica of the same engine comes first
        ({"unable": "c"}, ["b0"]),
        ({"suspects": "c"}, ["b0"]),
        ({"tried": "a0 c0"}, ["b0"]),
        ({"tried": "a0 b0 c0"}, []),
    ],
    ids=str,
)
def test_fallbacks_are_other_replicas_the_best_first(given: dict[str, Any], expected: list[str]) -> None:
    assert found(**given) == expected
