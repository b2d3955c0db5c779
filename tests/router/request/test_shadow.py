"""A shadow is the same request on another arm."""

import numpy as np
import pytest

from draftpick.router.config.sections import ShadowConfig
from draftpick.router.openai_request import Request, parse
from draftpick.router.request.shadow import Shadow, shadow_attempt
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


@pytest.mark.parametrize(
    ("path", "body", "repeated"),
    [
        ("/v1/messages", b"{}", True),
        ("/v1/responses", b"{}", True),
        ("/v1/responses", b'{"previous_response_id":"resp_1"}', False),
        ("/v1/responses/resp_1/cancel", b"", False),
        ("/tokenize", b"{}", False),
    ],
)
def test_only_what_generates_text_without_state_is_repeated(path: str, body: bytes, repeated: bool) -> None:
    shadow = Shadow(ShadowConfig(sample_rate=1.0), lambda: 0, lambda: ["a", "b"], np.random.default_rng(0))
    request = ClientRequest(parse(path, body), "POST", path, [], "own", "r", 0.0)
    shadow.enqueue(RequestState(request, decision=Decision("a", 1.0, {"a": 1.0, "b": 0.0}, "p")))
    assert shadow._queue.qsize() == repeated
