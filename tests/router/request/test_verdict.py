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
from draftpick.engines.reporting.report import Failure
from draftpick.router.request.verdict import (
    CANCELLED,
    NO_REPLICA,
    OK,
    RESUME_REJECTED,
    judge_broken_event,
    judge_error,
    judge_report,
    judge_status,
)
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
        (408, "engine", True, None, True),
        (409, "client", False, True, False),
        (413, "client", False, True, False),
        (421, "engine", True, None, True),
        (422, "client", False, True, False),
        (425, "engine", True, None, True),
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


@pytest.mark.parametrize(
    ("status", "error", "given", "expected"),
    [
        (None, None, "", ("ok", None, False, True)),
        (200, None, "", ("ok", None, False, True)),
        (404, None, "", ("client_error", "client", False, True)),
        (503, None, "", ("engine_error", "engine", True, False)),
        (None, "cancelled", "", ("cancelled", "client", False, None)),
        (None, "unreachable", "", ("engine_error", "network", True, None)),
        (None, "timeout", "", ("timeout", "engine", True, False)),
        (None, "timeout", "hasty", ("timeout", "client", True, None)),
        (None, "timeout", "whole", ("timeout", "engine", False, False)),
        (None, "timeout", "whole alive", ("timeout", "client", False, None)),
        (None, "timeout", "whole alive slow", ("timeout", "engine", True, False)),
        (None, "broken", "", ("broken", "engine", True, False)),
        (200, "broken", "", ("broken", "engine", True, False)),
        (399, "broken", "", ("broken", "engine", True, False)),
        (400, "broken", "", ("broken", "client", False, None)),
        (500, "broken", "", ("broken", "engine", True, False)),
    ],
)
def test_what_is_told_is_judged_as_what_is_seen(
    status: int | None, error: Failure | None, given: str, expected: tuple[str, str | None, bool, bool | None]
) -> None:
    words = {name: name in given for name in ("hasty", "alive", "slow")}
    made = judge_report(status, error, stream="whole" not in given, **words)
    assert (made.status, made.fault, made.retry, made.healthy) == expected
    assert made.unreachable is (error == "unreachable")


def test_only_what_another_engine_may_answer_is_tried_again() -> None:
    tried_again = {made.status: made.retry for made in (OK, CANCELLED, NO_REPLICA, RESUME_REJECTED)}
    assert tried_again == {"ok": False, "cancelled": False, "engine_error": True, "router_error": True}
    assert not any(made.unreachable or made.doubtful for made in (OK, CANCELLED, NO_REPLICA, RESUME_REJECTED))


def test_an_error_event_after_content_may_be_the_requests_fault() -> None:
    mine, its = judge_broken_event(400), judge_broken_event(500)
    assert (mine.status, mine.fault, mine.retry, mine.healthy) == ("broken", "client", False, None)
    assert (its.status, its.fault, its.retry, its.healthy) == ("broken", "engine", True, False)
