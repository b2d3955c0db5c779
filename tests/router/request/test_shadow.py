"""A shadow is the same request on another arm."""

from draftpick.router.openai_request import Request
from draftpick.router.request.shadow import shadow_attempt
from draftpick.router.request.state import ClientRequest, RequestState
from draftpick.router.types import Decision


def test_a_shadow_keeps_the_prefix_that_its_replica_will_have_read() -> None:
    request = ClientRequest(
        Request("/v1/completions", b"{}", ""), "POST", "/v1/completions", [], "own", "r", 0.0, deadline=1.0,
        count_tokens=print,
    )  # fmt: skip
    state = RequestState(request, prefix=(1, 2), decision=Decision("a", 0.9, {"a": 0.9, "b": 0.1}, "p"))
    shadow = shadow_attempt(state, "b")
    assert shadow.prefix == (1, 2)
    assert (shadow.decision.arm, shadow.decision.reason, shadow.decision.probabilities) == (
        "b",
        "shadow",
        {"a": 0, "b": 1},
    )
    assert (shadow.client_request.deadline, shadow.client_request.count_tokens) == (None, None)
    assert not shadow.tried
