"""What a router counts of its requests and of its parts, and the page that shows it."""

import asyncio
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from draftpick.router.monitoring import gauges
from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.telemetry import metrics
from draftpick.router.telemetry.metrics import REASONS, STATUSES, Metrics
from draftpick.router.types import Attempt, Decision, Outcome
from tests.fleet import BREAKS, CHAT, FAILS, FAST, HANGS, REFUSING_URL, SLOW, Routed, StartRouter, asked, until
from tests.router.request.test_dispatcher import NeedsContext

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARMS = ("a", "b")
E2E = next(metric for metric in metrics.METRICS if metric.name == "draftpick_e2e_seconds")


def values(families: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels, that of the router left out."""
    return {
        (s.name, *(value for name, value in s.labels.items() if name != "router")): s.value
        for family in families
        for s in family.samples
    }


async def page(app: Routed) -> dict[tuple[str, ...], float]:
    """What `/metrics` shows."""
    return values(text_string_to_metric_families((await app.client.get("/metrics")).text))


def decision(arm: str = "a", **fields: Any) -> Decision:
    return Decision(arm, 1.0, {"a": 0.5, "b": 0.5}, "p", **fields)


durations = st.none() | st.floats(0, 1e4)
outcomes = st.builds(
    Outcome,
    st.sampled_from(STATUSES),
    ttft_s=durations,
    tpot_s=st.none() | st.floats(-1, 1e3),
    e2e_s=durations,
    prompt_tokens=st.none() | st.integers(0, 10**5),
    output_tokens=st.none() | st.integers(0, 10**5),
    acceptance_length=st.none() | st.floats(1, 20),
    overhead_s=durations,
    queue_s=durations,
)
decisions = st.builds(
    decision,
    st.sampled_from(ARMS),
    reason=st.sampled_from(REASONS),
    explore=st.sampled_from([0.0, 0.1]),
    predicted_tpot_s=st.none() | st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)),
    shift=st.none() | st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)


def ended(made: Decision, outcome: Outcome, number: int = 1) -> Attempt:
    return Attempt("r", number, "/v1/completions", False, {}, None, made, outcome, {})


# --- what is fed ---


@given(st.lists(st.tuples(st.integers(1, 3), decisions, outcomes), max_size=30))
async def test_every_attempt_is_counted_once(attempts: list[tuple[int, Decision, Outcome]]) -> None:
    counted = Metrics(ARMS, "a")
    for number, made, outcome in attempts:
        counted.on_attempt_end(ended(made, outcome, number))
    found = values(counted.collect())
    for arm in ARMS:
        for status in STATUSES:
            of = [made.reason == "shadow" for _, made, o in attempts if (made.arm, o.status) == (arm, status)]
            assert found["draftpick_shadow_attempts_total", arm, status] == sum(of)
            assert found["draftpick_attempts_total", arm, status] == len(of) - sum(of)
        for reason in REASONS:
            taken = sum((made.arm, made.reason) == (arm, reason) for _, made, _ in attempts)
            assert found["draftpick_decisions_total", arm, reason] == taken
        answered = [o for _, made, o in attempts if made.arm == arm and made.reason != "shadow" and o.status == "ok"]
        assert found["draftpick_output_tokens_total", arm] == sum(o.output_tokens or 0 for o in answered)
        whole = [o.e2e_s for o in answered if o.e2e_s is not None]
        assert found["draftpick_e2e_seconds_count", arm] == len(whole)
        assert found["draftpick_e2e_seconds_sum", arm] == pytest.approx(sum(whole))
        for bound in E2E.buckets:
            assert found["draftpick_e2e_seconds_bucket", arm, str(bound)] == sum(v <= bound for v in whole)


async def test_predicted_times_are_those_of_the_choice() -> None:
    """By the prediction with its correction; against the engine without a drafter."""
    counted = Metrics(ARMS, "b")
    outcome = Outcome("ok", tpot_s=0.03, ttft_s=0.1, e2e_s=3.1, output_tokens=101)
    shift = [0.6931471805599453, 0.0]
    counted.on_attempt_end(ended(decision("a", predicted_tpot_s=[0.01, 0.04], shift=shift), outcome, 1))
    counted.on_attempt_end(ended(decision("b", predicted_tpot_s=[0.01, 0.04]), outcome, 1))
    found = values(counted.collect())
    assert found["draftpick_tpot_prediction_ratio_sum", "a"] == pytest.approx(1.5)
    assert found["draftpick_decoding_seconds_total", "a"] == pytest.approx(3.0)
    assert found["draftpick_decoding_plain_seconds_total", "a"] == pytest.approx(4.0)
    assert found["draftpick_decoding_plain_seconds_total", "b"] == pytest.approx(3.0)  # as it was measured


async def test_times_that_tell_nothing_are_left_out() -> None:
    counted = Metrics(ARMS, "a")
    rest = Outcome("ok", tpot_s=0.03, ttft_s=0.1, e2e_s=3.1, overhead_s=0.2)
    counted.on_attempt_end(ended(decision(reason="continued", predicted_tpot_s=[0.01, 0.01]), rest, 2))
    counted.on_attempt_end(ended(decision(reason="shadow", predicted_tpot_s=[0.01, 0.01]), rest, 1))
    counted.on_attempt_end(ended(decision(), Outcome("ok", tpot_s=-0.001, e2e_s=0.1), 1))
    found = values(counted.collect())
    for name in ("ttft_seconds", "tpot_seconds", "tpot_prediction_ratio"):
        assert found[f"draftpick_{name}_count", "a"] == 0
    assert found["draftpick_e2e_seconds_count", "a"] == 2
    assert found["draftpick_router_overhead_seconds_count",] == 0


async def test_exploration_is_a_draw_of_an_engine_that_is_not_the_likeliest() -> None:
    counted = Metrics(ARMS, "a")
    for arm, explore in (("a", 0.1), ("b", 0.1), ("b", 0.0)):
        probabilities = {"a": 0.9, "b": 0.1}
        made = Decision(arm, probabilities[arm], probabilities, "p", explore=explore)
        counted.on_attempt_end(ended(made, Outcome("ok"), 1))
    found = values(counted.collect())
    assert (found["draftpick_explored_total", "a"], found["draftpick_explored_total", "b"]) == (0, 1)


async def test_buckets_rise_and_names_follow_the_conventions() -> None:
    all_metrics = (*metrics.METRICS, *gauges.METRICS)
    assert len({m.name for m in all_metrics}) == len(all_metrics)
    for described in all_metrics:
        assert described.name.startswith("draftpick_")
        assert (described.kind == "counter") == described.name.endswith("_total")
        assert (described.kind == "histogram") == bool(described.buckets)
        assert list(described.buckets) == sorted(set(described.buckets))
        assert described.help.endswith(".")


# --- as a router shows it ---


async def test_requests_attempts_and_tokens_are_on_the_page(router_app: StartRouter) -> None:
    app = await router_app({"a": FAILS, "b": FAST})
    for stream in (True, False):
        assert (await app.post(stream=stream, max_tokens=8)).status_code == 200
    found = await page(app)
    assert found["draftpick_attempts_total", "a", "engine_error"] == 2
    assert found["draftpick_attempts_total", "b", "ok"] == 2
    assert found["draftpick_requests_total", "b", "ok"] == 2
    assert found["draftpick_requests_total", "a", "engine_error"] == 0
    assert found["draftpick_output_tokens_total", "b"] == 16
    assert found["draftpick_ttft_seconds_count", "b"] == 2
    assert found["draftpick_e2e_seconds_bucket", "b", "+Inf"] == 2
    assert found["draftpick_router_overhead_seconds_count",] == 2
    assert found["draftpick_records_dropped_total",] == 0


async def test_what_clients_are_refused_is_counted_by_code(router_app: StartRouter) -> None:
    app = await router_app({"a": REFUSING_URL}, wait_for_engine_s=0)
    await app.post()
    await app.client.post(CHAT, content=b"{")
    await app.post(headers={"x-draftpick-arm": "nobody"})
    found = await page(app)
    errors = {labels[1:]: n for labels, n in found.items() if labels[0] == "draftpick_errors_total"}
    assert errors[("engine_unavailable", "502")] == 1
    assert errors[("unknown_engine", "400")] == 1
    assert sum(errors.values()) == 3
    assert found["draftpick_requests_total", "a", "engine_error"] == 1
    assert found["draftpick_ready",] == 0


async def test_a_broken_stream_and_a_client_that_leaves(router_app: StartRouter) -> None:
    app = await router_app({"a": BREAKS, "b": SLOW})
    await app.post(stream=True)
    with pytest.raises(httpx.ReadTimeout):
        await app.client.post(CHAT, json=asked(), headers={"x-draftpick-arm": "b"}, timeout=0.1)
    await until(lambda: app.num_attempts == 2)
    found = await page(app)
    assert found["draftpick_requests_total", "a", "broken"] == 1
    assert found["draftpick_requests_total", "b", "cancelled"] == 1
    assert found["draftpick_decisions_total", "b", "pinned"] == 1


async def test_what_waits_and_what_is_full(router_app: StartRouter) -> None:
    limits = {"max_in_flight": 1, "max_queued": 1, "queue_timeout_s": 5.0}
    app = await router_app({"a": HANGS}, limits=limits)
    waiting = [asyncio.create_task(app.post()) for _ in range(3)]
    await until(lambda: any(task.done() for task in waiting))
    found = await page(app)
    assert found["draftpick_requests_in_flight",] == 1
    assert found["draftpick_requests_queued",] == 1
    assert found["draftpick_queue_refused_total",] == 1
    assert found["draftpick_arm_requests_in_flight", "a"] == 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_policies_fallbacks_and_events(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": FAST}, policy=NeedsContext(), explore=0.2)
    await app.post()  # without features: the policy needs some
    app.parts.active_policies.activate(FixedPolicy(ARMS, "a"), NeedsContext(), 0.1)
    app.parts.active_policies.emit_for_arm("arm_quarantined", "engine b is lost", "b")
    found = await page(app)
    assert found["draftpick_fallbacks_total", "no_context"] == 1
    assert found["draftpick_decisions_total", "a", "fallback"] == 1
    assert found["draftpick_policy_info", "fixed:a", "active"] == 1
    assert found["draftpick_policy_info", NeedsContext().id, "candidate"] == 1
    assert found["draftpick_candidate_share_ratio",] == 0.1
    assert found["draftpick_explore_ratio",] == 0.2
    assert found["draftpick_events_total", "arm_quarantined"] == 1
    assert found["draftpick_arm_drafts", "b", "ok"] == 1
    assert found["draftpick_replicas", "a", "closed"] == 1
