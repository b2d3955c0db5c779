"""What a router remembers of its last attempts: bounded, counted once, and told apart by arm and kind."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.telemetry.recent_requests import KEPT, RecentRequests, WindowTotals, total
from draftpick.router.types import Attempt, Decision, Outcome, Status
from tests.leaks import PROMPT

ARMS = ("plain", "ngram", "math")
STATUSES: tuple[Status, ...] = ("ok", "client_error", "engine_error", "timeout", "broken", "cancelled")
ANSWERED = Outcome("ok", 200, ttft_s=0.1, tpot_s=0.02, e2e_s=1.1, output_tokens=51, acceptance_length=2.0)


def decided(arm: str = "math", reason: Any = "policy", **more: Any) -> Decision:
    shares = {name: 0.9 if name == "math" else 0.05 for name in ARMS}
    told = {"predicted_tpot_s": [0.03, 0.025, 0.016], **more}
    return Decision(arm, shares[arm], shares, "tau", reason, **told)


def attempt(
    decision: Decision, outcome: Outcome, cluster: tuple[str, int] | None = ("tau", 1), name: str = "r"
) -> Attempt:
    return Attempt(name, 1, "/v1/chat/completions", True, {}, None, decision, outcome, {}, 1.0, cluster)


def seen(*pairs: tuple[Decision, Outcome]) -> RecentRequests:
    recent = RecentRequests("plain")
    for decision, outcome in pairs:
        recent.on_attempt_end(attempt(decision, outcome))
    return recent


def test_an_answer_is_shown_with_what_was_predicted_of_every_arm() -> None:
    row = seen((decided(residual=[0.0, 0.0, math.log(2)]), ANSWERED)).last(10)[0].row
    assert row["predicted_decode_s"] == pytest.approx({"plain": 1.5, "ngram": 1.25, "math": 1.6})
    assert row["decode_s"] == pytest.approx(1.0)
    assert {row[name] for name in ("arm", "request_id", "status", "reason")} == {"math", "r", "ok", "policy"}
    assert (row["tried_out"], row["attempt"]) == (False, 1)


def test_what_was_tried_out_is_said() -> None:
    assert seen((decided("ngram"), ANSWERED)).last(1)[0].row["tried_out"]
    assert not seen((decided("ngram", "pinned"), ANSWERED)).last(1)[0].row["tried_out"]


def test_savings_are_against_the_plain_engine_and_plain_itself_saves_nothing() -> None:
    sums = seen((decided(), ANSWERED), (decided("plain"), ANSWERED)).sums("tau")
    assert sums[("math", 1)].means()["saved_s"] == pytest.approx(0.5)
    assert sums[("math", 1)].means()["saved_share"] == pytest.approx(1 / 3)
    assert sums[("math", 1)].means()["measured_over_predicted"] == pytest.approx(1.0 / 0.8)
    assert sums[("plain", 1)].means()["saved_s"] == 0.0
    assert total(sums.values()).means()["saved_share"] == pytest.approx(0.5 / 2.5)


def test_acceptance_is_by_step_and_speed_by_token() -> None:
    short = Outcome("ok", 200, ttft_s=0.1, tpot_s=0.01, e2e_s=0.2, output_tokens=11, acceptance_length=5.0)
    row = total(seen((decided(), ANSWERED), (decided(), short)).sums("tau").values()).means()
    assert row["acceptance_length"] == pytest.approx(60 / 27)
    assert row["tpot_s"] == pytest.approx(1.1 / 60)


@pytest.mark.parametrize("reason", ["resumed", "pinned", "fallback"])
def test_only_draws_of_the_policy_are_held_to_its_forecast(reason: str) -> None:
    row = total(seen((decided(reason=reason), ANSWERED)).sums("tau").values()).means()
    assert (row["attempts"], row["saved_s"], row["measured_over_predicted"]) == (1, None, None)


def test_shadows_are_shown_and_not_counted() -> None:
    recent = seen((decided(reason="shadow"), ANSWERED))
    assert recent.last(1)[0].row["reason"] == "shadow"
    assert recent.sums("tau") == {}


def test_kinds_of_another_policy_are_none() -> None:
    recent = RecentRequests("plain")
    for kind in (("tau", 3), ("old", 3), None):
        recent.on_attempt_end(attempt(decided(), ANSWERED, kind))
    assert {key: sums.attempts for key, sums in recent.sums("tau").items()} == {("math", 3): 1, ("math", None): 2}


def test_an_answer_of_one_token_tells_no_time() -> None:
    one = Outcome("ok", 200, ttft_s=0.1, e2e_s=0.1, output_tokens=1)
    recent = seen((decided(), one))
    assert recent.last(1)[0].row["predicted_decode_s"] is None
    assert total(recent.sums("tau").values()).means()["tpot_s"] is None


def test_nothing_seen_is_nothing_known() -> None:
    recent = RecentRequests("plain")
    assert (recent.last(5), recent.sums("tau")) == ([], {})
    assert set(WindowTotals().means().values()) == {0, None}


outcomes = st.builds(
    Outcome,
    st.sampled_from(STATUSES),
    http_status=st.none(),
    ttft_s=st.none() | st.floats(0, 10),
    tpot_s=st.none() | st.floats(0, 1),
    output_tokens=st.none() | st.integers(0, 100),
    acceptance_length=st.none() | st.floats(1, 8),
)
decisions = st.builds(
    decided,
    st.sampled_from(ARMS),
    st.sampled_from(("policy", "resumed", "shadow", "pinned", "fallback")),
    predicted_tpot_s=st.none() | st.just([0.03, 0.02, 0.01]),
    residual=st.none() | st.just([0.1, 0.0, -0.1]),
)


@given(st.lists(st.tuples(decisions, outcomes), max_size=30), st.lists(st.integers(0, 30)))
def test_every_attempt_counts_once_whenever_it_is_processed(
    pairs: list[tuple[Decision, Outcome]], looks: list[int]
) -> None:
    recent = RecentRequests("plain")
    for i, (decision, outcome) in enumerate(pairs):
        if i in looks:
            recent.sums("tau")
        recent.on_attempt_end(attempt(decision, outcome, name=str(i)))
    assert [seen.row["request_id"] for seen in recent.last(KEPT)] == [str(i) for i in range(len(pairs))][::-1]
    counted = [decision for decision, _ in pairs if decision.reason != "shadow"]
    sums = recent.sums("tau")
    assert sum(one.attempts for one in sums.values()) == len(counted)
    assert all(one.attempts == sum(d.arm == arm for d in counted) for (arm, _), one in sums.items())
    assert total(sums.values()).output_tokens == sum(o.output_tokens or 0 for d, o in pairs if d.reason != "shadow")


def test_speed_is_of_the_last_minute_or_of_what_is_remembered_of_it() -> None:
    now_s = [0.0]
    recent = RecentRequests("plain", clock=lambda: now_s[0])
    assert (recent.tokens_per_s(), recent.span_s()) == ({}, 0.0)
    for second in range(120):  # 51 tokens each
        now_s[0] = float(second)
        recent.on_attempt_end(attempt(decided("math" if second % 2 else "plain"), ANSWERED))
    assert recent.span_s() == 119.0
    assert recent.tokens_per_s() == pytest.approx({"math": 25.5, "plain": 25.5}, rel=0.05)
    for i in range(KEPT):
        now_s[0] = 120.0 + i / 50
        recent.on_attempt_end(attempt(decided(), ANSWERED))
    assert recent.tokens_per_s() == pytest.approx({"math": 51 * 50}, rel=0.01)
    now_s[0] += 3600.0
    assert recent.tokens_per_s() == {}


def test_it_is_bounded_and_holds_no_text() -> None:
    recent = RecentRequests("plain")
    for i in range(3 * KEPT):
        recent.on_attempt_end(attempt(decided(), ANSWERED, name=str(i)))
        if i % 700 == 0:
            recent.processed()
    shown = recent.last(10 * KEPT)
    assert [seen.row["request_id"] for seen in shown] == [str(i) for i in range(2 * KEPT, 3 * KEPT)][::-1]
    assert PROMPT not in repr(recent.__dict__)
