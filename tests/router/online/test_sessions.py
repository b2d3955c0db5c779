"""The memory of sessions: what a turn is worth, whose prefix is known, and who may displace whom."""

import math

import numpy as np
import pytest

from draftpick.engines.pool.report import DrafterReport
from draftpick.router.config.sections import SessionsConfig
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.features.lexical import stored_context
from draftpick.router.online.sessions import Session, Sessions
from draftpick.router.openai_request import Request
from draftpick.router.policies.base import DecisionInput
from draftpick.router.types import Accepted, Decision, Outcome
from tests.fleet import CHAT
from tests.router.request.test_pool import policy


def told(**tau: float) -> Outcome:
    drafters = {name: DrafterReport(steps=9, scored=60, tau=value) for name, value in tau.items()}
    return Outcome("ok", output_tokens=60, drafters=drafters)


def request(messages: int = 1, size: int = 400) -> Request:
    return Request(CHAT, b"x" * size, "", turns=messages)


def test_a_turn_is_worth_a_bounded_number_of_drafts_and_the_last_most() -> None:
    session = Session("s")
    for _ in range(50):
        session.observe(request(), "u", "pool/math", told(math=4.0))
    assert session.accepted["math"].weight == pytest.approx(16.0)
    session.observe(request(), "u", "pool/math", told(math=1.0))
    assert math.exp(session.accepted["math"].log_tau) == pytest.approx(2.0)
    session.observe(request(), "u", "plain", Outcome("ok", output_tokens=2, acceptance_length=3.0))
    session.observe(
        Request(CHAT, b"", "", num_answers=2), "u", "x", Outcome("ok", output_tokens=60, acceptance_length=3.0)
    )
    assert session.accepted.keys() == {"math"}


def test_only_a_longer_conversation_has_the_prefix_of_the_last_turn() -> None:
    session = Session("s")
    assert session.cached_prefix(request(), {"v": 7}) == {"v": 7}
    session.observe(request(3, 400), "u", "a", Outcome("ok", output_tokens=25))
    assert session.cached_prefix(request(3), {}) == {}  # again, or another one that is as long
    assert session.cached_prefix(request(5, 450), {"v": 7}) == {"v": 7, "u": 450}
    assert session.cached_prefix(request(5, 900), {"u": 100}) == {"u": 500}
    assert session.cached_prefix(request(5, 900), {"u": 800}) == {"u": 800}


def test_keys_share_nothing_and_none_displaces_another() -> None:
    now = [0.0]
    sessions = Sessions(SessionsConfig(max_sessions=4, ttl_s=10.0), lambda: now[0])

    def begin(name: str, key: str) -> Session:
        found = sessions.begin(name, key, request(), {})[0]
        assert found is not None
        return found

    first = begin("one", "a")
    assert begin("one", "a") is first
    assert begin("one", "b").id != first.id
    for number in range(9):
        begin(str(number), "b")
    assert len(sessions) == 4
    assert begin("one", "a") is first
    now[0] = 11.0
    assert begin("one", "a") is not first
    assert "one" not in first.id


def test_ids_of_two_routers_differ() -> None:
    assert Sessions().begin("one", "", request(), {})[1] != Sessions().begin("one", "", request(), {})[1]


def test_without_prefixes_a_turn_is_not_drawn_to_its_replica() -> None:
    sessions = Sessions(keep_prefixes=False)
    session = sessions.begin("one", "", request(), {})[0]
    assert session is not None
    session.observe(request(3, 400), "u", "a", Outcome("ok", output_tokens=25))
    assert sessions.begin("one", "", request(5, 450), {})[2] == {}


POOLED = ("plain", "pool/none", "pool/ngram", "pool/math")


def decision(accepted: dict[str, Accepted], shifts: list[list[float]] | None = None) -> Decision:
    """For a request of which math is predicted to have 2 accepted, ngram 1.2, by a prediction that is worth 8.75."""
    context = stored_context(np.zeros(LexicalFeaturizer().dimension, np.float32), LexicalFeaturizer().id)
    given = DecisionInput(context, POOLED[1:], accepted=accepted)
    return policy(ngram=1.2, math=2.0).decide(given, np.random.default_rng(0), shifts)


def tau_of(made: Decision, drafter: str) -> float:
    assert made.forecast is not None
    return made.forecast.tau[drafter]


def test_what_turns_accepted_and_what_is_predicted_count_by_their_weights() -> None:
    made = decision({"math": Accepted(math.log(4.5), 8.0)})
    assert tau_of(made, "math") == pytest.approx(3.0, rel=1e-4)  # both are worth 8: the geometric mean
    assert tau_of(made, "ngram") == pytest.approx(1.2, rel=1e-4)
    before = decision({})
    assert made.forecast is not None
    assert before.forecast is not None
    assert made.forecast.weight == pytest.approx(before.forecast.weight + 8.0)
    assert made.predicted_tpot_s == before.predicted_tpot_s  # corrections learn from the prediction alone
    heavy = decision({"math": Accepted(0.0, 100.0)}).forecast
    assert heavy is not None
    assert heavy.weight == 32.0


def test_corrections_of_acceptance_count_before_the_turns_and_those_of_steps_do_not() -> None:
    steps, less = 0.3, math.log(2.0)
    row = [0.0, steps, steps, steps + less]  # the pool's steps are slower, and math has half of what is predicted
    made = decision({"math": Accepted(math.log(4.0), 8.0)}, [row])
    assert tau_of(made, "math") == pytest.approx(2.0, rel=1e-4)
    assert made.residual == pytest.approx([0.0, steps, steps, steps], abs=1e-4)


def test_an_engine_without_drafts_is_expected_as_before() -> None:
    made = decision({"none": Accepted(2.0, 16.0), "unknown": Accepted(2.0, 16.0)})
    assert made.residual == [0.0] * 4
    assert decision({}).residual is None
