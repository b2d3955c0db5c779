"""The health signal of docs/extending.md: its suspects get no request, and the explanation says why."""

import pytest

from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.types import Attempt, Decision, Outcome
from tests.fleet import CHAT, FAST, StartRouter, asked

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_arm_with_late_first_tokens_gets_no_request(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": FAST}, policy=FixedPolicy(("a", "b"), "a"))
    signal = app.parts.health_signals[-1]
    observe = signal.on_attempt_end  # type: ignore[attr-defined]
    assert observe in app.parts.attempts._observers.values()
    assert (await app.post()).headers["x-draftpick-arm"] == "a"
    assert not signal.suspects
    decision = Decision("a", 1.0, {"a": 1.0, "b": 0.0}, "p")
    for _ in range(20):
        observe(Attempt("r", 1, CHAT, False, {}, None, decision, Outcome("ok", ttft_s=60.0), {}))
    assert signal.suspects == {"a"}
    assert (await app.post()).headers["x-draftpick-arm"] == "b"
    told = (await app.client.post("/v1/route/explain", json=asked())).json()
    assert told["arms"][0]["ineligible_reason"] == signal.reason == "slow_first_token"
