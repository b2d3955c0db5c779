"""Whose fault an ending is: the table."""

import pytest

from draftpick.engines.errors import (
    AnswerTooLong,
    ConnectionLost,
    ConnectTimeout,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    EngineUnreachable,
    RequestNotSendable,
    ResourcesExhausted,
    StreamInterrupted,
)
from draftpick.router.request.verdict import judge_broken_event, judge_error, judge_status
from draftpick.router.types import Outcome


@pytest.mark.parametrize(
    ("status", "fault", "retry", "healthy", "doubtful"),
    [
        (200, None, False, True, False),
        (307, None, False, True, False),
        (399, None, False, True, False),
        (400, "client", False, True, False),
        (401, "client", False, True, False),
        (404, "client", False, True, False),
        (413, "client", False, True, False),
        (422, "client", False, True, False),
        (429, "engine", True, False, False),
        (500, "engine", True, None, True),
        (501, "client", False, True, False),
        (502, "engine", True, False, False),
        (503, "engine", True, False, False),
        (529, "engine", True, False, False),
    ],
)
def test_an_answer_is_judged_by_its_status(
    status: int, fault: str | None, retry: bool, healthy: bool | None, doubtful: bool
) -> None:
    made = judge_status(status)
    assert (made.fault, made.retry, made.healthy, made.doubtful) == (fault, retry, healthy, doubtful)


@pytest.mark.parametrize(
    ("error", "given", "status", "fault", "retry", "healthy"),
    [
        (EngineUnavailable(), "", "engine_error", "engine", True, False),
        (ConnectionLost(), "", "engine_error", "engine", True, False),
        (EngineUnreachable(), "", "engine_error", "network", True, None),
        (ConnectTimeout(), "", "timeout", "network", True, False),
        (ConnectTimeout(), "whole", "timeout", "network", True, False),
        (EngineTimeout(), "", "timeout", "engine", True, False),
        (EngineTimeout(), "hasty", "timeout", "client", True, None),
        (EngineTimeout(), "whole", "timeout", "engine", False, False),
        (EngineTimeout(), "whole alive", "timeout", "client", False, None),
        (EngineTimeout(), "whole alive slow", "timeout", "engine", True, False),
        (EngineTimeout(), "whole hasty slow", "timeout", "client", True, None),
        (EngineTimeout(), "alive", "timeout", "engine", True, False),
        (StreamInterrupted(), "", "broken", "engine", True, False),
        (AnswerTooLong(), "", "broken", "client", False, None),
        (AnswerTooLong(), "slow", "broken", "engine", True, False),
        (RequestNotSendable(), "", "client_error", "client", False, None),
        (ResourcesExhausted(), "", "router_error", "router", False, None),
    ],
)
def test_an_error_is_judged_by_its_kind_and_the_time_it_had(
    error: EngineError, given: str, status: str, fault: str, retry: bool, healthy: bool | None
) -> None:
    words = {name: name in given for name in ("hasty", "alive", "slow")}
    made = judge_error(error, stream="whole" not in given, **words)
    assert (made.status, made.fault, made.retry, made.healthy) == (status, fault, retry, healthy)
    assert made.unreachable == isinstance(error, EngineUnreachable)


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [
        (Outcome("ok"), False),
        (Outcome("timeout", fault="engine"), True),
        (Outcome("engine_error", fault="network"), True),
        (Outcome("timeout", fault="client"), False),
        (Outcome("router_error", fault="router"), False),
        (Outcome("broken"), True),
        (Outcome("client_error"), False),
    ],
)
def test_an_attempt_fails_by_the_fault_of_the_engine_or_the_network(outcome: Outcome, failed: bool) -> None:
    assert outcome.failed is failed


def test_an_error_event_after_content_may_be_the_requests_fault() -> None:
    assert judge_broken_event(400).fault == "client"
    assert judge_broken_event(500).healthy is False
